"""A worker that holds a few calls at a time over the real link, and keeps a ledger.

usage: killed_worker.py NAME LINK_URL SPOOL_DIR LEDGER SEED

Holds calls until SIGTERM, then ends them and sends the remaining turns. May be killed at any time.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path

import anyio

from sidecar.model import Utterance
from sidecar.private import LINK_TOKEN_FILE, token_in
from sidecar.telemetry import Telemetry
from sidecar.wire.frames import Hints
from sidecar.worker.call import LinkedCall
from sidecar.worker.link import Link
from sidecar.worker.unacked import Unacked
from tests.acks import on_ack
from tests.chaos.ledger import lesson_of, text_of
from tests.quiet import Quiet

# The kill loop sets this to take out the rule that turns are spooled at once without a sidecar.
SPOOLS_LATE_S = float(os.environ.get("CHAOS_SPOOL_AFTER_S", "0"))
CALLS_AT_ONCE = int(os.environ.get("CHAOS_CALLS", "3"))
CALLERS = int(os.environ.get("CHAOS_CALLERS", "24"))
TURN_EVERY_S = float(os.environ.get("CHAOS_TURN_EVERY_S", "0.08"))
FLUSH_S = 2.0
# Notes how long each ack took, and what each prompt waited.
TIMED = "CHAOS_TIMED" in os.environ
# The first turn of each call asks the demo model to remember the call.
TEACHES = "CHAOS_TEACH" in os.environ


class Worker:
    def __init__(self, name: str, link: Link, ledger: Path, dice: random.Random) -> None:
        self._name = name
        self._link = link
        self._dice = dice
        self._ledger = ledger.open("ab", buffering=0)
        self.stopping = anyio.Event()
        self._said_s: dict[tuple[str, str], float] = {}

    def note(self, *words: object) -> None:
        self._ledger.write((" ".join(map(str, words)) + "\n").encode())

    def took(self, what: str, since_s: float) -> None:
        """Note when something ended, in Unix time, and how long it took."""
        self.note("took", what, time.time(), time.perf_counter() - since_s)

    def watch_acks(self, call: LinkedCall) -> None:
        """Note each ack."""

        def acked(item: str) -> None:
            self.note("acked", call.call_id, item)
            if said_s := self._said_s.pop((call.call_id, item), 0.0):
                self.took("ack", said_s)

        on_ack(call, acked)

    async def run_calls(self, slot: int) -> None:
        """Hold one call after another."""
        opened = 0
        if TIMED:
            await anyio.sleep(self._dice.uniform(0.0, 2 * TURN_EVERY_S))
        while not self.stopping.is_set():
            opened += 1
            hints = Hints(caller=f"caller-{self._dice.randrange(CALLERS)}")
            call = self._link.open_call(
                f"{self._name}-{slot}-{opened}", "livekit", hints, opened_at_s=time.time()
            )
            self.watch_acks(call)
            for n in range(self._dice.randrange(1, 12)):
                if n % 2 == 0:
                    call.speech_started()
                self.note("said", call.call_id, n)
                text = text_of(call.call_id, n)
                if TEACHES and n == 0:
                    text += f" {lesson_of(call.call_id)}"
                if TIMED:
                    self._said_s[call.call_id, str(n)] = time.perf_counter()
                call.record(Utterance(str(n), "agent" if n % 2 else "caller", text))
                if TIMED and n % 2 == 0:
                    asked_s = time.perf_counter()
                    await call.ready()
                    self.took("prompt", asked_s)
                await anyio.sleep(self._dice.expovariate(1 / TURN_EVERY_S))
                if self.stopping.is_set():
                    break
            call.close("hung up")
            if self.stopping.is_set():
                await call.flushed(FLUSH_S)

    async def until_sigterm(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                self.stopping.set()
                return


def _late(unacked: Unacked, due_s: Callable[..., float | None], *, after_s: float) -> float | None:
    return due_s(unacked, after_s=max(after_s, SPOOLS_LATE_S))


async def main(name: str, url: str, spool: Path, ledger: Path, seed: int) -> None:
    dice = random.Random(seed)
    if SPOOLS_LATE_S:
        due_s = Unacked.due_on_disk_s
        Unacked.due_on_disk_s = partialmethod(_late, due_s)  # type: ignore[method-assign]
    link = Link(
        url,
        partial(token_in, Path(os.environ["SIDECAR_DATA_DIR"]) / LINK_TOKEN_FILE),
        worker=name,
        spool_dir=spool,
        emit=Telemetry(strict=True, logger=Quiet()).emit,
        clock=time.time,
        dice=dice.random,
    )
    worker = Worker(name, link, ledger, dice)
    async with anyio.create_task_group() as linked:
        linked.start_soon(link.run)
        async with anyio.create_task_group() as calls:
            calls.start_soon(worker.until_sigterm)
            for slot in range(CALLS_AT_ONCE):
                calls.start_soon(worker.run_calls, slot)
        linked.cancel_scope.cancel()
    worker.note("ended")


if __name__ == "__main__":
    anyio.run(
        main, sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])
    )
