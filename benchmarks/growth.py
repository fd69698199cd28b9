"""What a journal costs as it grows: settled turns, and dead letters.

One journal on a disk is filled with calls of 20 turns that are closed and settled, and measured at
each size: the same work should take as long whatever is stored. Then as many batches are made dead
letters. The row of the smallest size is the baseline.
"""

import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from benchmarks.figures import Figures, milliseconds, percentile
from benchmarks.link_client import TEXT
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.model import AgentRef, Batch, Call, Turn

SIZES: Final = (10_000, 100_000, 1_000_000)
QUICK_SIZES: Final = (400, 800)
DEAD: Final = (1_000, 10_000)
QUICK_DEAD: Final = (10,)
TURNS_PER_CALL: Final = 20
CALLERS: Final = 2_000
REPEATS: Final = 100
AT_ONCE: Final = 200
KEPT_S: Final = 30 * 86_400.0
POLICY: Final = PostPolicy(max_turns=TURNS_PER_CALL, max_age_s=60.0)


@dataclass
class Filled:
    """A journal, and how many calls it has had.

    Attributes:
        path: Its file.
        calls: How many calls were stored.
        now_s: The time that its calls are stored at, which goes on with each.
    """

    path: Path
    calls: int = 0
    now_s: float = 1_700_000_000.0

    async def open(self) -> SqliteJournal:
        """Open it, by the time of its calls."""
        self.journal = await SqliteJournal.open(self.path, policy=POLICY, clock=lambda: self.now_s)
        return self.journal

    async def call(self, n: int) -> Call:
        """Store the `n`th call, closed, with its turns due."""
        caller = f"caller-{n % CALLERS}"
        call = Call(f"acme/{n}", AgentRef("acme", caller_key=caller), "vapi", caller, self.now_s)
        stored = await self.journal.open_call(call)
        await self.journal.append(
            [
                Turn(call.key, str(i), i, "caller" if i % 2 else "agent", TEXT, self.now_s)
                for i in range(1, TURNS_PER_CALL + 1)
            ]
        )
        await self.journal.close_call(call.key, epoch=stored.epoch, at_s=self.now_s)
        return stored

    async def fill(self, turns: int, *, dead: bool = False) -> float:
        """Store calls up to a number of turns; returns turns a second.

        Args:
            turns: In all.
            dead: Their batches are dead letters; else they are settled.
        """
        began_s, before = time.perf_counter(), self.calls
        while self.calls * TURNS_PER_CALL < turns:
            first, last = self.calls, min(self.calls + AT_ONCE, -(-turns // TURNS_PER_CALL))
            async with anyio.create_task_group() as tasks:
                for n in range(first, last):
                    tasks.start_soon(self.call, n)
            self.calls = last
            self.now_s += 1.0
            while batches := await self.claimed():
                async with anyio.create_task_group() as tasks:
                    for batch in batches:
                        tasks.start_soon(self.retire if dead else self.settle, batch)
        undelivered = (await self.journal.backlog()).undelivered
        assert undelivered == 0, f"{undelivered} turns were not delivered"
        return (self.calls - before) * TURNS_PER_CALL / (time.perf_counter() - began_s)

    async def retire(self, batch: Batch) -> None:
        """Make a dead letter of a batch."""
        await self.journal.retire(batch, error="400", now_s=self.now_s)

    async def settle(self, batch: Batch) -> None:
        """Take a batch as digested."""
        await self.journal.settle(batch, now_s=self.now_s)

    async def claimed(self) -> list[Batch]:
        """Return what is due, claimed."""
        return await self.journal.claim(AT_ONCE, now_s=self.now_s, post_timeout_s=60.0)


async def took_ms(what: Callable[[], Awaitable[object]], *, times: int = REPEATS) -> float:
    """Return how long something takes, the median of several times."""
    each_s: list[float] = []
    for _ in range(times):
        began_s = time.perf_counter()
        await what()
        each_s.append(time.perf_counter() - began_s)
    return milliseconds(percentile(each_s, 0.5))


async def measure(quick: bool) -> Figures:
    """Return a row for each size, and one for each number of dead letters."""
    rows: Figures = {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.db"
        filled = Filled(path)
        await filled.open()
        for size in QUICK_SIZES if quick else SIZES:
            rate = await filled.fill(size)
            rows[f"{size:,} settled turns"] = {
                **await _sized(filled),
                "stored_per_s": round(rate),
                "bytes_per_turn": round(path.stat().st_size / size),
            }
        await filled.journal.aclose()
    for dead in QUICK_DEAD if quick else DEAD:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "journal.db"
            filled = Filled(path)
            await filled.open()
            await filled.fill(dead * TURNS_PER_CALL, dead=True)
            rows[f"{dead:,} dead letters"] = await _sized(filled)
            await filled.journal.aclose()
    return rows


async def _sized(filled: Filled) -> Figures:
    """Return what the journal costs at its size now."""
    await filled.journal.aclose()
    began_s = time.perf_counter()
    journal = await filled.open()
    open_s = time.perf_counter() - began_s
    await journal.take_back(now_s=filled.now_s, horizon_s=60.0)
    one = Call("acme/live", AgentRef("acme", caller_key="live"), "vapi", "live", filled.now_s)
    stored = await journal.open_call(one)
    said = iter(range(1, 1_000_000))

    async def append() -> None:
        n = next(said)
        await journal.append([Turn(stored.key, f"{filled.now_s}-{n}", n, "caller", TEXT, 1.0)])

    async def deliver() -> None:
        await append()
        await journal.hurry(now_s=filled.now_s)
        for batch in await filled.claimed():
            await filled.settle(batch)

    figures: Figures = {
        "open_ms": milliseconds(open_s),
        "append_ms": await took_ms(append),
        "deliver_ms": await took_ms(deliver),
        "backlog_ms": await took_ms(journal.backlog),
        "counts_ms": await took_ms(journal.counts, times=5),
        "calls_list_ms": await took_ms(lambda: journal.calls(limit=50)),
        "dead_list_ms": await took_ms(lambda: journal.batches(states=("dead",), limit=50)),
        "retention_ms": await took_ms(
            lambda: journal.erase_settled(before_s=filled.now_s - KEPT_S), times=5
        ),
    }
    await journal.close_call(stored.key, epoch=stored.epoch, at_s=filled.now_s)
    for batch in await filled.claimed():
        await filled.settle(batch)
    return figures
