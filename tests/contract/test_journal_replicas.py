"""Two sidecars on one journal: what one has taken, the other leaves alone until it is gone."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.errors import TakenOver
from sidecar.journal.policy import PostPolicy
from sidecar.journal.postgres import PostgresJournal
from sidecar.journal.sql import SqlJournal
from sidecar.journal.sql.replicas import enter, new_name
from sidecar.journal.sqlite import SqliteJournal
from sidecar.model import AgentRef, Batch, Call, Turn
from sidecar.testing.memory_journal import MemoryJournal
from tests.set_clock import Clock

pytestmark = [pytest.mark.contract, pytest.mark.anyio]

NOW_S = 1_800_000_000.0
POLICY = PostPolicy(max_turns=3, max_age_s=60.0)
SECRET = b"s" * 32
CALL = Call("acme/one", AgentRef("acme", agent_id="agent-1"), "vapi", "k1", NOW_S)


def turn(n: int) -> Turn:
    return Turn(CALL.key, f"item-{n}", n, "caller", f"word {n}", NOW_S + n)


class Fleet:
    """Two replicas on one journal.

    Args:
        first: The journal, of the replica that opened it.
        second: Of another replica.
        clock: Of both.
    """

    def __init__(self, first: SqlJournal, second: SqlJournal, clock: Clock) -> None:
        self.first = first
        self.second = second
        self.clock = clock

    async def claim(self, journal: SqlJournal) -> list[Batch]:
        return await journal.claim(9, now_s=self.clock(), post_timeout_s=1.0)

    async def end(self, journal: SqlJournal) -> None:
        """Let a replica be gone, as when its lease has ended."""
        name = journal.replica
        await self.second.executor.write(
            lambda tx: tx.run("DELETE FROM replicas WHERE name = ?", name)
        )

    async def doubt(self, journal: SqlJournal) -> None:
        await journal.take_back(now_s=self.clock(), horizon_s=60.0)

    async def undelivered(self) -> int:
        return (await self.second.counts()).undelivered


@asynccontextmanager
async def opened(engine: str, clock: Clock, tmp_path: Path) -> AsyncGenerator[SqlJournal]:
    if engine == "memory":
        yield MemoryJournal(POLICY, clock=clock)
        return
    journal = await SqliteJournal.open(tmp_path / "journal.db", policy=POLICY, clock=clock)
    yield journal
    await journal.aclose()


@asynccontextmanager
async def processes(url: str, clock: Clock) -> AsyncGenerator[Fleet]:
    """Two on one database, each as a process of its own opens it."""
    journals = [
        await PostgresJournal.open(url, secret=SECRET, policy=POLICY, clock=clock) for _ in range(2)
    ]
    yield Fleet(journals[0], journals[1], clock)
    for journal in journals:
        await journal.aclose()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Fleet]:
    clock = Clock(NOW_S)
    if request.param == "postgres":
        async with processes(request.getfixturevalue("postgres").emptied(), clock) as two:
            yield two
        return
    async with opened(request.param, clock, tmp_path) as first:
        second = SqlJournal(
            first.executor, policy=POLICY, secret=SECRET, clock=clock, replica=new_name()
        )
        await first.executor.write(lambda tx: enter(tx, second.replica, now_s=clock()))
        yield Fleet(first, second, clock)


async def said(fleet: Fleet, turns: int = 3) -> Call:
    """Store a call of the first replica with turns that are due."""
    stored = await fleet.first.open_call(CALL)
    await fleet.first.append([turn(n) for n in range(1, turns + 1)])
    return stored


class TestLanes:
    """A lane under way belongs to the replica that claimed it."""

    async def test_what_one_sends_another_does_not_take_back(self, fleet: Fleet) -> None:
        """A replica that starts treats as in doubt what nobody sends, not what another one does."""
        await said(fleet)
        (batch,) = await fleet.claim(fleet.first)
        await fleet.doubt(fleet.second)
        assert await fleet.claim(fleet.second) == []
        await fleet.first.settle(batch, now_s=fleet.clock())
        assert await fleet.undelivered() == 0

    async def test_what_a_dead_one_sent_is_in_doubt(self, fleet: Fleet) -> None:
        """When a replica is gone, another one claims its lanes, to look up what was sent."""
        await said(fleet)
        (batch,) = await fleet.claim(fleet.first)
        await fleet.end(fleet.first)
        await fleet.doubt(fleet.second)
        (again,) = await fleet.claim(fleet.second)
        assert (again.batch_id, again.in_doubt) == (batch.batch_id, True)
        assert again.epoch > batch.epoch

    async def test_one_that_wakes_late_changes_nothing(self, fleet: Fleet) -> None:
        """No end of an old claim takes effect once another replica has claimed the lane."""
        await said(fleet)
        (late,) = await fleet.claim(fleet.first)
        await fleet.end(fleet.first)
        await fleet.doubt(fleet.second)
        (now,) = await fleet.claim(fleet.second)
        at_s = fleet.clock()
        for end in (
            fleet.first.settle(late, now_s=at_s),
            fleet.first.retire(late, error="400", now_s=at_s),
            fleet.first.split(late, now_s=at_s),
            fleet.first.resend(late, now_s=at_s, post_timeout_s=1.0),
            fleet.first.release(late, due_s=at_s, unknown=False, over=False, error="", now_s=at_s),
        ):
            with pytest.raises(TakenOver):
                await end
        assert await fleet.undelivered() == 3
        assert (await fleet.second.counts()).dead_batches == 0
        await fleet.second.settle(now, now_s=at_s)
        assert await fleet.undelivered() == 0
        await fleet.first.settle(late, now_s=at_s)  # it has ended: repeating does no harm

    async def test_an_older_claim_of_its_own_changes_nothing(self, fleet: Fleet) -> None:
        """A claim that was given back and made again is ended by the newer one alone."""
        await said(fleet)
        (older,) = await fleet.claim(fleet.first)
        await fleet.doubt(fleet.first)
        (newer,) = await fleet.claim(fleet.first)
        with pytest.raises(TakenOver):
            await fleet.first.settle(older, now_s=fleet.clock())
        await fleet.first.settle(newer, now_s=fleet.clock())
        assert await fleet.undelivered() == 0

    async def test_a_batch_that_another_one_ended_for_good_is_not_sent(self, fleet: Fleet) -> None:
        """A batch that was split or erased since it was claimed is sent by its claim no more."""
        stored = await said(fleet)
        (late,) = await fleet.claim(fleet.first)
        await fleet.end(fleet.first)
        await fleet.doubt(fleet.second)
        (now,) = await fleet.claim(fleet.second)
        await fleet.second.split(now, now_s=fleet.clock())
        with pytest.raises(TakenOver):
            await fleet.first.resend(late, now_s=fleet.clock(), post_timeout_s=1.0)
        assert stored.key == CALL.key


class TestCalls:
    """A live call belongs to the replica that opened it last."""

    async def test_a_call_of_another_is_not_taken_over(self, fleet: Fleet) -> None:
        """A replica that starts leaves the live calls of another one alone."""
        await said(fleet)
        assert await fleet.second.take_over() == []
        assert await fleet.first.take_over() == []

    async def test_a_dead_ones_calls_are_taken_over_once(self, fleet: Fleet) -> None:
        """The live calls of a replica that is gone belong to the first one that asks for them."""
        stored = await said(fleet)
        await fleet.end(fleet.first)
        (taken,) = await fleet.second.take_over()
        assert (taken, taken.epoch) == (stored, stored.epoch + 1)
        assert await fleet.second.take_over() == []
        await fleet.second.close_call(CALL.key, at_s=NOW_S, epoch=taken.epoch)

    async def test_its_channel_ends_it_whoever_has_it(self, fleet: Fleet) -> None:
        """A call that its channel says to have ended is closed, and is then retaken by nobody."""
        await said(fleet, turns=1)
        await fleet.second.open_call(CALL)
        await fleet.first.close_call(CALL.key, at_s=NOW_S, epoch=None, final=True)
        assert await fleet.first.calls(limit=9, live=True) == []
        assert await fleet.second.retake(CALL.key) is None
        assert await fleet.second.retake("acme/none") is None

    async def test_one_that_was_late_takes_it_again(self, fleet: Fleet) -> None:
        """A live call is taken by a replica that had it, and no one else closes it as lost."""
        stored = await said(fleet)
        await fleet.end(fleet.first)
        (taken,) = await fleet.second.take_over()
        assert await fleet.first.retake(CALL.key) == taken.epoch + 1 > stored.epoch
        with pytest.raises(TakenOver):
            await fleet.second.close_call(CALL.key, at_s=NOW_S, epoch=taken.epoch)

    async def test_a_drain_hurries_no_call_of_another(self, fleet: Fleet) -> None:
        """What is pending of a replica's own calls becomes due when it stops, and no other's."""
        await said(fleet, turns=1)
        await fleet.second.hurry(now_s=fleet.clock())
        assert await fleet.claim(fleet.second) == []
        await fleet.first.hurry(now_s=fleet.clock())
        assert len(await fleet.claim(fleet.second)) == 1

    async def test_whose_it_is_can_be_asked(self, fleet: Fleet) -> None:
        """A call is live elsewhere while another replica that is there has it open."""
        assert not await fleet.second.is_live_elsewhere(CALL.key)
        stored = await said(fleet)
        assert await fleet.second.is_live_elsewhere(CALL.key)
        assert not await fleet.first.is_live_elsewhere(CALL.key)
        await fleet.first.close_call(CALL.key, at_s=NOW_S, epoch=stored.epoch)
        assert not await fleet.second.is_live_elsewhere(CALL.key)
        await fleet.first.open_call(CALL)
        await fleet.end(fleet.first)
        assert not await fleet.second.is_live_elsewhere(CALL.key)

    async def test_one_that_wakes_late_closes_and_rewrites_nothing(self, fleet: Fleet) -> None:
        """A call that went on elsewhere is neither closed nor rewritten by who had it before."""
        stored = await said(fleet, turns=1)
        again = await fleet.second.open_call(CALL)
        assert again.epoch > stored.epoch
        with pytest.raises(TakenOver):
            await fleet.first.close_call(CALL.key, at_s=NOW_S, epoch=stored.epoch)
        with pytest.raises(TakenOver):
            await fleet.first.rewrite(CALL.key, [turn(9)], unchanged=0, epoch=stored.epoch)
        assert [row.call.key for row in await fleet.first.calls(limit=9, live=True)] == [CALL.key]
        assert [one.seq for one in await fleet.second.turns(CALL.key)] == [1]

    async def test_a_call_that_gets_its_caller_late_is_closed(self, fleet: Fleet) -> None:
        """A call that was opened without a caller stays this replica's when it gets one."""
        nobody = replace(CALL, ref=AgentRef("acme"), caller_key="")
        await fleet.first.open_call(nobody)
        known = await fleet.first.identify(CALL)
        await fleet.first.close_call(CALL.key, at_s=NOW_S, epoch=known.epoch)
        again = await fleet.first.identify(CALL)
        assert again.epoch == known.epoch
        assert await fleet.first.calls(limit=9, live=True) == []

    async def test_turns_are_stored_whoever_has_the_call(self, fleet: Fleet) -> None:
        """Words that reach a replica which has lost the call are stored, each once, in order."""
        await said(fleet, turns=1)
        await fleet.second.open_call(CALL)
        await fleet.second.append([turn(2)])
        await fleet.first.append([turn(1), turn(2), turn(3)])
        assert [one.seq for one in await fleet.second.turns(CALL.key)] == [1, 2, 3]

    async def test_opened_again_by_its_own_replica_it_stays_its_own(self, fleet: Fleet) -> None:
        """Opening a call again where it is does not make an earlier opening invalid."""
        stored = await said(fleet)
        assert (await fleet.first.open_call(CALL)).epoch == stored.epoch
        await fleet.first.close_call(CALL.key, at_s=NOW_S, epoch=stored.epoch)
