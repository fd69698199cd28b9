"""A call that outlives its worker: another job of its room goes on with it, in virtual time."""

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.calls import LiveCall, MemoryView
from sidecar.channels.console.views import calls_view
from sidecar.errors import JournalError
from sidecar.journal.policy import GOES_ON_S
from sidecar.journal.sql import SqlJournal
from sidecar.journal.sql.replicas import enter
from sidecar.model import Call, CallerHints, Turn, call_key
from sidecar.testing.memory_journal import POLICY
from tests.unit.test_calls import ADA, BOB, CallsBench, Ear, virtual

pytestmark = pytest.mark.unit

ROOM = "RM_1"
NO = CallerHints(phone=ADA.phone, consent="no")
AFTER_S = 3.0
"""How much later the next job is opened."""


async def opened(
    bench: CallsBench,
    name: str,
    hints: CallerHints = ADA,
    *,
    room: str = ROOM,
    opened_at_s: float | None = None,
) -> tuple[LiveCall, Ear]:
    """Open a job's call; its worker is named after it."""
    ear = Ear()
    live = await bench.calls.open(
        "t",
        name,
        channel="livekit",
        hints=hints,
        opened_at_s=bench.clock() if opened_at_s is None else opened_at_s,
        owner=f"worker of {name}",
        listener=ear,
        room=room,
    )
    return live, ear


def said(bench: CallsBench, live: LiveCall, n: int, text: str = "") -> Turn:
    """One turn of a job, which counts from 1 as every job does."""
    speaker = "caller" if n % 2 else "agent"
    return Turn(live.key, f"item-{n}", n, speaker, text or f"{live.key} {n}", bench.clock())


async def lost(bench: CallsBench, *texts: str, name: str = "J1", hints: CallerHints = ADA) -> None:
    """Have a call with these turns, and lose its worker."""
    live, _ = await opened(bench, name, hints)
    for n, text in enumerate(texts, start=1):
        await live.record([said(bench, live, n, text)])
    bench.calls.orphan(live.owner)


async def restored(
    bench: CallsBench,
    name: str,
    turns: Sequence[Turn],
    *,
    ended: bool = False,
    opened_at_s: float | None = None,
) -> bool:
    """Take up what the dead worker of a job has left."""
    return await bench.calls.restore(
        "t",
        name,
        channel="livekit",
        hints=ADA,
        opened_at_s=bench.clock() if opened_at_s is None else opened_at_s,
        turns=turns,
        room=ROOM,
        ended=ended,
    )


async def transcripts(bench: CallsBench) -> dict[str, list[str]]:
    """What is stored of each call, oldest call first."""
    rows = await bench.journal.calls(limit=50)
    return {
        row.call.key: [turn.text for turn in await bench.journal.turns(row.call.key)]
        for row in reversed(rows)
    }


async def first(ear: Ear) -> MemoryView:
    """The first memory that a worker gets."""
    with anyio.fail_after(5.0):
        while not ear.views:  # noqa: ASYNC110 - virtual time
            await anyio.sleep(0.01)
    return ear.views[0][0]


def test_the_first_prompt_has_every_acked_turn_and_needs_no_letta() -> None:
    """With Letta hanging, the first memory of the next job holds the call so far, and says so."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "my name is Ada", "hello Ada", "I live in <Lyon>")
        await anyio.sleep(AFTER_S)
        bench.letta.delay_s = 10_000.0
        began_s = trio.current_time()
        _, ear = await opened(bench, "J2")
        view = await first(ear)
        assert trio.current_time() - began_s < 0.1
        assert view.continues
        assert "This call goes on" in view.text
        assert "The caller has been greeted." in view.text
        places = [view.text.index(t) for t in ("name is Ada", "hello Ada", "in &lt;Lyon&gt;")]
        assert places == sorted(places)
        assert "<said-recently>" not in view.text

    virtual(body)


def test_a_memory_that_is_at_hand_is_in_the_first_prompt_too() -> None:
    """Where the agent's memory is in the cache, the first memory of the next job holds both."""

    async def body(bench: CallsBench) -> None:
        bench.letta.values["agent-0"] = "Her name is Ada."
        _, ear = await opened(bench, "J0", room="RM_0")
        await ear.newest()
        await lost(bench, "I live in Lyon")
        await anyio.sleep(AFTER_S)
        bench.letta.delay_s = 10_000.0
        _, ear = await opened(bench, "J2")
        view = await first(ear)
        assert "Her name is Ada." in view.text
        assert "I live in Lyon" in view.text

    virtual(body)


def test_the_transcript_is_one_call() -> None:
    """Turns of both workers, with the same ids, are in one call, in order, and acked again once."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one", "two")
        await anyio.sleep(AFTER_S)
        live, _ = await opened(bench, "J2")
        await live.record([said(bench, live, 1, "three"), said(bench, live, 2, "four")])
        await live.record([said(bench, live, 2, "four")])
        await live.close("hung up")
        assert await transcripts(bench) == {"t/J1": ["one", "two", "three", "four"]}
        assert await bench.live_calls() == []
        claimed = await bench.journal.claim(9, now_s=bench.clock(), post_timeout_s=1.0)
        assert [batch.call.call_id for batch in claimed] == ["J1"]
        assert bench.telemetry.counts["call_recorded_elsewhere"] == 0

    virtual(body)


def test_the_successors_prompts_have_none_of_its_own_words_twice() -> None:
    """What the next job's worker said itself is in its own prompt, not in its memory."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "before")
        await anyio.sleep(AFTER_S)
        live, ear = await opened(bench, "J2")
        await ear.newest()
        await live.record([said(bench, live, 1, "of its own")])
        live.speech_started()
        await anyio.sleep(1.0)
        view, newest = ear.views[-1]
        assert newest
        assert view.continues
        assert "before" in view.text
        assert "of its own" not in view.text

    virtual(body)


@pytest.mark.parametrize("after_s", [GOES_ON_S - 2.0, GOES_ON_S + 2.0])
@pytest.mark.parametrize("orphan_s", [20.0, 120.0])
def test_it_goes_on_within_a_minute(after_s: float, orphan_s: float) -> None:
    """A call goes on for a minute after its worker was lost, also if it was closed before that."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        await anyio.sleep(after_s)
        live, ear = await opened(bench, "J2")
        await live.record([said(bench, live, 1, "two")])
        within = after_s < GOES_ON_S
        assert (await first(ear)).continues is within
        one_call, two_calls = {"t/J1": ["one", "two"]}, {"t/J1": ["one"], "t/J2": ["two"]}
        assert await transcripts(bench) == (one_call if within else two_calls)
        await anyio.sleep(300.0)
        assert [call.key for call in await bench.live_calls()] == ["t/J1" if within else "t/J2"]

    virtual(body, CallsBench(orphan_s=orphan_s))


@pytest.mark.parametrize(
    ("hints", "room"), [(BOB, ROOM), (CallerHints(), ROOM), (ADA, "RM_2"), (ADA, "")]
)
def test_nobody_else_gets_it(hints: CallerHints, room: str) -> None:
    """Another caller, another room, and a call without either, begins anew and hears nothing."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "my secret")
        await anyio.sleep(AFTER_S)
        live, ear = await opened(bench, "J2", hints, room=room)
        await live.record([said(bench, live, 1, "hello")])
        view = await ear.newest()
        assert not view.continues
        assert hints == ADA or "my secret" not in view.text
        assert await transcripts(bench) == {"t/J1": ["my secret"], "t/J2": ["hello"]}

    virtual(body)


def test_a_call_that_ended_does_not_go_on() -> None:
    """After a call was closed by its worker, the next job of its room is a new call."""

    async def body(bench: CallsBench) -> None:
        live, _ = await opened(bench, "J1")
        await live.record([said(bench, live, 1, "one")])
        await live.close("hung up")
        bench.calls.orphan(live.owner)
        _, ear = await opened(bench, "J2")
        assert not (await ear.newest()).continues

    virtual(body)


def test_without_an_acked_turn_the_caller_is_greeted() -> None:
    """A job that was lost before anything was heard of it has greeted nobody."""

    async def body(bench: CallsBench) -> None:
        await lost(bench)
        await anyio.sleep(AFTER_S)
        live, ear = await opened(bench, "J2")
        view = await ear.newest()
        assert (view.continues, view.text) == (False, "")
        await live.record([said(bench, live, 1, "hello")])
        assert await transcripts(bench) == {"t/J1": ["hello"]}

    virtual(body)


def test_a_successor_may_be_lost_as_well() -> None:
    """Each of several workers that die one after another goes on with the same call."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        for n in range(2, 5):
            await anyio.sleep(AFTER_S)
            live, ear = await opened(bench, f"J{n}")
            view = await first(ear)
            assert all(f"word of {m}" in view.text for m in range(2, n))
            await live.record([said(bench, live, 1, f"word of {n}")])
            bench.calls.orphan(live.owner)
        words = ["one", "word of 2", "word of 3", "word of 4"]
        assert await transcripts(bench) == {"t/J1": words}
        await anyio.sleep(300.0)
        assert await bench.live_calls() == []

    virtual(body)


def test_a_successor_that_loses_its_link_opens_its_call_again() -> None:
    """A successor's own worker comes back to the same call, after a restart of the sidecar too."""
    before = CallsBench()

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        await anyio.sleep(AFTER_S)
        live, _ = await opened(bench, "J2")
        await live.record([said(bench, live, 1, "two")])
        bench.calls.orphan(live.owner)
        again, ear = await opened(bench, "J2")
        await again.record([said(bench, again, 1, "two"), said(bench, again, 2, "three")])
        assert (await first(ear)).continues

    async def after(bench: CallsBench) -> None:
        again, _ = await opened(bench, "J2")
        await again.record([said(bench, again, 2, "three"), said(bench, again, 3, "four")])
        assert await transcripts(bench) == {"t/J1": ["one", "two", "three", "four"]}
        await again.close("hung up")
        assert await bench.live_calls() == []

    virtual(body, before)
    virtual(after, CallsBench(journal=before.journal.restarted()))


@pytest.mark.parametrize("ended", [False, True])
def test_last_words_of_a_dead_worker_join_the_call(ended: bool) -> None:
    """What a dead worker left in the spool is stored once, and leaves its successor's call open."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        await one.record([said(bench, one, 1, "one")])
        last = said(bench, one, 2, "last words")
        bench.calls.orphan(one.owner)
        await anyio.sleep(AFTER_S)
        two, _ = await opened(bench, "J2")
        await two.record([said(bench, two, 1, "two")])
        assert await restored(bench, "J1", [said(bench, one, 1, "one"), last], ended=ended)
        assert [call.key for call in await bench.live_calls()] == ["t/J1"]
        two.speech_started()
        await anyio.sleep(1.0)
        assert "last words" in two.memory.text
        assert await restored(bench, "J1", [last])
        await two.record([said(bench, two, 2, "three")])
        assert await transcripts(bench) == {"t/J1": ["one", "two", "last words", "three"]}
        await two.close("hung up")
        assert await bench.live_calls() == []

    virtual(body)


def test_a_spool_that_is_taken_up_first_ends_nothing() -> None:
    """A call whose dead worker's spool was stored goes on, unless the worker had ended it."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        bench.calls.orphan(one.owner)
        assert await restored(bench, "J1", [said(bench, one, 1, "one")])
        await anyio.sleep(AFTER_S)
        two, ear = await opened(bench, "J2")
        assert (await first(ear)).continues
        bench.calls.orphan(two.owner)
        assert await restored(bench, "J2", [said(bench, two, 1, "two")], ended=True)
        three, _ = await opened(bench, "J3")
        await three.record([said(bench, three, 1, "another call")])
        assert await transcripts(bench) == {"t/J1": ["one", "two"], "t/J3": ["another call"]}

    virtual(body)


def test_a_successor_that_the_sidecar_never_met_joins_the_call() -> None:
    """A whole job that is only in the spool goes on with the call that was lost before it."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        await anyio.sleep(AFTER_S)
        alone = Turn(call_key("t", "J2"), "item-1", 1, "caller", "two", bench.clock())
        assert await restored(bench, "J2", [alone], ended=True)
        assert await transcripts(bench) == {"t/J1": ["one", "two"]}
        assert await bench.live_calls() == []

    virtual(body)


def test_a_worker_that_is_not_known_to_be_lost_yet() -> None:
    """The next job is told that the call goes on, and is stored in it once the loss is noticed."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        await one.record([said(bench, one, 1, "one"), said(bench, one, 2, "two")])
        await anyio.sleep(AFTER_S)
        two, ear = await opened(bench, "J2")
        view = await first(ear)
        assert view.continues
        assert "one" in view.text
        await anyio.sleep(1.0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(two.record, [said(bench, two, 1, "three")])
            await anyio.sleep(30.0)
            assert await transcripts(bench) == {"t/J1": ["one", "two"]}
            bench.calls.orphan(one.owner)
        assert await transcripts(bench) == {"t/J1": ["one", "two", "three"]}
        await anyio.sleep(300.0)
        assert [call.key for call in await bench.live_calls()] == ["t/J1"]

    virtual(body)


def test_a_silent_successor_keeps_the_call_open() -> None:
    """Once the loss is noticed the call is the next job's, even if nobody speaks for minutes."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        await one.record([said(bench, one, 1, "one")])
        two, _ = await opened(bench, "J2")
        bench.calls.orphan(one.owner)
        await anyio.sleep(500.0)
        assert [call.key for call in await bench.live_calls()] == ["t/J1"]
        await two.record([said(bench, two, 1, "two")])
        assert await transcripts(bench) == {"t/J1": ["one", "two"]}

    virtual(body)


def test_a_worker_that_was_not_dead_comes_back() -> None:
    """A job that was taken for lost lives: it waits, loses nothing, and takes nothing away."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        await anyio.sleep(AFTER_S)
        two, _ = await opened(bench, "J2")
        await anyio.sleep(1.0)
        await two.record([said(bench, two, 1, "both heard")])
        one, _ = await opened(bench, "J1")
        await one.record([said(bench, one, 2, "both heard")])
        await anyio.sleep(20.0)
        await two.close("job ended", at_s=bench.clock())
        await anyio.sleep(1.0)
        await one.record([said(bench, one, 3, "after it")])
        assert await transcripts(bench) == {"t/J1": ["one", "both heard", "after it"]}
        await one.close("hung up", at_s=bench.clock())
        assert await bench.live_calls() == []
        assert await bench.journal.erase_caller(one.call.caller_key, now_s=bench.clock()) == 3

    virtual(body)


@pytest.mark.parametrize("speaks", [True, False])
def test_a_worker_that_comes_back_after_its_successor_died_has_its_call(speaks: bool) -> None:
    """A job whose successor is lost takes its call back, and ends it; the next one is new."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        await anyio.sleep(AFTER_S)
        two, _ = await opened(bench, "J2")
        await two.record([said(bench, two, 1, "two")])
        one, _ = await opened(bench, "J1")
        bench.calls.orphan(two.owner)
        await anyio.sleep(AFTER_S)
        if speaks:
            await one.record([said(bench, one, 2, "three")])
        await one.close("hung up", at_s=bench.clock())
        assert await bench.live_calls() == []
        three, ear = await opened(bench, "J3")
        assert not (await first(ear)).continues
        await three.record([said(bench, three, 1, "new")])
        words = ["one", "two", *(["three"] if speaks else [])]
        assert await transcripts(bench) == {"t/J1": words, "t/J3": ["new"]}

    virtual(body)


@pytest.mark.parametrize("other", ["dead", "alive"])
def test_the_same_words_again_are_stored_again(other: str) -> None:
    """What a caller repeats to the next job was said twice, however soon it is."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        hello = said(bench, one, 1, "Hello?")
        if other == "alive":
            await one.record([hello])
        bench.calls.orphan(one.owner)
        await anyio.sleep(2.0)
        two, _ = await opened(bench, "J2")
        await anyio.sleep(1.0)
        await two.record([said(bench, two, 1, "Hello?")])
        if other == "dead":  # its first words are only in its spool
            assert await restored(bench, "J1", [hello], opened_at_s=hello.at_s)
        assert await transcripts(bench) == {"t/J1": ["Hello?", "Hello?"]}

    virtual(body)


def test_a_further_job_that_stays_alone_has_a_call_of_its_own() -> None:
    """Once the call of its room was ended, a job's own words are not brought to it as earlier."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        await one.record([said(bench, one, 1, "of the first")])
        await anyio.sleep(AFTER_S)
        two, ear = await opened(bench, "J2")
        assert (await first(ear)).continues
        await one.close("job ended", at_s=bench.clock())
        await anyio.sleep(1.0)
        await two.record([said(bench, two, 1, "of its own")])
        two.speech_started()
        await anyio.sleep(1.0)
        view = ear.views[-1][0]
        assert not view.continues
        assert "of the first" in view.text
        assert "of its own" not in view.text
        assert "This call goes on" not in view.text

    virtual(body)


def slowed(bench: CallsBench) -> None:
    """Let each opening take the journal a second."""
    opens = bench.journal.open_call

    async def open_call(call: Call, *, continues: str = "", lost_s: float | None = None) -> Call:
        await anyio.sleep(1.0)
        return await opens(call, continues=continues, lost_s=lost_s)

    bench.journal.open_call = open_call


def test_a_refusal_while_the_call_is_being_stored_counts() -> None:
    """A caller who says no in that moment is stored no more, and the call is marked."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        await one.record([said(bench, one, 1, "one")])
        two, _ = await opened(bench, "J2")
        slowed(bench)
        bench.calls.orphan(one.owner)
        await anyio.sleep(2.2)
        await opened(bench, "J2", NO)
        await anyio.sleep(AFTER_S)
        await two.record([said(bench, two, 1, "after the no")])
        assert await transcripts(bench) == {"t/J1": ["one"]}
        (row,) = await bench.journal.calls(limit=9)
        assert row.call.consent == "no"

    virtual(body)


def test_a_refusal_while_a_new_call_is_being_stored_counts() -> None:
    """A new call whose caller says no before it is stored is stored with that."""

    async def body(bench: CallsBench) -> None:
        slowed(bench)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(opened, bench, "J1")
            await anyio.sleep(0.5)
            await bench.calls.live[0].refuse()
        (one,) = bench.calls.live
        await one.record([said(bench, one, 1, "after the no")])
        (row,) = await bench.journal.calls(limit=9)
        assert (row.call.consent, row.turns) == ("no", 0)

    virtual(body)


@pytest.mark.parametrize("how", ["closed", "lost"])
def test_a_job_that_is_gone_when_its_call_is_stored_leaves_none_open(how: str) -> None:
    """A call that was stored for a job which has left meanwhile is closed like any lost one."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        await one.record([said(bench, one, 1, "one")])
        two, _ = await opened(bench, "J2")
        slowed(bench)
        bench.calls.orphan(one.owner)
        await anyio.sleep(2.2)
        if how == "closed":
            await two.close("hung up", at_s=bench.clock())
        else:
            bench.calls.orphan(two.owner)
        await anyio.sleep(300.0)
        assert await bench.live_calls() == []

    virtual(body)


def test_the_end_of_a_dead_job_is_not_the_end_of_its_successor() -> None:
    """If the successor is lost as well, the call goes on, though the first job had ended it."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        late = Turn(call_key("t", "J1"), "item-2", 2, "agent", "late", bench.clock())
        await anyio.sleep(AFTER_S)
        two, _ = await opened(bench, "J2")
        await two.record([said(bench, two, 1, "two")])
        bench.calls.orphan(two.owner)
        assert await restored(bench, "J1", [late], ended=True)
        three, ear = await opened(bench, "J3")
        assert (await first(ear)).continues
        await three.record([said(bench, three, 1, "three")])
        assert await transcripts(bench) == {"t/J1": ["one", "two", "late", "three"]}

    virtual(body)


def test_a_no_in_one_job_of_a_room_is_a_no_in_all() -> None:
    """A caller who says no to a job that stores nothing is stored by no other job either."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        await one.record([said(bench, one, 1, "one")])
        left = said(bench, one, 3, "left")
        await anyio.sleep(AFTER_S)
        two, _ = await opened(bench, "J2")
        await opened(bench, "J2", NO)
        await one.record([said(bench, one, 2, "after the no")])
        bench.calls.orphan(one.owner)
        await two.record([said(bench, two, 1, "after it too")])
        assert await restored(bench, "J1", [left], opened_at_s=one.opened_at_s)
        assert await transcripts(bench) == {"t/J1": ["one"]}

    virtual(body)


def test_whose_caller_said_no_is_not_greeted_again() -> None:
    """The successor of a job of which nothing is stored hears that the call goes on."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one", hints=NO)
        await anyio.sleep(AFTER_S)
        _, ear = await opened(bench, "J2", NO)
        assert (await first(ear)).continues
        assert await transcripts(bench) == {}

    virtual(body)


def test_a_no_does_not_reach_back_to_an_earlier_call() -> None:
    """What a caller agreed to before is stored from the spool, though they say no by now."""

    async def body(bench: CallsBench) -> None:
        key, opened_at_s = call_key("t", "J0"), bench.clock()
        agreed = Turn(key, "item-1", 1, "caller", "agreed", bench.clock())
        await anyio.sleep(200.0)
        await opened(bench, "J1", NO)
        assert await restored(bench, "J0", [agreed], opened_at_s=opened_at_s, ended=True)
        assert await transcripts(bench) == {"t/J0": ["agreed"]}

    virtual(body)


def test_after_an_hour_without_a_sidecar_a_job_begins_anew() -> None:
    """A call is lost since its last word, not since the sidecar that finds it has started."""
    before = CallsBench()

    async def body(bench: CallsBench) -> None:
        live, _ = await opened(bench, "J1")
        await live.record([said(bench, live, 1, "one")])

    async def after(bench: CallsBench) -> None:
        two, ear = await opened(bench, "J2")
        assert not (await first(ear)).continues
        await two.record([said(bench, two, 1, "two")])
        assert await transcripts(bench) == {"t/J1": ["one"], "t/J2": ["two"]}

    virtual(body, before)
    start_s = 1_000.0 + 3_600.0
    journal = before.journal.restarted(clock=lambda: start_s + trio.current_time())
    virtual(after, CallsBench(journal=journal, start_s=start_s))


def test_a_call_that_could_not_be_stored_can_be_ended_beside_one_elsewhere() -> None:
    """A job that was opened while the journal failed is ended, whatever goes on elsewhere."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        await opened(here, "J1")
        opens = there.journal.open_call

        async def fail(*_: object, **__: object) -> Call:
            raise JournalError("away")

        there.journal.open_call = fail
        two, _ = await opened(there, "J2")
        there.journal.open_call = opens
        await two.close("hung up", at_s=there.clock())
        assert there.calls.live == ()
        assert [call.key for call in await here.live_calls()] == ["t/J1"]

    Fleet().run(body)


def test_a_job_that_finds_another_call_than_it_thought_holds_one_alone() -> None:
    """A lost call that was ended elsewhere is not kept open by the job that looked for it here."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        await lost(here, "one")
        await anyio.sleep(AFTER_S)
        two, _ = await opened(there, "J2")
        await two.close("hung up", at_s=there.clock())
        three, _ = await opened(there, "J3")
        four, _ = await opened(here, "J4")
        assert four.before == "t/J3"
        await four.close("job ended", at_s=here.clock())
        await three.close("hung up", at_s=there.clock())
        await lost(here, "one", "late")
        await anyio.sleep(300.0)
        assert await here.live_calls() == []

    Fleet().run(body)


def test_unacked_words_of_a_worker_that_comes_back_elsewhere_are_kept() -> None:
    """What its successor was not there to hear is stored, at whichever sidecar each of them is."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        one, _ = await opened(here, "J1")
        await one.record([said(here, one, 1, "one")])
        await anyio.sleep(1.0)
        unacked = said(here, one, 2, "unacked")
        here.calls.orphan(one.owner)
        await anyio.sleep(AFTER_S)
        two, _ = await opened(there, "J2")
        await anyio.sleep(1.0)
        await two.record([said(there, two, 1, "both heard")])
        one, _ = await opened(here, "J1")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.record, [unacked, said(here, one, 3, "both heard")])
            await anyio.sleep(5.0)
            await two.close("job ended", at_s=there.clock())
        assert await transcripts(here) == {"t/J1": ["one", "both heard", "unacked"]}
        await one.close("hung up", at_s=here.clock())
        assert await here.live_calls() == []

    Fleet().run(body)


def test_a_no_reaches_the_job_that_another_sidecar_has() -> None:
    """From the moment a caller says no to any job, no sidecar stores a word of the call."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        await lost(here, "one")
        await anyio.sleep(1.0)
        two, _ = await opened(there, "J2")
        await two.record([said(there, two, 1, "two")])
        await opened(here, "J1")
        await opened(here, "J1", NO)
        await two.record([said(there, two, 2, "after the no")])
        assert await transcripts(here) == {"t/J1": ["one", "two"]}
        assert not two.may_be_stored
        assert here.calls.journal_error == there.calls.journal_error == ""

    Fleet().run(body)


async def taken_for_gone(bench: CallsBench) -> None:
    """Let a sidecar's lease end."""
    name = bench.journal.replica
    await bench.journal.executor.write(
        lambda tx: tx.run("DELETE FROM replicas WHERE name = ?", name)
    )


@contextmanager
def not_looking(bench: CallsBench) -> Generator[None]:
    """Let a sidecar take over nothing meanwhile."""
    take_over = bench.journal.take_over

    async def nothing(**_: object) -> list[Call]:
        return []

    bench.journal.take_over = nothing
    yield
    bench.journal.take_over = take_over


async def both_hear(here: CallsBench, one: LiveCall, there: CallsBench, two: LiveCall) -> None:
    """Have two living jobs at two sidecars hear the same words."""
    for n in (3, 4):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.record, [said(here, one, n, f"both heard {n}")])
            tasks.start_soon(two.record, [said(there, two, n, f"both heard {n}")])
        await anyio.sleep(10.0)


def test_a_sidecar_that_was_not_gone_stores_nothing_twice() -> None:
    """If another job has the call by then, the one that was there first is the further call."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        one, _ = await opened(here, "J1")
        await one.record([said(here, one, 1, "one")])
        two, _ = await opened(there, "J2")
        with not_looking(here):
            await taken_for_gone(here)
            await anyio.sleep(5.0)
        assert two.call.key == "t/J1"
        here.journal.renamed()
        await anyio.sleep(5.0)
        await both_hear(here, one, there, two)
        assert await transcripts(here) == {"t/J1": ["one", "both heard 3", "both heard 4"]}

    Fleet().run(body)


def test_a_sidecar_that_was_not_gone_keeps_its_calls() -> None:
    """If it takes its calls again before anyone else, they were never lost."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        one, _ = await opened(here, "J1")
        await one.record([said(here, one, 1, "one")])
        with not_looking(there):
            await taken_for_gone(here)
            here.journal.renamed()
            await anyio.sleep(5.0)
        await anyio.sleep(5.0)
        two, _ = await opened(there, "J2")
        assert two.elsewhere
        await both_hear(here, one, there, two)
        assert await transcripts(here) == {"t/J1": ["one", "both heard 3", "both heard 4"]}

    Fleet().run(body)


def test_guidance_goes_on() -> None:
    """What the owner asked for in the call is in the next job's prompts as well."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        one.guide("offer the window")
        bench.calls.orphan(one.owner)
        two, _ = await opened(bench, "J2")
        assert two.guidance.pieces == ("offer the window",)
        three, ear = await opened(bench, "J3")
        two.guide("be brief")
        bench.calls.orphan(two.owner)
        assert three.guidance.pieces == ("offer the window", "be brief")
        assert ear.guidance[-1] == "be brief"

    virtual(body)


def test_guidance_goes_on_after_the_call_was_closed_as_lost() -> None:
    """Guidance is kept as long as the call may go on."""

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1")
        one.guide("offer the window")
        bench.calls.orphan(one.owner)
        await anyio.sleep(50.0)
        two, _ = await opened(bench, "J2")
        assert two.guidance.pieces == ("offer the window",)

    virtual(body, CallsBench(orphan_s=20.0))


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_a_refused_call_stays_refused(when: str) -> None:
    """If the caller said no, no worker of the call stores a word from then on."""
    no = CallerHints(phone=ADA.phone, consent="no")

    async def body(bench: CallsBench) -> None:
        one, _ = await opened(bench, "J1", no if when == "from the start" else ADA)
        await one.record([said(bench, one, 1, "one")])
        if when == "later":
            await opened(bench, "J1", no)
        bench.calls.orphan(one.owner)
        left = said(bench, one, 2, "left")
        await anyio.sleep(AFTER_S)
        two, _ = await opened(bench, "J2")
        await two.record([said(bench, two, 1, "two")])
        assert await restored(bench, "J1", [left])
        kept = {} if when == "from the start" else {"t/J1": ["one"]}
        assert await transcripts(bench) == kept

    virtual(body)


def test_a_caller_who_says_no_now_has_the_call_so_far() -> None:
    """A caller who does not agree any more is not greeted again; nothing more is stored."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        await anyio.sleep(AFTER_S)
        no = CallerHints(phone=ADA.phone, consent="no")
        two, ear = await opened(bench, "J2", no)
        assert (await first(ear)).continues
        await two.record([said(bench, two, 1, "two")])
        assert await transcripts(bench) == {"t/J1": ["one"]}

    virtual(body)


def test_the_page_shows_one_call() -> None:
    """A call that goes on is shown as one live call, and not among the past ones as well."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        await anyio.sleep(AFTER_S)
        two, _ = await opened(bench, "J2")
        await two.record([said(bench, two, 1, "two")])
        await opened(bench, "J1")  # it lives, and joins
        shown = await calls_view(bench.calls, bench.journal)
        assert [(one["call"], one["turns"]) for one in shown["live"]] == [("t/J1", 1)]
        assert shown["past"] == []

    virtual(body)


def test_a_drain_lets_it_go_on() -> None:
    """The next job of a call that was lost a moment ago is no new call for a sidecar that stops."""

    async def body(bench: CallsBench) -> None:
        await lost(bench, "one")
        bench.calls.draining = True
        _, ear = await opened(bench, "J2")
        assert (await first(ear)).continues

    virtual(body)


@dataclass
class Fleet:
    """Two sidecars on one journal: `here` is the first."""

    here: CallsBench = field(default_factory=CallsBench)

    def there(self) -> CallsBench:
        journal = SqlJournal(
            self.here.journal.executor,
            policy=POLICY,
            secret=b"",
            clock=self.here.clock,
            replica="there",
        )
        return CallsBench(journal=journal)  # type: ignore[arg-type]

    def run(self, test: Callable[[CallsBench, CallsBench], Awaitable[None]]) -> None:
        async def body(here: CallsBench) -> None:
            await here.journal.executor.write(lambda tx: enter(tx, "there", now_s=0.0))
            async with self.there().running() as there:
                await test(here, there)

        virtual(body, self.here)


def test_at_another_sidecar_it_goes_on() -> None:
    """A worker that reaches another sidecar of the journal goes on with the call there."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        await lost(here, "one")
        await anyio.sleep(AFTER_S)
        there.letta.delay_s = 10_000.0
        began_s = trio.current_time()
        live, ear = await opened(there, "J2")
        view = await first(ear)
        assert trio.current_time() - began_s < 0.1
        assert view.continues
        assert "one" in view.text
        await live.record([said(there, live, 1, "two")])
        await anyio.sleep(300.0)
        assert [call.key for call in await here.live_calls()] == ["t/J1"]
        await live.close("hung up")
        assert await transcripts(here) == {"t/J1": ["one", "two"]}
        assert await here.live_calls() == []

    Fleet().run(body)


def test_at_another_sidecar_a_loss_is_noticed_late() -> None:
    """Until the first sidecar notices the loss, the other one's call stores nothing, then all."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        one, _ = await opened(here, "J1")
        await one.record([said(here, one, 1, "one")])
        await anyio.sleep(AFTER_S)
        two, ear = await opened(there, "J2")
        view = await first(ear)
        assert view.continues
        assert "one" in view.text
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(two.record, [said(there, two, 1, "two")])
            await anyio.sleep(20.0)
            assert await transcripts(here) == {"t/J1": ["one"]}
            here.calls.orphan(one.owner)
        assert await transcripts(here) == {"t/J1": ["one", "two"]}
        assert there.calls.journal_error == ""

    Fleet().run(body)


def test_two_living_jobs_at_two_sidecars_store_each_word_once() -> None:
    """What the first job's sidecar has stored, the second one's drops; then it stores the rest."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        one, _ = await opened(here, "J1")
        two, _ = await opened(there, "J2")
        heard = said(there, two, 1, "both heard")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(two.record, [heard])
            await anyio.sleep(1.0)
            await one.record([said(here, one, 1, "both heard")])
        assert await transcripts(here) == {"t/J1": ["both heard"]}
        await anyio.sleep(1.0)
        await one.close("job ended", at_s=here.clock())
        await anyio.sleep(10.0)
        await two.record([said(there, two, 2, "after it")])
        assert await transcripts(here) == {"t/J1": ["both heard"], "t/J2": ["after it"]}

    Fleet().run(body)


def test_last_words_reach_a_call_that_goes_on_elsewhere() -> None:
    """A dead worker's spool is stored where it lies, and the call stays open where it goes on."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        one, _ = await opened(here, "J1")
        last = said(here, one, 1, "last words")
        here.calls.orphan(one.owner)
        await anyio.sleep(AFTER_S)
        two, _ = await opened(there, "J2")
        assert await restored(here, "J1", [last], ended=True)
        await two.record([said(there, two, 1, "two")])
        assert await transcripts(here) == {"t/J1": ["last words", "two"]}
        assert [call.key for call in await here.live_calls()] == ["t/J1"]

    Fleet().run(body)


@dataclass
class Job:
    """One worker's job in the room.

    Attributes:
        name: Of the job.
        bench: The sidecar that it reaches.
        call: Which call of the journal is its own, counted from 0.
        opened_at_s: Unix time.
        live: While it is on the line.
    """

    name: str
    bench: CallsBench
    call: int
    opened_at_s: float
    live: LiveCall | None = None


class Jobs:
    """One job after another in a room, each on the line until it dies or ends its call.

    Attributes:
        acked: What each call of the journal must have, in order: the ids of its jobs' words.
        spooled: Words that only the spool of a job has.
        words: How many were said.
    """

    def __init__(self, *benches: CallsBench) -> None:
        self.acked: list[list[str]] = []
        self.spooled: dict[str, list[Turn]] = {}
        self.words = 0
        self._benches = benches
        self._jobs: list[Job] = []
        self._on_the_line: Job | None = None
        self._unnoticed: list[Job] = []
        self._text = ""
        self._lost_s: dict[int, float] = {}
        """When each call was lost that was not ended."""

    async def take(self, step: str) -> None:
        """Let something happen, where it can."""
        await anyio.sleep(1.0)
        what, _, how = step.partition(" ")
        if what == "wait":
            await anyio.sleep(GOES_ON_S)
        elif what == "notice":
            self.notice()
        elif what == "restore":
            await self.restore(backwards=bool(how))
        elif what == "open" and self._on_the_line is None:
            await self._open(self._benches[bool(how)])
        elif what == "back":
            await self._come_back()
        elif self._on_the_line is not None:
            await self._at(self._on_the_line, what, again=bool(how))

    async def _at(self, job: Job, what: str, *, again: bool) -> None:
        assert job.live is not None
        key = job.live.key
        if what in {"close", "lose"} and not job.live.stored:
            await anyio.sleep(3.0)  # until the other sidecar has let it go
        if what == "say" and key not in self.spooled:
            turn = self._turn(job, again=again)
            await job.live.record([turn])
            self.acked[job.call].append(turn.item_id)
        elif what == "spool":
            self.spooled.setdefault(key, []).append(self._turn(job, again=again))
        elif what == "close" and key not in self.spooled:
            await job.live.close("hung up", at_s=job.bench.clock())
            self._lost_s.pop(job.call, None)
            self._on_the_line = None
        elif what == "lose":
            self._unnoticed.append(job)
            self._on_the_line = None

    def _turn(self, job: Job, *, again: bool) -> Turn:
        """Something new, or what was said last once more."""
        self.words += 1
        self._text = self._text if again and self.words > 1 else f"word {self.words}"
        key, now_s = call_key("t", job.name), job.bench.clock()
        return Turn(key, f"word-{self.words}", 0, "caller", self._text, now_s)

    async def _open(self, bench: CallsBench) -> None:
        """Open the next job's call; it was noticed by then that the one before is lost."""
        self.notice()
        now_s = bench.clock()
        recent = [(s, call) for call, s in self._lost_s.items() if now_s - s < GOES_ON_S]
        call = max(recent)[1] if recent else len(self.acked)
        if not recent:
            self.acked.append([])
        job = Job(f"J{len(self._jobs) + 1}", bench, call, now_s)
        self._jobs.append(job)
        view = await self._begin(job)
        assert view.continues or not self.acked[call] or not recent
        if view.continues:
            assert view.text.count("word ") >= len(self.acked[call])

    async def _come_back(self) -> None:
        """The first job of all was not dead: it brings what was not acked, and has its call again.

        If another is on the line, that one dies a moment later.
        """
        self.notice()
        beside = self._on_the_line
        if not self._jobs or (one := self._jobs[0]) is beside:
            return
        unacked = self.spooled.get(call_key("t", one.name), [])
        if len(self.spooled) > bool(unacked):
            return  # of the others' words it would have heard some
        await self._begin(one)
        assert one.live is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.live.record, unacked)
            if beside is not None:
                await anyio.sleep(2.0)
                self._unnoticed.append(beside)
                self.notice()
        self.spooled.clear()
        self.acked[one.call] += [turn.item_id for turn in unacked]
        await anyio.sleep(3.0)  # a silent one goes on then
        self._lost_s.pop(one.call, None)

    async def _begin(self, job: Job) -> MemoryView:
        job.live, ear = await opened(job.bench, job.name, opened_at_s=job.opened_at_s)
        self._on_the_line = job
        view = await first(ear)
        self._lost_s.pop(job.call, None)
        return view

    def notice(self) -> None:
        for job in self._unnoticed:
            assert job.live is not None
            job.bench.calls.orphan(job.live.owner)
            self._lost_s[job.call] = job.bench.clock()
        self._unnoticed.clear()

    async def restore(self, *, backwards: bool) -> None:
        """Take up the spools of the dead, whose losses were noticed."""
        bench = self._benches[backwards]
        spooled = list(self.spooled.items())
        for key, turns in reversed(spooled) if backwards else spooled:
            (job,) = [one for one in self._jobs if call_key("t", one.name) == key]
            if (
                job is not self._on_the_line
                and not self._unnoticed
                and await restored(bench, job.name, turns, opened_at_s=job.opened_at_s)
            ):
                del self.spooled[key]


STEPS = st.lists(
    st.sampled_from(
        [
            *("open", "open there", "say", "say again", "spool", "spool again", "lose", "notice"),
            *("restore", "restore backwards", "wait", "close", "back"),
        ]
    ),
    max_size=24,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
@example(["open", "say", "lose", "open", "say", "lose", "back", "say", "close", "open", "say"])
@example(["open", "say", "lose", "open", "say again"])
@example(["open", "spool", "lose", "open", "say again", "lose", "restore"])
@example(["open", "spool", "lose", "open there", "spool", "lose", "notice", "restore backwards"])
@example(["open", "say", "lose", "open there", "say", "lose", "back", "say", "close"])
@example(["open", "say", "spool", "lose", "open there", "say", "back", "say", "close"])
def test_however_workers_die_each_word_is_stored_once(steps: list[str]) -> None:
    """Whoever dies or comes back, each word is stored once, in order, and no call stays open."""

    async def body(here: CallsBench, there: CallsBench) -> None:
        jobs = Jobs(here, there)
        for step in [*steps, "lose", "notice"]:
            await jobs.take(step)
        await anyio.sleep(300.0)
        await jobs.take("restore")
        assert not jobs.spooled
        acked = {word for of_call in jobs.acked for word in of_call}
        rows = await here.journal.calls(limit=50)
        stored = [
            [turn.item_id.rpartition("/")[2] for turn in await here.journal.turns(row.call.key)]
            for row in reversed(rows)
        ]
        everything = [word for of_call in stored for word in of_call]
        assert len(set(everything)) == len(everything) == jobs.words
        in_order = [[word for word in of_call if word in acked] for of_call in stored]
        assert [one for one in in_order if one] == [one for one in jobs.acked if one]
        await anyio.sleep(400.0)
        assert await here.live_calls() == []

    Fleet().run(body)
