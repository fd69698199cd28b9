"""How long it takes until a turn is safe: sent over the link, fsynced, acked.

The baselines, in the same run and on the same disk, are a bare write and fsync of as many bytes,
and the journal in this process without a link.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from benchmarks.figures import Figures, latency
from benchmarks.link_client import TEXT
from benchmarks.processes import LettaProcess, sidecar
from sidecar.journal.policy import PostPolicy
from sidecar.journal.postgres import PostgresJournal
from sidecar.journal.sql import SqlJournal
from sidecar.journal.sqlite import SqliteJournal
from sidecar.model import AgentRef, Call, Turn
from tests.postgres.server import PostgresServer, binaries
from tests.sidecar_process import SidecarProcess

RATE_PER_S = 200.0
SECONDS = 8.0
QUICK_SECONDS = 0.5
APPENDERS = 256
"""Appends that wait at once when the journal is driven as fast as it can."""
CLIENT_S = 60.0
POLICY = PostPolicy(max_turns=20, max_age_s=60.0)


async def measure(quick: bool) -> Figures:
    """Return `append_p50_ms` and `append_p99_ms` at 200/s over the link, and `max_per_s`.

    The figures on top are those of one client. The rows have the same figures for 4 clients (50/s
    each), for one client whose turns are also delivered to a Letta, for the journal in this
    process, for one in a PostgreSQL of this machine, and for a bare fsync (before and after
    everything else, as the disk's speed varies).
    """
    seconds = QUICK_SECONDS if quick else SECONDS
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start() -> SidecarProcess:
            letta = stack.enter_context(LettaProcess(delay_ms=20))
            process = sidecar(directory / "sidecar", letta, SIDECAR_LOG_LEVEL="error")
            return stack.enter_context(process)

        process = await anyio.to_thread.run_sync(start)
        rows: dict[str, Figures] = {}
        rows["bare fsync, before"] = await _fsync(directory / "bare", seconds)
        file = await SqliteJournal.open(directory / "journal.db", policy=POLICY)
        rows["journal, no link"] = await _direct(file, seconds)
        if binaries() is not None:
            server = stack.enter_context(PostgresServer(directory / "postgres", fsync=True))
            database = await PostgresJournal.open(server.database(), secret=b"", policy=POLICY)
            rows["PostgreSQL journal, no link"] = await _direct(database, seconds)
        for name, clients, caller in (
            ("link, 1 client", 1, ""),
            ("link, 4 clients", 4, ""),
            ("link, 1 client, delivering", 1, "ada"),
        ):
            rows[name] = await anyio.to_thread.run_sync(_linked, process, clients, caller, seconds)
        rows["bare fsync, after"] = await _fsync(directory / "bare", seconds)
    linked = rows["link, 1 client"]
    return rows | {name: linked[name] for name in ("append_p50_ms", "append_p99_ms", "max_per_s")}


def _linked(process: SidecarProcess, clients: int, caller: str, seconds: float) -> Figures:
    steady = _clients(process, clients, seconds, caller=caller, rate=RATE_PER_S / clients)
    flat_out = _clients(process, clients, seconds / 2, caller=caller, rate=0.0)
    return {
        **latency([s for seen in steady for s in seen["acks_s"]], prefix="append_"),
        "max_per_s": round(sum(seen["sent"] / seen["took_s"] for seen in flat_out)),
        "unacked": sum(seen["sent"] - len(seen["acks_s"]) for seen in (*steady, *flat_out)),
    }


def _clients(
    process: SidecarProcess, count: int, seconds: float, *, caller: str, rate: float
) -> list[dict[str, Any]]:
    """Run this many client processes at once and return what each measured."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.link_client",
        process.link_url,
        "--rate",
        str(rate),
    ]
    command += ["--seconds", str(seconds), "--caller", caller]
    env = {**os.environ, "SIDECAR_LINK_TOKEN": process.link_token}  # no other user sees it there
    running = [
        subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for client in running:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n", "a client did not start"
        for client in running:
            assert client.stdin is not None
            client.stdin.write("\n")
            client.stdin.flush()
        return [json.loads(client.communicate(timeout=CLIENT_S)[0]) for client in running]
    finally:
        for client in running:
            client.kill()
            client.wait()
            for pipe in (client.stdin, client.stdout):
                assert pipe is not None
                pipe.close()


async def _fsync(path: Path, seconds: float) -> Figures:
    return await anyio.to_thread.run_sync(_fsync_blocking, path, seconds)


def _fsync_blocking(path: Path, seconds: float) -> Figures:
    """Append to a file with an fsync each time: at the rate, and then without a pause."""
    raw = TEXT.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append() -> None:
        os.write(descriptor, raw)
        os.fsync(descriptor)

    try:
        took_s = _paced(append, seconds / 2)
        began_s = time.perf_counter()
        count = 0
        while (now_s := time.perf_counter()) < began_s + seconds / 4:
            append()
            count += 1
    finally:
        os.close(descriptor)
    return {**latency(took_s, prefix="append_"), "max_per_s": round(count / (now_s - began_s))}


def _paced(append: Callable[[], None], seconds: float) -> list[float]:
    dice = random.Random(1)
    took_s: list[float] = []
    next_s = time.perf_counter()
    end_s = next_s + seconds
    while (next_s := next_s + dice.expovariate(RATE_PER_S)) < end_s:
        time.sleep(max(0.0, next_s - time.perf_counter()))
        began_s = time.perf_counter()
        append()
        took_s.append(time.perf_counter() - began_s)
    return took_s


async def _direct(journal: SqlJournal, seconds: float) -> Figures:
    """Append to a journal itself, at the rate, and then with `APPENDERS` waiting at a time.

    Closes it.
    """
    call = Call("bench/1", AgentRef("bench"), "livekit", "", opened_at_s=time.time())
    try:
        await journal.open_call(call)
        took_s: list[float] = []
        count = 0

        async def append() -> None:
            nonlocal count
            count += 1
            turn = Turn(call.key, f"item-{count}", count, "caller", TEXT, time.time())
            began_s = time.perf_counter()
            await journal.append([turn])
            took_s.append(time.perf_counter() - began_s)

        dice = random.Random(1)
        next_s = time.perf_counter()
        end_s = next_s + seconds
        async with anyio.create_task_group() as tasks:
            while (next_s := next_s + dice.expovariate(RATE_PER_S)) < end_s:
                await anyio.sleep(max(0.0, next_s - time.perf_counter()))
                tasks.start_soon(append)
        steady = latency(took_s, prefix="append_")

        async def keep_appending(until_s: float) -> None:
            while time.perf_counter() < until_s:
                await append()

        before, began_s = count, time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(APPENDERS):
                tasks.start_soon(keep_appending, began_s + seconds / 2)
        per_s = (count - before) / (time.perf_counter() - began_s)
    finally:
        await journal.aclose()
    return {**steady, "max_per_s": round(per_s)}
