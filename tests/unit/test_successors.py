"""A call that outlives its worker: another job of its room goes on with it, in virtual time."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.calls import LiveCall, MemoryView
from sidecar.journal.policy import GOES_ON_S
from sidecar.journal.sql import SqlJournal
from sidecar.journal.sql.replicas import enter
from sidecar.model import CallerHints, Turn, call_key
from sidecar.testing.memory_journal import POLICY
from tests.unit.test_calls import ADA, BOB, CallsBench, Ear, virtual

pytestmark = pytest.mark.unit

ROOM = "RM_1"
AFTER_S = 3.0
"""How much later the next job is opened."""


async def opened(
    bench: CallsBench, name: str, hints: CallerHints = ADA, *, room: str = ROOM
) -> tuple[LiveCall, Ear]:
    """Open a job's call; its worker is named after it."""
    ear = Ear()
    live = await bench.calls.open(
        "t",
        name,
        channel="livekit",
        hints=hints,
        opened_at_s=bench.clock(),
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
    bench: CallsBench, name: str, turns: Sequence[Turn], *, ended: bool = False
) -> bool:
    """Take up what the dead worker of a job has left."""
    return await bench.calls.restore(
        "t",
        name,
        channel="livekit",
        hints=ADA,
        opened_at_s=bench.clock(),
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

    virtual(body)


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


class Jobs:
    """One job after another in a room, each on the line until it dies or ends its call.

    Attributes:
        acked: What each call of the journal must have, in order: the words of its jobs.
        spooled: Words that only the spool of a job has.
    """

    def __init__(self, bench: CallsBench) -> None:
        self.bench = bench
        self.acked: list[list[str]] = []
        self.spooled: dict[str, list[Turn]] = {}
        self._live: LiveCall | None = None
        self._unnoticed: list[str] = []
        self._opened = 0
        self.words = 0
        self._goes_on_until_s = 0.0

    async def take(self, step: str) -> None:
        """Let something happen, where it can."""
        await anyio.sleep(1.0)
        if step == "wait":
            await anyio.sleep(GOES_ON_S)
        elif step == "notice":
            self.notice()
        elif step == "restore":
            await self.restore()
        elif step == "open" and self._live is None:
            await self._open()
        elif self._live is not None:
            await self._at(self._live, step)

    async def _at(self, live: LiveCall, step: str) -> None:
        if step == "say" and live.key not in self.spooled:
            await live.record([self._turn(live)])
            self.acked[-1].append(f"word {self.words}")
        elif step == "spool":
            self.spooled.setdefault(live.key, []).append(self._turn(live))
        elif step == "close" and live.key not in self.spooled:
            await live.close("hung up", at_s=self.bench.clock())
            self._live, self._goes_on_until_s = None, 0.0
        elif step == "lose":
            self._unnoticed.append(live.owner)
            self._live = None

    def _turn(self, live: LiveCall) -> Turn:
        self.words += 1
        return said(self.bench, live, self.words, f"word {self.words}")

    async def _open(self) -> None:
        """Open the next job's call; it was noticed by then that the one before is lost."""
        self.notice()
        goes_on = self.bench.clock() < self._goes_on_until_s
        if not goes_on:
            self.acked.append([])
        self._opened += 1
        self._live, ear = await opened(self.bench, f"J{self._opened}")
        view = await first(ear)
        assert view.continues or not self.acked[-1] or not goes_on
        if view.continues:
            assert all(word in view.text for word in self.acked[-1])

    def notice(self) -> None:
        for owner in self._unnoticed:
            self.bench.calls.orphan(owner)
            self._goes_on_until_s = self.bench.clock() + GOES_ON_S
        self._unnoticed.clear()

    async def restore(self) -> None:
        """Take up the spools of the dead, whose losses were noticed."""
        for key, turns in list(self.spooled.items()):
            dead = self._live is None or self._live.key != key
            if dead and not self._unnoticed and await restored(self.bench, key[2:], turns):
                del self.spooled[key]


STEPS = st.lists(
    st.sampled_from(["open", "say", "spool", "lose", "notice", "restore", "wait", "close"]),
    max_size=24,
)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_however_workers_die_each_word_is_stored_once(steps: list[str]) -> None:
    """Whenever workers of a room die, each word is stored once, and what was acked is in order."""

    async def body(bench: CallsBench) -> None:
        jobs = Jobs(bench)
        for step in [*steps, "lose", "notice", "restore"]:
            await jobs.take(step)
        assert not jobs.spooled
        acked = {word for of_call in jobs.acked for word in of_call}
        stored = list((await transcripts(bench)).values())
        everything = [word for of_call in stored for word in of_call]
        assert len(set(everything)) == len(everything) == jobs.words
        in_order = [[word for word in of_call if word in acked] for of_call in stored]
        assert [one for one in in_order if one] == [one for one in jobs.acked if one]
        await anyio.sleep(400.0)
        assert await bench.live_calls() == []

    virtual(body)
