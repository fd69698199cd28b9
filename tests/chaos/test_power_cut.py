"""The journal on a disk whose power is cut at any moment."""

import os
import random
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from sidecar.errors import JournalCorrupt
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.journal.sqlite.journal import checkpoint
from sidecar.model import AgentRef, Call, Turn
from tests.chaos.power_cut import Disk

pytestmark = [pytest.mark.chaos, pytest.mark.anyio]

POLICY = PostPolicy(max_turns=4, max_age_s=60.0)
REF = AgentRef("acme", agent_id="agent-1")
CALLS, TURNS = 12, 8
FEWEST_CUTS = 15
WORDS = "said and never to be lost " * 40
LATER_S = 120.0


@dataclass
class Cut:
    """A moment at which the power may fail.

    Attributes:
        directory: The files as they then may be.
        acked: The turns that were stored by then.
        settled: Those of them that Letta had digested.
    """

    directory: Path
    acked: frozenset[tuple[str, str]]
    settled: frozenset[tuple[str, str]]


@dataclass
class Run:
    """A journal at work, and the cuts that were made."""

    disk: Disk
    directory: Path
    dice: random.Random
    acked: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    settled: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    cuts: list[Cut] = field(default_factory=list[Cut])

    def written(self) -> None:
        """Cut the power after one write in twenty."""
        if self.dice.random() < 1 / 20:
            directory = self.directory / f"cut-{len(self.cuts)}"
            directory.mkdir()
            cut = Cut(directory, frozenset(self.acked), frozenset(self.settled))
            self.disk.image(directory, self.dice)
            self.cuts.append(cut)

    async def work(self) -> None:
        """Hold calls, deliver them, and empty the log from time to time."""
        journal = await SqliteJournal.open(self.directory / "journal.db", policy=POLICY)
        for n in range(CALLS):
            call = Call(f"acme/{n}", REF, "livekit", "k1", float(n))
            opened = await journal.open_call(call)
            async with anyio.create_task_group() as tasks:
                for number in range(TURNS):
                    tasks.start_soon(self._append, journal, call.key, number)
            await journal.close_call(call.key, epoch=opened.epoch, at_s=float(n))
            for batch in await journal.claim(9, now_s=time.time(), post_timeout_s=9.0):
                await journal.settle(batch, now_s=time.time())
                self.settled |= {(turn.call, turn.item_id) for turn in batch.turns}
            if n % 4 == 3:
                await journal.executor.read(checkpoint)
        await journal.aclose()

    async def _append(self, journal: SqliteJournal, key: str, number: int) -> None:
        await journal.append([Turn(key, str(number), number, "caller", WORDS, float(number))])
        self.acked.add((key, str(number)))


@contextmanager
def running(directory: Path, *, syncs: bool = True) -> Generator[Run]:
    """Give this process's SQLite a disk whose power can be cut."""
    seed = int(os.environ.get("CHAOS_SEED", str(random.SystemRandom().randrange(1 << 32))))
    print(f"CHAOS_SEED={seed}")
    disk = Disk(syncs=syncs)
    run = Run(disk, directory, random.Random(seed))
    disk.written = run.written
    try:
        yield run
    finally:
        disk.close()


async def lost_after(cut: Cut) -> int:
    """Return how many acked turns a journal no longer has that goes on after a cut.

    Raises:
        AssertionError: a turn is there twice or out of order, or would be delivered twice.
        JournalError: it does not go on.
    """
    journal = await SqliteJournal.open(cut.directory / "journal.db", policy=POLICY)
    stored: set[tuple[str, str]] = set()
    for n in range(CALLS):
        seqs = [turn.seq for turn in await journal.turns(f"acme/{n}")]
        assert len(seqs) == len(set(seqs))
        stored |= {(f"acme/{n}", str(seq)) for seq in seqs}
    await journal.take_back(now_s=time.time())
    again = await journal.claim(99, now_s=time.time() + LATER_S, post_timeout_s=9.0)
    delivered = {(turn.call, turn.item_id) for batch in again for turn in batch.turns}
    assert not delivered & cut.settled & stored
    await journal.aclose()
    return len(cut.acked - stored)


async def test_what_was_acked_survives_a_power_cut(tmp_path: Path) -> None:
    """Whenever the power fails, the journal goes on, with every acked turn and none twice."""
    with running(tmp_path) as run:
        await run.work()
    assert len(run.cuts) >= FEWEST_CUTS
    assert any(cut.settled for cut in run.cuts)
    assert not any([await lost_after(cut) for cut in run.cuts])


async def test_a_disk_that_does_not_sync_is_seen(tmp_path: Path) -> None:
    """On a disk that only says that it has synced, a cut loses acked turns or the file."""
    with running(tmp_path, syncs=False) as run:
        await run.work()
    lost = 0
    for cut in run.cuts:
        try:
            lost += await lost_after(cut)
        except (AssertionError, JournalCorrupt):
            lost += 1
    assert lost
