"""Two sidecars on one journal: what one has taken, the other leaves alone until it is gone."""

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from sidecar.errors import CallError, HeardElsewhere, TakenOver
from sidecar.journal.elsewhere import Commanded, Usage
from sidecar.journal.policy import GOES_ON_S, PostPolicy
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


ROOM = "acme/RM_1"
IN_ROOM = replace(CALL, channel="livekit", room=ROOM)
NEXT = replace(IN_ROOM, key="acme/two", opened_at_s=NOW_S + 5)


def its(call: Call, n: int) -> Turn:
    """A turn of a job's own call; every job counts from 1 and gives the same ids."""
    return replace(turn(n), call=call.key)


async def texts(journal: SqlJournal) -> list[str]:
    return [one.item_id for one in await journal.turns(IN_ROOM.key)]


class TestSuccessors:
    """A call whose worker was lost goes on with the next job of its room and caller."""

    async def lost(self, fleet: Fleet) -> Call:
        """Store a call of the first replica with two turns, and lose its worker."""
        stored = await fleet.first.open_call(IN_ROOM)
        await fleet.first.append([turn(1), turn(2)])
        await fleet.first.lose([(stored.key, stored.epoch)], at_s=fleet.clock())
        return stored

    async def test_the_next_job_goes_on_with_it_anywhere(self, fleet: Fleet) -> None:
        """At another replica a new job goes on with the lost call, and both keys name that call."""
        lost = await self.lost(fleet)
        went_on = await fleet.second.open_call(NEXT)
        assert (went_on, went_on.epoch) == (lost, lost.epoch + 1)
        await fleet.second.append([its(NEXT, 1), its(NEXT, 2)])
        await fleet.second.append([its(NEXT, 2)])
        assert await texts(fleet.first) == ["item-1", "item-2", "two/item-1", "two/item-2"]
        assert await fleet.first.turns(NEXT.key) == await fleet.first.turns(IN_ROOM.key)
        assert await fleet.first.call(NEXT.key) == went_on
        before = await fleet.second.so_far(IN_ROOM.key, except_by=NEXT.key, limit=9)
        assert [one.item_id for one in before] == ["item-1", "item-2"]
        newest = await fleet.second.so_far(IN_ROOM.key, except_by="acme/x", limit=1)
        assert [one.item_id for one in newest] == ["two/item-2"]
        with pytest.raises(TakenOver):
            await fleet.first.close_call(IN_ROOM.key, at_s=NOW_S, epoch=lost.epoch, ended=False)
        await fleet.second.close_call(NEXT.key, at_s=NOW_S, epoch=went_on.epoch)
        assert await fleet.first.calls(limit=9, live=True) == []
        assert len(await fleet.first.calls(limit=9)) == 1

    async def test_a_successor_has_a_successor(self, fleet: Fleet) -> None:
        """When the next job is lost, too, the one after it goes on with the same call."""
        await self.lost(fleet)
        went_on = await fleet.second.open_call(NEXT)
        await fleet.second.append([its(NEXT, 1)])
        await fleet.second.lose([(went_on.key, went_on.epoch)], at_s=fleet.clock())
        third = replace(NEXT, key="acme/three")
        assert (await fleet.first.open_call(third)).key == IN_ROOM.key
        await fleet.first.append([its(third, 1)])
        assert await texts(fleet.first) == ["item-1", "item-2", "two/item-1", "three/item-1"]

    async def test_opened_again_a_successor_names_the_same_call(self, fleet: Fleet) -> None:
        """A successor that loses its link goes on with its call, however much later."""
        await self.lost(fleet)
        await fleet.second.open_call(NEXT)
        fleet.clock.now_s += 1_000.0
        assert (await fleet.first.open_call(NEXT)).key == IN_ROOM.key

    @pytest.mark.parametrize("after_s", [GOES_ON_S - 1.0, GOES_ON_S + 1.0])
    @pytest.mark.parametrize("closed", [False, True])
    async def test_within_a_minute(self, fleet: Fleet, after_s: float, closed: bool) -> None:
        """A lost call goes on for a minute, whether or not it was closed meanwhile."""
        lost = await self.lost(fleet)
        fleet.clock.now_s += 30.0
        if closed:
            await fleet.first.close_call(lost.key, at_s=NOW_S, epoch=lost.epoch, ended=False)
        fleet.clock.now_s = NOW_S + after_s
        opened = await fleet.second.open_call(replace(NEXT, opened_at_s=fleet.clock()))
        assert opened.key == (lost.key if after_s < GOES_ON_S else NEXT.key)
        assert opened.closed_at_s is None

    async def test_what_was_ended_does_not_go_on(self, fleet: Fleet) -> None:
        """A call that its worker has ended is over, and so is one that was lost before that."""
        stored = await fleet.first.open_call(IN_ROOM)
        await fleet.first.close_call(stored.key, at_s=NOW_S, epoch=stored.epoch)
        await fleet.first.lose([(stored.key, stored.epoch)], at_s=NOW_S)
        assert (await fleet.second.open_call(NEXT)).key == NEXT.key

    @pytest.mark.parametrize(
        "other",
        [
            replace(NEXT, caller_key="k2"),
            replace(NEXT, caller_key=""),
            replace(NEXT, room=""),
            replace(NEXT, room="acme/RM_2"),
            replace(NEXT, room="other/RM_1"),
        ],
        ids=["caller", "nobody", "nowhere", "room", "tenant"],
    )
    async def test_nobody_else_gets_it(self, fleet: Fleet, other: Call) -> None:
        """Another caller, room or tenant, and who has none, never goes on with a call."""
        await self.lost(fleet)
        assert (await fleet.second.open_call(other)).key == other.key
        assert await fleet.second.in_room(other.room, caller_key=other.caller_key) in {
            None,
            other.key,
        }

    async def test_a_living_workers_call_is_left_alone(self, fleet: Fleet) -> None:
        """While another replica has a call whose worker is not lost, a new job stores nothing."""
        stored = await fleet.first.open_call(IN_ROOM)
        with pytest.raises(HeardElsewhere) as heard:
            await fleet.second.open_call(NEXT)
        assert (heard.value.key, heard.value.by) == (IN_ROOM.key, IN_ROOM.key)
        assert heard.value.since_s == IN_ROOM.opened_at_s
        assert await fleet.second.in_room(ROOM, caller_key="k1") == IN_ROOM.key
        await fleet.first.close_call(stored.key, at_s=NOW_S, epoch=stored.epoch)
        assert (await fleet.second.open_call(NEXT)).key == NEXT.key

    async def test_a_dead_replicas_call_goes_on(self, fleet: Fleet) -> None:
        """If the replica is gone with the worker, the next job goes on at another one."""
        await fleet.first.open_call(IN_ROOM)
        await fleet.end(fleet.first)
        assert (await fleet.second.open_call(NEXT)).key == IN_ROOM.key

    async def test_one_that_was_taken_over_is_lost_since(self, fleet: Fleet) -> None:
        """The calls of a replica that is gone are lost when another takes them over."""
        await fleet.first.open_call(IN_ROOM)
        await fleet.end(fleet.first)
        (taken,) = await fleet.second.take_over()
        assert taken.room == ROOM
        fleet.clock.now_s += GOES_ON_S + 1.0
        late = replace(NEXT, opened_at_s=fleet.clock())
        assert (await fleet.second.open_call(late)).key == NEXT.key

    async def test_a_replica_may_know_more_than_it_has_written(self, fleet: Fleet) -> None:
        """The replica that has a call says itself that its worker is lost."""
        await fleet.first.open_call(IN_ROOM)
        opened = await fleet.first.open_call(NEXT, continues=IN_ROOM.key)
        assert opened.key == IN_ROOM.key
        another = replace(NEXT, key="acme/three")
        with pytest.raises(HeardElsewhere):
            await fleet.second.open_call(another, continues=IN_ROOM.key)

    async def test_a_job_that_comes_back_takes_nothing_away(self, fleet: Fleet) -> None:
        """A job taken for lost that lives does not get its call back while a successor has it."""
        await self.lost(fleet)
        went_on = await fleet.second.open_call(NEXT)
        with pytest.raises(HeardElsewhere) as heard:
            await fleet.first.open_call(IN_ROOM)
        assert (heard.value.key, heard.value.by) == (IN_ROOM.key, NEXT.key)
        assert heard.value.since_s == NEXT.opened_at_s
        assert not await fleet.first.is_live_elsewhere(IN_ROOM.key)
        assert await fleet.first.is_live_elsewhere(NEXT.key)
        await fleet.second.lose([(went_on.key, went_on.epoch)], at_s=fleet.clock())
        assert (await fleet.first.open_call(IN_ROOM)).key == IN_ROOM.key

    async def test_a_close_of_what_was_lost_ends_no_successors_call(self, fleet: Fleet) -> None:
        """What a dead worker left is stored and closed only if nobody has gone on meanwhile."""
        late = await fleet.first.open_call(IN_ROOM, lost_s=fleet.clock())
        assert (await fleet.first.open_call(NEXT)).key == IN_ROOM.key
        await fleet.first.close_call(late.key, at_s=NOW_S, epoch=late.epoch, if_lost=True)
        (row,) = await fleet.first.calls(limit=9, live=True)
        assert row.call.room == ROOM
        await fleet.first.append([turn(3)])
        assert await texts(fleet.first) == ["item-3"]

    async def test_a_job_that_took_its_call_back_ends_it(self, fleet: Fleet) -> None:
        """The call is that job's which opened it last, the first of them too: it alone ends it."""
        await self.lost(fleet)
        went_on = await fleet.second.open_call(NEXT)
        await fleet.second.lose([(went_on.key, went_on.epoch)], at_s=fleet.clock())
        back = await fleet.first.open_call(IN_ROOM)
        with pytest.raises(HeardElsewhere) as heard:
            await fleet.second.open_call(NEXT)
        assert (heard.value.by, heard.value.since_s) == (IN_ROOM.key, IN_ROOM.opened_at_s)
        assert await fleet.second.is_live_elsewhere(IN_ROOM.key)
        assert await fleet.first.retake(NEXT.key) is None
        assert await fleet.first.retake(IN_ROOM.key) == back.epoch
        await fleet.second.close_call(NEXT.key, at_s=NOW_S, epoch=None)
        (row,) = await fleet.first.calls(limit=9, live=True)
        assert row.call.room == ROOM
        await fleet.first.close_call(IN_ROOM.key, at_s=NOW_S, epoch=None)
        assert await fleet.first.calls(limit=9, live=True) == []
        assert (await fleet.second.open_call(replace(NEXT, key="acme/3"))).key == "acme/3"

    async def test_the_end_of_an_earlier_job_ends_nothing_for_a_later_one(
        self, fleet: Fleet
    ) -> None:
        """A `call.close` that a dead worker left closes no room in which another went on."""
        await self.lost(fleet)
        went_on = await fleet.second.open_call(NEXT)
        await fleet.second.lose([(went_on.key, went_on.epoch)], at_s=fleet.clock())
        left = await fleet.second.open_call(IN_ROOM, lost_s=NOW_S)
        await fleet.second.close_call(IN_ROOM.key, at_s=NOW_S, epoch=left.epoch, if_lost=True)
        assert await fleet.second.calls(limit=9, live=True) == []
        assert (await fleet.second.open_call(replace(NEXT, key="acme/3"))).key == IN_ROOM.key

    async def test_one_that_was_not_gone_has_lost_no_worker(self, fleet: Fleet) -> None:
        """A call that was taken over by mistake and is taken again is not lost any more."""
        await fleet.first.open_call(IN_ROOM)
        await fleet.end(fleet.first)
        await fleet.second.take_over()
        await fleet.second.retake(IN_ROOM.key)
        late = replace(NEXT, opened_at_s=fleet.clock())
        assert (await fleet.second.open_call(late)).key == NEXT.key

    async def test_a_refusal_by_any_of_its_jobs_is_the_calls(self, fleet: Fleet) -> None:
        """From a refusal on, under whichever key, no replica stores a turn of the call."""
        await self.lost(fleet)
        await fleet.second.open_call(NEXT)
        await fleet.first.refuse("acme/none")
        await fleet.second.append([its(NEXT, 1)])
        await fleet.first.refuse(NEXT.key)
        for late in (turn(9), its(NEXT, 2)):
            with pytest.raises(CallError) as refused:
                await fleet.second.append([late])
            assert refused.value.code == "refused"
        assert await texts(fleet.first) == ["item-1", "item-2", "two/item-1"]
        assert (await fleet.first.open_call(NEXT)).consent == "no"

    async def test_what_an_earlier_run_left_is_lost_since_its_last_word(self, fleet: Fleet) -> None:
        """After an hour without a sidecar a job of the room begins a new call."""
        await fleet.first.open_call(IN_ROOM)
        await fleet.end(fleet.first)
        fleet.clock.now_s += 3_600.0
        (taken,) = await fleet.second.take_over(first=True)
        assert taken.room == ROOM
        assert await fleet.second.in_room(ROOM, caller_key="k1") is None
        late = replace(NEXT, opened_at_s=fleet.clock())
        assert (await fleet.second.open_call(late)).key == NEXT.key

    @pytest.mark.parametrize("known", [True, False])
    async def test_who_took_its_place_in_time_says_so_late(self, fleet: Fleet, known: bool) -> None:
        """A job that followed within the minute is the successor, also if no sidecar was there."""
        if known:
            await fleet.first.open_call(IN_ROOM)
            await fleet.end(fleet.first)
        fleet.clock.now_s += 3_600.0
        if known:
            await fleet.second.take_over(first=True)
        else:
            await fleet.second.open_call(IN_ROOM, lost_s=NOW_S + 2)
        another = replace(NEXT, key="acme/late", opened_at_s=fleet.clock())
        assert (await fleet.second.open_call(NEXT, lost_s=NOW_S + 9)).key == IN_ROOM.key
        assert (await fleet.second.open_call(another)).key == another.key

    async def test_a_call_that_only_the_spool_told_of_goes_on(self, fleet: Fleet) -> None:
        """What was never opened by a living worker goes on like any lost call."""
        late = await fleet.first.open_call(IN_ROOM, lost_s=fleet.clock())
        await fleet.first.close_call(
            late.key, at_s=NOW_S, epoch=late.epoch, ended=False, if_lost=True
        )
        assert (await fleet.second.open_call(NEXT)).key == IN_ROOM.key

    async def test_a_refusal_stays(self, fleet: Fleet) -> None:
        """A call that its caller refused stays refused for each successor."""
        stored = await fleet.first.open_call(replace(IN_ROOM, consent="no"))
        await fleet.first.lose([(stored.key, stored.epoch)], at_s=fleet.clock())
        assert (await fleet.second.open_call(replace(NEXT, consent="yes"))).consent == "no"

    async def test_a_forgotten_caller_is_forgotten_under_every_key(self, fleet: Fleet) -> None:
        """After a caller is forgotten, late words of a successor do not come back either."""
        await self.lost(fleet)
        went_on = await fleet.second.open_call(NEXT)
        await fleet.second.close_call(NEXT.key, at_s=NOW_S, epoch=went_on.epoch)
        assert await fleet.second.erase_caller("k1", now_s=fleet.clock()) == 2
        for call in (IN_ROOM, NEXT):
            with pytest.raises(CallError) as refused:
                await fleet.second.open_call(call)
            assert refused.value.code == "erased"

    async def test_retention_erases_the_keys_as_well(self, fleet: Fleet) -> None:
        """When a call is erased by age, a successor's key is free again."""
        stored = await fleet.first.open_call(IN_ROOM)
        await fleet.first.open_call(NEXT, continues=stored.key)
        await fleet.first.close_call(NEXT.key, at_s=NOW_S, epoch=stored.epoch)
        await fleet.first.erase_settled(before_s=NOW_S + 1)
        assert await fleet.first.call(NEXT.key) is None
        assert (await fleet.first.open_call(NEXT)).key == NEXT.key


NOTHING = Usage({}, {})


async def passed_on(
    replica: SqlJournal,
    *,
    after: int = 0,
    opened: Sequence[str] = (),
    live: Collection[str] = (CALL.key,),
) -> list[Commanded]:
    return await replica.passed_on(after=after, opened=opened, live=live)


class TestElsewhere:
    """Commands reach the replicas that have the call."""

    async def test_each_sees_the_calls_of_the_others_that_are_there(self, fleet: Fleet) -> None:
        """The live calls of other replicas are found by their keys, until the replica is gone."""
        await said(fleet)
        assert await fleet.second.live_elsewhere() == {CALL.key: CALL.key}
        assert await fleet.first.live_elsewhere() == {}
        await fleet.end(fleet.first)
        assert await fleet.second.live_elsewhere() == {}

    @pytest.mark.parametrize("command", ["say", "hang-up"])
    async def test_words_and_a_hang_up_are_taken_once(
        self, fleet: Fleet, command: Literal["say", "hang-up"]
    ) -> None:
        """They are for the replica that stores the call alone, and for one look of it."""
        await said(fleet)
        asked = Commanded(CALL.key, command, "x")
        assert await fleet.first.pass_on(asked) == 0, "nobody else has it"
        n = await fleet.second.pass_on(asked)
        assert await passed_on(fleet.second) == []
        assert await passed_on(fleet.first, live=["acme/two"]) == []
        assert await passed_on(fleet.first) == [replace(asked, n=n)]
        assert await passed_on(fleet.first) == []

    async def test_words_that_nobody_takes_are_dropped(self, fleet: Fleet) -> None:
        """What a replica did not take within a minute is not said any more."""
        await said(fleet)
        await fleet.second.pass_on(Commanded(CALL.key, "say", "x"))
        fleet.clock.now_s += 61.0
        await fleet.second.pass_on(Commanded(CALL.key, "guide", "y"))
        assert [one.text for one in await passed_on(fleet.first)] == ["y"]

    async def test_guidance_is_for_every_replica_until_the_call_is_closed(
        self, fleet: Fleet
    ) -> None:
        """Each gets it once, one that has the call only later all of it, and then it is gone."""
        await said(fleet)
        pieces = [Commanded(CALL.key, "guide", text) for text in ("one", "two")]
        stored = [replace(one, n=await fleet.second.pass_on(one)) for one in pieces]
        assert stored[0].n < stored[1].n
        for replica in (fleet.first, fleet.second):
            assert await passed_on(replica, after=0, opened=[]) == stored
            assert await passed_on(replica, after=stored[0].n, opened=[]) == stored[1:]
            assert await passed_on(replica, after=stored[1].n, opened=[CALL.key]) == stored
        await fleet.first.close_call(CALL.key, at_s=fleet.clock(), epoch=None)
        assert await passed_on(fleet.first, after=0, opened=[CALL.key]) == []
        assert await fleet.first.pass_on(pieces[0]) == 0

    async def test_who_asks_first_does_what_is_done_once(self, fleet: Fleet) -> None:
        """A name is given to one replica; the others get its answer, until it is not known."""
        await said(fleet)
        until_s = fleet.clock() + 10.0
        assert await fleet.first.first("tool/1", call=CALL.key, until_s=until_s) is None
        assert await fleet.first.first("delivery/1", until_s=until_s) is None
        for replica in (fleet.first, fleet.second):
            assert await replica.first("tool/1", call=CALL.key, until_s=until_s) == ""
        await fleet.first.answer("tool/1", "yes")
        assert await fleet.second.first("tool/1", call=CALL.key, until_s=until_s) == "yes"
        fleet.clock.now_s += 10.5
        assert await fleet.second.first("tool/1", call=CALL.key, until_s=until_s) is None

    async def test_what_each_has_used_is_counted_for_all(self, fleet: Fleet) -> None:
        """Tokens of a tenant's day and of a call add up over replicas; unstored calls count not."""
        await said(fleet)
        assert await fleet.second.replicas() == 2
        used = Usage({"acme": 10, "zen": 1}, {CALL.key: 7, "acme/none": 9})
        assert await fleet.first.use(used, day=20_000) == replace(used, calls={CALL.key: 7})
        more = Usage({"acme": 5}, {CALL.key: 2})
        total = Usage({"acme": 15, "zen": 1}, {CALL.key: 9})
        assert await fleet.second.use(more, day=20_000) == total
        assert await fleet.first.use(NOTHING, day=20_000) == replace(total, calls={})
        assert await fleet.first.use(NOTHING, day=20_009) == NOTHING
        await fleet.second.use(Usage({"acme": 1}, {}), day=20_010)
        days = await fleet.first.executor.read(lambda tx: tx.rows("SELECT tenant, day FROM spent"))
        assert days == [("acme", 20_010)]
        await fleet.end(fleet.first)
        assert await fleet.second.replicas() == 1

    async def test_nothing_of_a_forgotten_caller_is_left_in_them(self, fleet: Fleet) -> None:
        """Who forgets a caller forgets what was asked for their calls and answered in them."""
        await said(fleet)
        await fleet.second.pass_on(Commanded(CALL.key, "guide", "x"))
        await fleet.second.first("tool/1", call=CALL.key, until_s=fleet.clock() + 10.0)
        await fleet.second.answer("tool/1", "yes")
        (batch,) = await fleet.claim(fleet.first)
        await fleet.first.settle(batch, now_s=fleet.clock())
        await fleet.first.close_call(CALL.key, at_s=fleet.clock(), epoch=None)
        await fleet.first.erase_caller("k1", now_s=fleet.clock())
        for sql in ("SELECT text FROM commands", "SELECT answer FROM once"):
            assert await fleet.first.executor.read(lambda tx, sql=sql: tx.rows(sql)) == []
