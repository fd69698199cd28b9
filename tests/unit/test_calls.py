"""The live calls, in virtual time, on fakes."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
import trio.testing

from sidecar.access.callers import IdentityRules
from sidecar.calls import CallPolicy, Calls, LiveCall, MemoryView
from sidecar.errors import CallError, JournalFull, LettaUnavailable, TakenOver
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sql import SqlJournal
from sidecar.journal.sql.replicas import enter
from sidecar.letta.identity import Identity
from sidecar.letta.port import AgentSpec, FoundAgent
from sidecar.memory.snapshots import Snapshots
from sidecar.model import AgentRef, Block, Call, CallerHints, Command, Snapshot, Turn
from sidecar.prompt_wait import Waits
from sidecar.telemetry import Telemetry
from sidecar.testing.memory_journal import POLICY, MemoryJournal

pytestmark = pytest.mark.unit

ADA = CallerHints(phone="+12025550100")
BOB = CallerHints(phone="+12025550101")
WAITS = Waits()


class Letta:
    """Agents with one block each; a test sets its value, the delay and whether requests fail."""

    def __init__(self) -> None:
        self.agents: dict[str, FoundAgent] = {}
        self.values: dict[str, str] = {}
        self.delay_s = 0.0
        self.down = False

    async def _answer(self) -> None:
        await anyio.sleep(self.delay_s)
        if self.down:
            raise LettaUnavailable("down")

    async def read_blocks(self, agent_id: str) -> tuple[Block, ...]:
        await self._answer()
        return (Block("human", self.values.get(agent_id, "")),)

    async def find_agents(self, tags: Sequence[str]) -> Sequence[FoundAgent]:
        await self._answer()
        return [a for a in self.agents.values() if set(tags) <= set(a.tags)]

    async def create_agent(self, spec: AgentSpec) -> str:
        await self._answer()
        agent_id = f"agent-{len(self.agents)}"
        self.agents[agent_id] = FoundAgent(agent_id, spec.name, tuple(spec.tags), 0.0)
        return agent_id

    async def delete_agent(self, agent_id: str) -> None:
        self.agents.pop(agent_id, None)


class Store:
    def __init__(self) -> None:
        self.copies: dict[str, Snapshot] = {}

    async def load(self, agent_id: str) -> Snapshot | None:
        return self.copies.get(agent_id)

    async def save(self, snapshot: Snapshot) -> None:
        self.copies[snapshot.agent_id] = snapshot

    async def forget(self, agent_id: str) -> None:
        self.copies.pop(agent_id, None)

    async def agent_ids(self) -> set[str]:
        return set(self.copies)


class Ear:
    """A channel's listener: remembers what it heard."""

    def __init__(self) -> None:
        self.views: list[tuple[MemoryView, bool]] = []
        self.guidance: list[str] = []
        self.asked: list[tuple[Command, str]] = []
        self._heard = anyio.Event()

    def on_memory(self, view: MemoryView, *, newest: bool) -> None:
        self.views.append((view, newest))
        self._heard.set()
        self._heard = anyio.Event()

    def on_guidance(self, text: str) -> None:
        self.guidance.append(text)
        self.asked.append(("guide", text))

    def on_say(self, text: str) -> None:
        self.asked.append(("say", text))

    def on_hang_up(self) -> None:
        self.asked.append(("hang-up", ""))

    async def newest(self) -> MemoryView:
        while not any(newest for _, newest in self.views):
            await self._heard.wait()
        return self.views[-1][0]


class CallsBench:
    def __init__(
        self,
        *,
        journal: MemoryJournal | None = None,
        rules: IdentityRules | None = None,
        orphan_s: float = 120.0,
        start_s: float = 1_000.0,
    ) -> None:
        self.letta = Letta()
        self.store = Store()
        self.telemetry = Telemetry(strict=True)
        self.clock: Callable[[], float] = lambda: start_s + trio.current_time()
        self.journal = journal or MemoryJournal(
            policy=PostPolicy(max_turns=20, max_age_s=60.0), clock=self.clock
        )
        self.snapshots = Snapshots(
            self.letta, self.store, emit=self.telemetry.emit, clock=self.clock
        )
        rules = rules or IdentityRules()
        self.calls = Calls(
            self.journal,
            self.snapshots,
            Identity(
                self.letta,  # type: ignore[arg-type]
                self.journal,
                rules=rules,
                emit=self.telemetry.emit,
            ),
            rules=rules,
            policy=CallPolicy(orphan_s=orphan_s),
            secret=b"0" * 32,
            emit=self.telemetry.emit,
            clock=self.clock,
        )

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["CallsBench"]:
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.snapshots.run)
            await tasks.start(self.calls.run)
            yield self
            await trio.testing.wait_all_tasks_blocked()  # no read begins while its part ends
            tasks.cancel_scope.cancel()

    async def live_calls(self) -> list[Call]:
        """The calls that the journal has as live."""
        return [row.call for row in await self.journal.calls(limit=-1, live=True)]

    async def open(
        self, call_id: str, hints: CallerHints = ADA, *, owner: str = "w1", tenant: str = "t"
    ) -> tuple[LiveCall, Ear]:
        ear = Ear()
        live = await self.calls.open(
            tenant,
            call_id,
            channel="livekit",
            hints=hints,
            opened_at_s=self.clock(),
            owner=owner,
            listener=ear,
        )
        return live, ear

    async def restore(
        self, call_id: str, turns: Sequence[Turn], *, hints: CallerHints = ADA, room: str = ""
    ) -> bool:
        """Store what a dead worker left of a call in its spool."""
        return await self.calls.restore(
            "t",
            call_id,
            channel="livekit",
            hints=hints,
            opened_at_s=1.0,
            turns=turns,
            room=room,
        )


def virtual(test: Callable[[CallsBench], Awaitable[None]], bench: CallsBench | None = None) -> None:
    async def main() -> None:
        async with (bench or CallsBench()).running() as running:
            await test(running)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def turn(live: LiveCall, item: str, text: str, *, seq: int = 0) -> Turn:
    return Turn(live.key, item, seq, "caller", text, 1.0)


def test_opening_a_call_never_waits_for_letta() -> None:
    """With Letta hanging, a call opens and its turns are recorded at once."""

    async def body(bench: CallsBench) -> None:
        bench.letta.delay_s = 10_000.0
        began = trio.current_time()
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "hello")])
        await live.close("bye")
        assert trio.current_time() == began
        assert [t.text for t in await bench.journal.turns(live.key)] == ["hello"]

    virtual(body)


def test_a_new_caller_gets_an_agent_and_what_it_learns_comes_back() -> None:
    """A first call creates an agent and has no memory; the next call has what it learnt."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        assert (await ear.newest()).text == ""
        await live.close("bye")
        bench.letta.values["agent-0"] = "Her name is Ada."
        again, ear = await bench.open("c2")
        view = await ear.newest()
        assert "Her name is Ada." in view.text
        assert view.served == "fresh"
        assert list(bench.letta.agents) == ["agent-0"]
        assert again.memory == view

    virtual(body)


def test_no_caller_sees_another_callers_memory_or_words() -> None:
    """Two callers, or one number in two tenants, share neither memory nor words."""

    async def body(bench: CallsBench) -> None:
        ears: dict[tuple[str, str], LiveCall] = {}
        for tenant, hints in (("t", ADA), ("t", BOB), ("u", ADA)):
            live, ear = await bench.open("c1" + hints.phone, hints, tenant=tenant)
            await ear.newest()
            await live.record([turn(live, "i", f"words of {tenant} {hints.phone}")])
            assert live.agent_id is not None
            bench.letta.values[live.agent_id] = f"secret of {tenant} {hints.phone}"
            ears[tenant, hints.phone] = live
        assert len(bench.letta.agents) == 3
        for tenant, hints in (("t", ADA), ("t", BOB), ("u", ADA)):
            _, ear = await bench.open("c2" + hints.phone, hints, tenant=tenant)
            text = (await ear.newest()).text
            for other in ears:
                mine = other == (tenant, hints.phone)
                assert (f"secret of {other[0]} {other[1]}" in text) == mine
                assert (f"words of {other[0]} {other[1]}" in text) == mine

    virtual(body)


def test_who_calls_again_at_once_is_remembered_before_letta_knows() -> None:
    """Turns of the last call that Letta has not digested are in the next call's memory."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        await live.record([turn(live, "i1", "my cat is called Tom")])
        await live.close("bye")
        _, ear = await bench.open("c2")
        assert "my cat is called Tom" in (await ear.newest()).text
        [batch] = await bench.journal.claim(10, now_s=bench.clock(), post_timeout_s=1.0)
        bench.letta.values["agent-0"] = "Has a cat, Tom."
        await bench.journal.settle(batch, now_s=bench.clock())
        await anyio.sleep(0.1)
        await bench.calls.digested(AgentRef.of_lane(batch.lane), batch)
        text = ear.views[-1][0].text
        assert "Has a cat, Tom." in text
        assert "my cat is called Tom" not in text

    virtual(body)


@pytest.mark.parametrize("speaks_at_once", [False, True])
def test_the_first_prompt_of_a_call_has_what_was_said_in_the_last_one(
    *, speaks_at_once: bool
) -> None:
    """A prompt right at the opening waits for the journal's turns, but not for Letta."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        await live.record([turn(live, "i1", "my dog is called Rex")])
        await live.close("bye")
        bench.letta.delay_s = 10_000.0
        again, _ = await bench.open("c2")
        if speaks_at_once:
            again.speech_started()
        assert await again.ready(WAITS) <= WAITS.memory_s
        assert "my dog is called Rex" in again.memory.text

    virtual(body)


def test_a_prompt_waits_no_longer_than_it_may() -> None:
    """The first prompt waits for the cold-start budget from the opening; later ones don't wait."""

    async def body(bench: CallsBench) -> None:
        bench.letta.delay_s = 10_000.0
        live, _ = await bench.open("c1")
        await anyio.sleep(0.3)
        assert await live.ready(WAITS) == pytest.approx(WAITS.cold_start_s - 0.3)
        assert await live.ready(WAITS) == 0.0

    virtual(body)


def test_a_read_under_way_is_waited_for_from_its_start() -> None:
    """A prompt waits for a slow read for at most `memory_s` from the start of the speech."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        bench.letta.delay_s = 1.0
        live.speech_started()
        await anyio.sleep(0.1)
        assert await live.ready(WAITS) == pytest.approx(WAITS.memory_s - 0.1)
        await anyio.sleep(2.0)
        bench.letta.delay_s = 0.01
        live.speech_started()
        assert await live.ready(WAITS) == pytest.approx(0.01)

    virtual(body)


@pytest.mark.parametrize("letta_s", [0.3, 10_000.0])
@pytest.mark.parametrize("confirmed", [True, False])
def test_a_read_that_only_renews_the_memory_is_not_waited_for(
    letta_s: float, *, confirmed: bool
) -> None:
    """A first prompt may wait `memory_s` for an unconfirmed copy to be read; later ones don't."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        bench.letta.values["agent-0"] = "a fact"
        live.speech_started()
        await anyio.sleep(1.0)
        await live.close("bye")
        if not confirmed:
            bench.letta.delay_s = letta_s
        again, _ = await bench.open("c2")
        await anyio.sleep(0.01)
        first_s = 0.0 if confirmed else WAITS.memory_s - 0.01
        assert await again.ready(WAITS) == pytest.approx(first_s)
        bench.letta.delay_s = letta_s
        await anyio.sleep(1.0)
        for _ in range(3):
            again.speech_started()
            await anyio.sleep(0.05)
            assert await again.ready(WAITS) == 0.0
            assert "a fact" in again.memory.text
            await anyio.sleep(2.0)

    virtual(body)


def test_while_letta_is_down_calls_go_on_with_the_last_good_copy() -> None:
    """A call during an outage has the last good copy, and the new memory once Letta is back."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        bench.letta.values["agent-0"] = "old fact"
        live.speech_started()
        await anyio.sleep(1.0)
        bench.letta.down = True
        _, ear = await bench.open("c2")
        view = await ear.newest()
        assert "old fact" in view.text
        bench.letta.down = False
        bench.letta.values["agent-0"] = "new fact"
        await anyio.sleep(30.0)
        assert "new fact" in ear.views[-1][0].text

    virtual(body)


def test_a_new_caller_in_an_outage_is_known_when_letta_is_back() -> None:
    """A new caller in an outage has no memory at first, and gets it once Letta is back."""

    async def body(bench: CallsBench) -> None:
        bench.letta.down = True
        live, ear = await bench.open("c1")
        assert (await ear.newest()).served == "none"
        await live.record([turn(live, "i1", "hello")])
        bench.letta.down = False
        await anyio.sleep(60.0)
        assert live.agent_id == "agent-0"
        assert ear.views[-1][0].served in {"fresh", "stale"}

    virtual(body)


def test_speech_starts_a_read_and_its_end_is_told() -> None:
    """Each time the caller begins to speak, one `settled` memory follows, changed or not."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        ear.views.clear()
        bench.letta.delay_s = 0.3
        live.speech_started()
        await anyio.sleep(0.2)
        assert ear.views == []
        await anyio.sleep(0.2)
        assert [settled for _, settled in ear.views] == [True]

    virtual(body)


def test_a_call_belongs_to_one_worker_at_a_time() -> None:
    """A second worker is refused; the same worker on a new connection takes its call up again."""

    async def body(bench: CallsBench) -> None:
        first, _ = await bench.open("c1", owner="w1")
        with pytest.raises(CallError) as refused:
            await bench.open("c1", owner="w2")
        assert refused.value.code == "call_claimed"
        again, _ = await bench.open("c1", owner="w1")
        assert again is first

    virtual(body)


def test_a_lost_worker_may_come_back_and_otherwise_its_call_is_closed() -> None:
    """A lost call can be taken up again within two minutes, and is closed after that."""

    async def body(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "hello")])
        bench.calls.orphan("w1")
        await anyio.sleep(100.0)
        live, _ = await bench.open("c1")
        await anyio.sleep(200.0)
        assert len(await bench.live_calls()) == 1
        bench.calls.orphan("w1")
        await anyio.sleep(130.0)
        assert await bench.live_calls() == []
        assert bench.calls.live == ()

    virtual(body)


@pytest.mark.parametrize("leaves", ["a link is lost", "a page is closed"])
def test_guidance_stays_with_a_call_that_is_taken_up_again(leaves: str) -> None:
    """Guidance stays with a call that is taken up again, and reaches no other call."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        live.guide("Offer a call back.")
        live.guide("Offer a call back.")
        assert ear.guidance == ["Offer a call back."]
        if leaves == "a link is lost":
            bench.calls.orphan("w1")
        else:
            await live.close("page closed")
        await anyio.sleep(100.0)
        again, _ = await bench.open("c1")
        again.guide("Be brief.")
        assert again.guidance.pieces == ("Offer a call back.", "Be brief.")
        other, _ = await bench.open("c2")
        assert other.guidance.text == ""
        await again.close("bye")
        await anyio.sleep(130.0)
        assert (await bench.open("c1"))[0].guidance.text == ""
        assert bench.telemetry.counts["guidance_taken"] == 3

    virtual(body)


def test_calls_an_earlier_process_left_open_are_closed_in_the_end() -> None:
    """After a restart, a call whose worker never returns is closed in the end."""
    before = CallsBench()

    async def first(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "hello")])

    async def second(bench: CallsBench) -> None:
        assert len(await bench.live_calls()) == 1
        await anyio.sleep(130.0)
        assert await bench.live_calls() == []

    virtual(first, before)
    after = CallsBench(journal=before.journal.restarted())
    virtual(second, after)


@pytest.mark.parametrize("how", ["taken up", "spooled"])
def test_a_call_ends_with_the_agent_it_began_with(how: str) -> None:
    """A call keeps its agent and all its words when settings give its caller another agent."""
    before = CallsBench()

    async def first(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "hello")])

    async def second(bench: CallsBench) -> None:
        if how == "taken up":
            live, ear = await bench.open("c1")
            await ear.newest()
            await live.record([turn(live, "i2", "again")])
            await live.close("bye")
            assert live.agent_id == "agent-0"
        else:
            assert await bench.restore("c1", [Turn("t/c1", "i2", 0, "caller", "again", 1.0)])
        assert [t.text for t in await bench.journal.turns("t/c1")] == ["hello", "again"]
        (row,) = await bench.journal.calls(limit=2)
        assert row.call.ref.agent_id is None
        assert row.call.closed_at_s is not None

    virtual(first, before)
    rules = IdentityRules(agent_map={ADA.phone: "agent-7"})
    virtual(second, CallsBench(journal=before.journal.restarted(), rules=rules))


def test_an_id_used_again_brings_no_other_callers_words() -> None:
    """With one agent for all, a call id that comes again with another caller is refused."""

    async def body(bench: CallsBench) -> None:
        live, _ = await bench.open("c0")
        await live.record([turn(live, "i1", "my secret")])
        await bench.open("c1")
        for hints in (BOB, CallerHints()):
            with pytest.raises(CallError) as refused:
                await bench.open("c1", hints)
            assert refused.value.code == "call_claimed"
        bench.calls.orphan("w1")
        for hints in (BOB, CallerHints()):
            with pytest.raises(CallError) as refused:
                await bench.open("c1", hints)
            assert refused.value.code == "call_claimed"
        _, ear = await bench.open("c1")
        assert "my secret" in (await ear.newest()).text

    virtual(body, CallsBench(rules=IdentityRules(agent_id="agent-0")))


def test_a_call_taken_up_while_others_are_closed_stays_open() -> None:
    """The sweep of lost calls closes none that was taken up, or lost again, during the sweep."""

    async def body(bench: CallsBench) -> None:
        for n in range(3):
            await bench.open(f"c{n}")
        bench.calls.orphan("w1")
        close_call = bench.journal.close_call

        async def slow(call: str, *, epoch: int, at_s: float, ended: bool) -> None:
            await close_call(call, epoch=epoch, at_s=at_s, ended=ended)
            await anyio.sleep(1.0)

        bench.journal.close_call = slow  # type: ignore[method-assign]
        with anyio.fail_after(200):
            while len(await bench.live_calls()) == 3:  # noqa: ASYNC110
                await anyio.sleep(0.1)
        await bench.open("c1")
        await bench.open("c2")
        bench.calls.orphan("w1")
        await bench.open("c1")
        await anyio.sleep(60.0)
        assert {call.call_id for call in await bench.live_calls()} == {"c1", "c2"}
        await anyio.sleep(70.0)
        assert {call.call_id for call in await bench.live_calls()} == {"c1"}

    virtual(body)


def test_a_call_taken_up_while_its_spool_is_stored_stays_open() -> None:
    """Turns from the spool of a call that is live again are stored without ending it."""

    async def body(bench: CallsBench) -> None:
        append = bench.journal.append

        async def slow(turns: Sequence[Turn], *, left: bool = False) -> None:
            await anyio.sleep(1.0)
            await append(turns, left=left)

        bench.journal.append = slow
        spooled = [Turn("t/c1", "i1", 0, "caller", "hello", 1.0)]

        async def intake() -> None:
            assert await bench.restore("c1", spooled)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(intake)
            await anyio.sleep(0.5)
            await bench.open("c1")
        assert [call.call_id for call in await bench.live_calls()] == ["c1"]
        assert await bench.journal.turns("t/c1") == tuple(spooled)

    virtual(body)


def test_a_lost_call_that_another_caller_asks_for_is_closed_all_the_same() -> None:
    """A lost call that another caller is refused is still closed in the end."""

    async def body(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "hello")])
        bench.calls.orphan("w1")
        with pytest.raises(CallError):
            await bench.open("c1", BOB)
        await anyio.sleep(130.0)
        assert await bench.live_calls() == []

    virtual(body)


def test_a_lost_call_that_was_erased_is_no_fault_of_the_journal() -> None:
    """A lost call that retention erased before the sweep is no failure of the journal."""
    before = CallsBench()

    async def first(bench: CallsBench) -> None:
        live, _ = await bench.open("c1", CallerHints())
        await live.record([turn(live, "i1", "hello")])

    async def second(bench: CallsBench) -> None:
        await bench.journal.erase_settled(before_s=1e12)
        assert await bench.journal.calls(limit=1) == []
        await anyio.sleep(300.0)
        assert bench.calls.journal_error == ""
        assert bench.telemetry.counts["journal_failed"] == 0

    virtual(first, before)
    virtual(second, CallsBench(journal=before.journal.restarted()))


def test_a_lost_call_that_could_not_be_stored_again_is_closed_in_the_end() -> None:
    """A call taken up after a restart, while the journal failed, and lost again is closed."""
    before = CallsBench()

    async def first(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "hello")])

    async def second(bench: CallsBench) -> None:
        open_call = bench.journal.open_call

        async def refuse(_call: Call, *, continues: str) -> Call:  # noqa: ARG001 - as the other
            raise JournalFull("no room")

        bench.journal.open_call = refuse  # type: ignore[method-assign]
        await bench.open("c1")
        bench.calls.orphan("w1")
        bench.journal.open_call = open_call
        await anyio.sleep(300.0)
        assert await bench.live_calls() == []

    virtual(first, before)
    virtual(second, CallsBench(journal=before.journal.restarted()))


def test_a_call_that_another_replica_has_opened_is_left_open() -> None:
    """A call that went on at another sidecar is closed where its channel ends it, not when lost."""

    async def body(bench: CallsBench) -> None:
        other = SqlJournal(
            bench.journal.executor, policy=POLICY, secret=b"", clock=bench.clock, replica="other"
        )
        await bench.journal.executor.write(lambda tx: enter(tx, "other", now_s=0.0))
        for name in ("closed", "lost"):
            live, _ = await bench.open(name)
            await live.record([turn(live, f"{name}-1", "hello")])
            await other.open_call(live.call)
            if name == "closed":
                await live.close("bye")
        bench.calls.orphan("w1")
        await anyio.sleep(300.0)
        assert {call.call_id for call in await bench.live_calls()} == {"lost"}
        assert not bench.calls.live
        assert bench.calls.journal_error == ""

    virtual(body)


def test_a_call_erased_under_its_holder_is_stored_anew() -> None:
    """A turn whose call is gone from the journal, as after retention, opens the call again."""

    async def body(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await bench.journal.close_call(live.key, epoch=1, at_s=0.0)
        assert await bench.journal.erase_settled(before_s=1.0) == 0
        assert await bench.journal.call(live.key) is None
        await live.record([turn(live, "i1", "hello")])
        assert len(await bench.journal.turns(live.key)) == 1

    virtual(body)


def test_one_failure_of_the_journal_is_over_when_it_works_again() -> None:
    """The journal's error clears within seconds once writes work; a failed read sets none."""

    async def body(bench: CallsBench) -> None:
        recent, append = bench.journal.recent, bench.journal.append

        async def fails(*_args: object, **_kwargs: object) -> None:
            raise JournalFull("no room")

        bench.journal.recent = fails  # type: ignore[method-assign,assignment]
        live, _ = await bench.open("c1")
        await anyio.sleep(1)
        assert bench.telemetry.counts["journal_failed"]
        assert bench.calls.journal_error == ""
        bench.journal.recent = recent
        bench.journal.append = fails
        bench.journal.try_write = fails
        with pytest.raises(JournalFull):
            await live.record([turn(live, "i1", "hello")])
        await live.close("bye")
        await anyio.sleep(60)
        assert bench.calls.journal_error
        del bench.journal.try_write
        bench.journal.append = append
        await anyio.sleep(6)
        assert bench.calls.journal_error == ""

    virtual(body)


@pytest.mark.parametrize("letta_down", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_the_last_words_of_the_call_before_come_into_the_next_prompt(
    letta_down: bool, early: bool
) -> None:
    """The last turn of a first call is in the memory of a second one that had already begun."""

    async def body(bench: CallsBench) -> None:
        first, ear = await bench.open("c1")
        await ear.newest()
        if early:
            await first.record([turn(first, "i0", "early words")])
        second, ear = await bench.open("c2")
        await ear.newest()
        bench.letta.down = letta_down
        await first.record([turn(first, "i1", "my last words")])
        await first.close("bye")
        second.speech_started()
        await anyio.sleep(0.01)
        assert "my last words" in ear.views[-1][0].text

    virtual(body)


def test_while_draining_new_calls_are_refused_and_live_ones_go_on() -> None:
    """While draining, live calls go on and no new one is opened."""

    async def body(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        bench.calls.draining = True
        with pytest.raises(CallError) as refused:
            await bench.open("c2")
        assert refused.value.code == "draining"
        await live.record([turn(live, "i1", "still here")])
        await live.close("bye")

    virtual(body)


def test_a_gap_in_the_count_is_taken_and_counted() -> None:
    """A turn whose number leaves a gap is stored, and the gap is counted."""

    async def body(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "one", seq=1), turn(live, "i4", "four", seq=4)])
        assert bench.telemetry.counts["turn_seq_gap"] == 1
        assert len(await bench.journal.turns(live.key)) == 2

    virtual(body)


def test_a_full_disk_is_told_and_the_call_goes_on() -> None:
    """On a full disk a turn is an error and not stored, and later turns work again."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        append = bench.journal.append

        async def full(_: Sequence[Turn]) -> None:
            raise JournalFull("no room")

        bench.journal.append = full  # type: ignore[method-assign]
        with pytest.raises(JournalFull):
            await live.record([turn(live, "i1", "hello")])
        assert bench.calls.journal_error
        bench.journal.append = append
        await live.record([turn(live, "i1", "hello")])
        assert not bench.calls.journal_error

    virtual(body)


def test_a_fault_at_one_calls_memory_ends_no_other_call() -> None:
    """An unexpected error while one call's memory is loaded is logged and affects no other call."""

    async def body(bench: CallsBench) -> None:
        load = bench.store.load

        async def broken(_agent_id: str) -> Snapshot | None:
            raise KeyError("not ours")

        bench.store.load = broken  # type: ignore[method-assign]
        live, _ = await bench.open("c1")
        await anyio.sleep(1)
        bench.store.load = load
        await live.record([turn(live, "i1", "hello")])
        _, ear = await bench.open("c2", BOB)
        assert (await ear.newest()).text == ""
        assert bench.telemetry.counts["part_failed"] == 1

    virtual(body)


def test_memory_changes_no_byte_while_nothing_changed() -> None:
    """Reads that find the same blocks leave the text as it is, and notify nobody."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        bench.letta.values["agent-0"] = "a fact"
        live.speech_started()
        await anyio.sleep(1.0)
        text = live.memory.text
        ear.views.clear()
        await anyio.sleep(60.0)
        assert live.memory.text == text
        assert ear.views == []

    virtual(body)


def test_nobodys_call_has_no_memory_and_keeps_its_words() -> None:
    """A call from a withheld number has no memory, one line in the log, and its turns stored."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1", CallerHints(phone="anonymous"))
        assert (await ear.newest()).text == ""
        await live.record([turn(live, "i1", "hello")])
        assert bench.telemetry.counts["caller_unresolved"] == 1
        assert len(await bench.journal.turns(live.key)) == 1
        assert bench.letta.agents == {}

    virtual(body)


def test_a_number_that_is_none_is_in_the_log_once_in_a_call() -> None:
    """An unusable number is logged once per call, though the call is reopened or spooled."""

    async def body(bench: CallsBench) -> None:
        for hints in (CallerHints(phone="+8656696"), CallerHints(phone="sip:alice1002@pbx")):
            bench.telemetry.counts.clear()
            call_id = "c" + hints.phone
            live, _ = await bench.open(call_id, hints)
            await live.record([turn(live, "i1", "hello")])
            await bench.open(call_id, hints)
            bench.calls.orphan("w1")
            await bench.open(call_id, hints)
            assert bench.telemetry.counts["caller_unresolved"] == 1
        await bench.open("c2", ADA)
        assert bench.telemetry.counts["caller_unresolved"] == 1
        spooled = [Turn("t/c3", "i1", 0, "caller", "hello", 1.0)]
        nobody = CallerHints(phone="unknown")
        assert await bench.restore("c3", spooled, hints=nobody)
        assert bench.telemetry.counts["caller_unresolved"] == 2

    virtual(body)


def test_who_is_nobody_is_in_the_log_where_one_agent_has_all_calls() -> None:
    """With a fixed agent, an unusable number is logged, and a call without a number is not."""

    async def body(bench: CallsBench) -> None:
        await bench.open("c1", CallerHints())
        assert bench.telemetry.counts["caller_unresolved"] == 0
        await bench.open("c2", CallerHints(phone="+12025550100;ext=12"))
        assert bench.telemetry.counts["caller_unresolved"] == 1

    virtual(body, CallsBench(rules=IdentityRules(agent_id="agent-7")))


def test_late_words_of_an_erased_call_are_taken_and_dropped() -> None:
    """Late words of a call erased by `forget` are acked but not stored, and no agent is made."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        await live.record([turn(live, "i1", "hello")])
        await live.close("hung up")
        await bench.journal.erase_caller(live.call.caller_key, now_s=bench.clock())
        bench.letta.agents.clear()
        late, ear = await bench.open("c1")
        await ear.newest()
        await late.record([turn(late, "i1", "hello"), turn(late, "i2", "more")])
        late.speech_started()
        await anyio.sleep(60.0)
        await late.close("hung up")
        assert await bench.restore("c1", [turn(late, "i3", "x")])
        assert await bench.journal.calls(limit=9) == []
        assert bench.letta.agents == {}
        assert bench.telemetry.counts["erased_call_refused"] == 2
        again, _ = await bench.open("c2")
        await again.record([turn(again, "i1", "hello again")])
        await anyio.sleep(1.0)
        assert len(bench.letta.agents) == 1

    virtual(body)


def test_a_call_that_was_erased_under_its_holder_stays_erased() -> None:
    """Words of a call that was erased while a channel held it are accepted but not stored."""

    async def body(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "hello")])
        await bench.journal.close_call(live.key, epoch=1, at_s=1.0)
        await bench.journal.erase_caller(live.call.caller_key, now_s=bench.clock())
        await live.record([turn(live, "i2", "more")])
        assert not live.may_be_stored
        assert await bench.journal.calls(limit=9) == []
        await live.close("hung up")

    virtual(body)


def test_a_flood_of_speech_and_openings_starts_a_few_reads_at_most() -> None:
    """A flood of speech starts and openings leaves few tasks waiting, and each is answered."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        bench.letta.delay_s = 3.0
        before = trio.lowlevel.current_statistics().tasks_living
        for n in range(200):
            live.speech_started()
            live, ear = await bench.open("c1")
            assert ear.views or n == 0  # during a read, the memory held comes at once
        assert trio.lowlevel.current_statistics().tasks_living < before + 20
        await ear.newest()
        bench.letta.delay_s = 0.0  # a poll may be under way at any moment
        await anyio.sleep(60.0)
        assert trio.lowlevel.current_statistics().tasks_living < before + 3
        ear.views.clear()
        live.speech_started()
        await ear.newest()

    virtual(body)


def test_what_another_replica_delivered_reaches_a_live_call() -> None:
    """A call here gets the memory that a batch changed which another replica has settled."""

    async def body(bench: CallsBench) -> None:
        live, ear = await bench.open("c1")
        await ear.newest()
        ear.views.clear()
        bench.letta.values["agent-0"] = "Her name is Ada."
        # As a thread has the loop call it: outside of any task.
        trio.lowlevel.current_trio_token().run_sync_soon(bench.journal.digested, live.call.ref)
        await anyio.sleep(1.0)  # the next poll comes later
        assert any("Ada" in view.text for view, _ in ear.views)

    virtual(body)


def test_one_that_was_taken_for_gone_takes_its_calls_again() -> None:
    """A replica that goes on under another name takes its live calls back, and closes them."""

    async def body(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "hello")])
        other = bench.journal.restarted()
        (taken,) = await other.take_over()
        assert taken.key == live.key
        bench.journal.renamed()
        await anyio.sleep(3.0)
        with pytest.raises(TakenOver):
            await other.close_call(live.key, at_s=1.0, epoch=taken.epoch)
        await live.close("bye")
        assert await bench.live_calls() == []

    virtual(body)


def test_a_call_of_a_dead_replica_that_is_live_here_is_closed_here() -> None:
    """A call that two replicas had live goes on at the one that is left, and is closed by it."""

    async def body(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "hello")])
        other = bench.journal.beside()
        await other.open_call(live.call)
        await bench.journal.executor.write(
            lambda tx: tx.run("DELETE FROM replicas WHERE name = ?", other.replica)
        )
        await anyio.sleep(3.0)
        bench.calls.orphan("w1")
        await anyio.sleep(300.0)
        assert await bench.live_calls() == []

    virtual(body)


def test_a_spool_waits_while_its_call_is_live_elsewhere() -> None:
    """What a dead worker left of a call that goes on at another replica is stored once it ended."""

    async def body(bench: CallsBench) -> None:
        live, _ = await bench.open("c1")
        await live.record([turn(live, "i1", "hello")])
        other = CallsBench(journal=bench.journal.beside())

        left = [turn(live, "i2", "more")]
        assert not await other.restore("c1", left)
        await live.close("bye")
        assert await other.restore("c1", left)
        assert [one.text for one in await bench.journal.turns(live.key)] == ["hello", "more"]

    virtual(body)
