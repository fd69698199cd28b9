"""Calls of a caller who does not agree: memory is served, and nothing is kept."""

import json
from collections.abc import AsyncIterator

import anyio
import pytest

from sidecar.access.callers import IdentityRules
from sidecar.calls import CallPolicy, Calls, LiveCall, MemoryView
from sidecar.letta.identity import Identity
from sidecar.memory.snapshots import Snapshots
from sidecar.model import AgentRef, CallerHints, Consent, Turn, Utterance
from sidecar.telemetry import Telemetry
from sidecar.testing.fake_letta import FakeLetta
from sidecar.testing.memory_journal import MemoryJournal
from sidecar.wire.bounds import bounded_hints
from sidecar.wire.frames import (
    CallClose,
    CallOpen,
    Hints,
    TurnFrame,
    decode_from_worker,
    encode,
    hints_of,
)
from sidecar.worker.livekit.caller import hints_of_metadata
from sidecar.worker.unacked import Unacked
from tests.no_store import NoStore

pytestmark = [pytest.mark.unit, pytest.mark.anyio]


class Ear:
    def __init__(self) -> None:
        self.newest = anyio.Event()

    def on_memory(self, view: MemoryView, *, newest: bool) -> None:
        if newest:
            self.newest.set()

    def on_guidance(self, text: str) -> None:
        raise AssertionError(text)

    def on_say(self, text: str) -> None:
        raise AssertionError(text)

    def on_hang_up(self) -> None:
        raise AssertionError


class ConsentBench:
    def __init__(self, *, required: bool = False) -> None:
        self.events = Telemetry(strict=True)
        self.journal = MemoryJournal(clock=self.clock)
        letta = FakeLetta(clock=self.clock)
        self.ear = Ear()
        rules = IdentityRules(agent_id="agent-7")
        self.calls = Calls(
            self.journal,
            Snapshots(letta, NoStore(), emit=self.events.emit, clock=self.clock),
            Identity(letta, self.journal, rules=rules, emit=self.events.emit),
            rules=rules,
            policy=CallPolicy(consent_required=required, orphan_s=20.0),
            secret=b"s" * 32,
            emit=self.events.emit,
            clock=self.clock,
        )

    def clock(self) -> float:
        return 1_800_000_000.0

    async def opened(self, consent: Consent, call: str = "one") -> LiveCall:
        return await self.calls.open(
            "acme",
            call,
            channel="livekit",
            hints=CallerHints(caller="bob", consent=consent),
            opened_at_s=1.0,
            owner="acme/worker",
            listener=self.ear,
        )


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[ConsentBench]:
    bench = ConsentBench(required=getattr(request, "param", False))
    async with anyio.create_task_group() as tasks:
        await tasks.start(bench.calls.run)
        yield bench
        tasks.cancel_scope.cancel()


def turn(live: LiveCall, n: int = 1) -> Turn:
    return Turn(live.key, f"i{n}", n, "caller", "my secret", 2.0)


async def test_a_call_without_consent_leaves_nothing(bench: ConsentBench) -> None:
    """With consent "no" neither the call nor any turn of it reaches the journal."""
    live = await bench.opened("no")
    await live.record([turn(live)])
    await live.close("hung up")
    assert await bench.journal.calls(limit=5) == []
    assert await bench.journal.turns(live.key) == ()
    assert bench.events.counts["turns_not_kept"] == 1
    assert bench.events.counts["turn_recorded"] == 0


async def test_memory_serves_a_call_that_is_not_kept(bench: ConsentBench) -> None:
    """A caller who is not recorded is still remembered from earlier calls."""
    live = await bench.opened("no")
    with anyio.fail_after(5):
        await bench.ear.newest.wait()
    assert live.agent_id == "agent-7"


@pytest.mark.parametrize(
    ("bench", "consent", "stored"),
    [(False, "", 1), (False, "yes", 1), (True, "", 0), (True, "yes", 1), (True, "no", 0)],
    indirect=["bench"],
)
async def test_silence_is_consent_unless_it_is_required(
    bench: ConsentBench, consent: Consent, stored: int
) -> None:
    """Where consent is required, a call nobody asked about is not kept."""
    live = await bench.opened(consent)
    await live.record([turn(live)])
    assert len(await bench.journal.calls(limit=5)) == stored


async def test_consent_taken_back_holds_from_then_on(bench: ConsentBench) -> None:
    """A "no" in a later opening stops the record; a later "yes" does not start it again."""
    live = await bench.opened("yes")
    await live.record([turn(live)])
    for consent in ("no", "yes"):
        assert await bench.opened(consent) is live
        await live.record([turn(live, 2)])
    await live.close("hung up")
    assert len(await bench.journal.turns(live.key)) == 1
    assert await bench.journal.calls(limit=9, live=True) == []


async def test_consent_taken_back_outlives_its_worker_and_the_sidecar(bench: ConsentBench) -> None:
    """A stored "no" outlives worker and sidecar: neither a reopening nor a spool adds turns."""
    live = await bench.opened("yes")
    await live.record([turn(live)])
    await live.refuse()
    assert (await bench.journal.calls(limit=1))[0].call.consent == "no"
    bench.calls.orphan("acme/worker")
    again = await bench.opened("")
    await again.record([turn(live, 2)])
    await again.close("hung up")
    late = [Turn("acme/one", "i3", 3, "caller", "my secret", 2.0)]
    assert await bench.calls.restore(
        "acme",
        "one",
        channel="livekit",
        hints=CallerHints(caller="bob"),
        opened_at_s=1.0,
        turns=late,
    )
    assert len(await bench.journal.turns(live.key)) == 1


async def test_a_lost_call_without_consent_is_no_orphan(bench: ConsentBench) -> None:
    """When the worker of a call without consent dies, nothing is closed and nothing fails."""
    await bench.opened("no")
    bench.calls.orphan("acme/worker")
    assert bench.calls.live == ()
    await anyio.lowlevel.checkpoint()
    assert bench.events.counts["journal_failed"] == 0


async def test_a_spool_of_a_call_without_consent_is_not_taken_up(bench: ConsentBench) -> None:
    """A spool file of a call without consent counts as done, and nothing of it is stored."""
    done = await bench.calls.restore(
        "acme",
        "one",
        channel="livekit",
        hints=CallerHints(caller="bob", consent="no"),
        opened_at_s=1.0,
        turns=[Turn("acme/one", "i", 1, "caller", "my secret", 2.0)],
    )
    assert done
    assert await bench.journal.calls(limit=5) == []


async def test_a_new_caller_who_does_not_agree_gets_no_agent(bench: ConsentBench) -> None:
    """An agent is looked up for a caller who does not agree, but never made or stored."""
    letta = FakeLetta(clock=bench.clock)
    rules = IdentityRules()
    identity = Identity(letta, bench.journal, rules=rules, emit=bench.events.emit)
    ref = AgentRef("acme", caller_key="k")
    assert await identity.found_agent(ref) is None
    assert await letta.find_agents(()) == []
    made = await identity.agent_of(ref)
    bench.journal = MemoryJournal(clock=bench.clock)
    again = Identity(letta, bench.journal, rules=rules, emit=bench.events.emit)
    assert await again.found_agent(ref) == made
    assert await bench.journal.agent_of(ref) is None


def test_consent_goes_over_the_link() -> None:
    """A worker's consent hint arrives unchanged, and a missing one arrives as empty."""
    for consent in ("", "yes", "no"):
        hints = bounded_hints(Hints(caller="bob", consent=consent))
        frame = decode_from_worker(encode(CallOpen("one", "livekit", hints, 1.0)))
        assert isinstance(frame, CallOpen)
        assert hints_of(frame).consent == consent
    older = '{"type":"call.open","call":"c","channel":"livekit","hints":{},"opened_at_s":1}'
    frame = decode_from_worker(older)
    assert isinstance(frame, CallOpen)
    assert hints_of(frame).consent == ""


def test_a_worker_keeps_no_word_without_consent() -> None:
    """The worker's outbox, and so its spool, takes no turn of a call without consent."""
    unacked = Unacked("one", "livekit", opened_at_s=1.0, hints=Hints(consent="no"))
    assert (
        unacked.record(Utterance("i", "caller", "my secret"), at_s=2.0, now_s=0.0, room=True) == []
    )


@pytest.mark.parametrize("of_job", [True, False])
def test_a_worker_forgets_what_was_said_before_the_no(*, of_job: bool) -> None:
    """On a "no" of the caller or the job, a worker drops the turns recorded before it."""
    no, caller = Hints(consent="no"), Hints(caller="bob")
    meanwhile = no if of_job else Hints()
    unacked = Unacked("one", "livekit", opened_at_s=1.0, hints=None, meanwhile=meanwhile)
    for n, room in enumerate((True, False, False)):
        unacked.record(Utterance(f"i{n}", "caller", "my secret"), at_s=2.0, now_s=0.0, room=room)
        if n == 1:
            unacked.spooled(unacked.unspooled())
    unacked.identify(caller if of_job else no)
    assert unacked.count == unacked.bytes_in_memory == 0
    assert not any(isinstance(frame, TurnFrame) for frame in unacked.unspooled())
    unacked.close(at_s=3.0, reason="", now_s=0.0)
    frames: list[object] = []
    while frame := unacked.next_frame(now_s=0.0):
        frames.append(frame)
    assert [type(frame) for frame in frames] == [CallOpen, CallClose]
    assert isinstance(frames[0], CallOpen)
    assert frames[0].hints.consent == "no"


@pytest.mark.parametrize(
    ("said", "consent"),
    [
        *(("no", "no"), ("No", "no"), ("denied", "no"), ("maybe", "no"), (False, "no"), (0, "no")),
        *(("yes", "yes"), (" Yes ", "yes"), ("true", "yes"), (True, "yes")),
        *(("", ""), (None, "")),
    ],
)
def test_a_jobs_metadata_names_consent(said: object, consent: str) -> None:
    """A consent value in a job's metadata that is not plainly a yes is read as "no"."""
    metadata = json.dumps({"caller": "bob", "consent": said})
    assert hints_of_metadata(metadata).consent == consent
