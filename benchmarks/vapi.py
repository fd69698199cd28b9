"""VAPI's model endpoint: time to the first word through the sidecar, over asking the model directly.

A stand-in for the model's server says its first word after 0.3 s and one each 20 ms from then on.
Streams of as many calls run at the same time, in turns directly and through the sidecar; memory
goes into each prompt, the journal and telemetry are on.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import aiohttp
import anyio
import anyio.to_thread
import psutil

from benchmarks.figures import Figures, milliseconds, percentile
from benchmarks.processes import LettaProcess, sidecar
from tests.sidecar_process import SidecarProcess, eventually, get

STREAMS = (1, 50, 200)
ROUNDS = {1: 20, 50: 4, 200: 3}
QUICK_ROUNDS = {1: 2, 50: 1, 200: 1}
FIRST_S, EACH_S = 0.3, 0.02


async def measure(quick: bool) -> Figures:
    """Return `ttft_ratio_p50` and `ttft_ratio_p99` by streams, and the CPU of a chunk."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model_url = await anyio.to_thread.run_sync(_model, stack)
        letta = stack.enter_context(LettaProcess())
        process = stack.enter_context(
            sidecar(
                directory,
                letta,
                SIDECAR_AGENT_ID=letta.agent("bench"),
                LLM_BASE_URL=f"{model_url}/v1",
                SIDECAR_VAPI_RATE_PER_S="5000",
            )
        )
        return await _measure(process, model_url, QUICK_ROUNDS if quick else ROUNDS)


async def _measure(process: SidecarProcess, model_url: str, rounds: dict[int, int]) -> Figures:
    p50: dict[str, float] = {}
    p99: dict[str, float] = {}
    rows: dict[str, Figures] = {}
    cpu_s = 0.0
    chunks = 0
    cpu = psutil.Process(process.pid)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector) as session:
        through = f"{process.url}/vapi/chat/completions"
        direct = f"{model_url}/v1/chat/completions"
        for streams in STREAMS:
            await _round(session, direct, streams, 0)
            await _round(session, through, streams, 0)
            first: dict[str, list[float]] = {direct: [], through: []}
            for number in range(rounds[streams]):
                for url in (direct, through):
                    before_s = sum(cpu.cpu_times()[:2])
                    took = await _round(session, url, streams, number)
                    first[url] += [one[0] for one in took]
                    if url is through:
                        cpu_s += sum(cpu.cpu_times()[:2]) - before_s
                        chunks += sum(one[1] for one in took)
            row: Figures = {"samples": len(first[through])}
            for name, share, ratios in (("p50", 0.5, p50), ("p99", 0.99, p99)):
                a, b = percentile(first[direct], share), percentile(first[through], share)
                ratios[str(streams)] = round(b / a, 3)
                row |= {f"direct_{name}_ms": milliseconds(a), f"through_{name}_ms": milliseconds(b)}
            rows[f"{streams} streams"] = row
    return {
        "ttft_ratio_p50": p50,
        "ttft_ratio_p99": p99,
        **rows,
        "cpu_us_per_chunk": round(cpu_s / chunks * 1e6, 1),
    }


async def _round(
    session: aiohttp.ClientSession, url: str, streams: int, number: int
) -> Sequence[tuple[float, int]]:
    """Return seconds to the first word and chunks, of each stream."""
    took: list[tuple[float, int]] = []

    async def one(index: int) -> None:
        call = {"id": f"call-{streams}-{index}", "type": "inboundPhoneCall"}
        messages = [
            {"role": "system", "content": "You are Ada."},
            {"role": "user", "content": f"Tell me something long, for the {number}th time."},
        ]
        body = {"model": "demo", "stream": True, "messages": messages, "call": call}
        began_s = time.perf_counter()
        first_s, chunks = 0.0, 0
        async with session.post(url, json=body) as response:
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunks += 1
                if not first_s and b'"content": ""' not in line:
                    first_s = time.perf_counter() - began_s
        took.append((first_s, chunks))

    async with anyio.create_task_group() as tasks:
        for index in range(streams):
            tasks.start_soon(one, index)
    return took


def _model(stack: ExitStack) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "sidecar.testing.openai_server", "--port", str(port)]
    process = subprocess.Popen(command)
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)

    def up() -> bool:
        with suppress(OSError):
            return get(f"{url}/v1/models")[0] == 200
        return False

    eventually(up)
    faults = {"first_token_delay_s": FIRST_S, "token_delay_s": EACH_S}
    request = urllib.request.Request(
        f"{url}/_ctl", json.dumps(faults).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=5).close()
    return url
