"""The relay on a journal in memory and a Letta that misbehaves on cue, in virtual time."""

import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.delivery.decisions import DeliveryPolicy
from sidecar.delivery.relay import Relay
from sidecar.errors import (
    JournalError,
    JournalFull,
    LettaDenied,
    LettaUnavailable,
    Rejected,
    SidecarError,
)
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite.transactions import SqliteTransaction
from sidecar.letta.port import AgentSpec
from sidecar.model import AgentRef, Batch, Call, Turn
from sidecar.telemetry import Telemetry
from sidecar.testing.fake_letta import FakeLetta, Fault
from sidecar.testing.memory_journal import MemoryJournal
from sidecar.testing.strategies import fault_scripts

pytestmark = pytest.mark.unit

EPOCH_S = 1_800_000_000.0
REF = AgentRef("acme", caller_key="k1")
POLICY = DeliveryPolicy(post_timeout_s=30.0, grace_s=5.0)
RECOVERED_S = 4 * 3_600.0
LONGEST_PAUSE_S = 10.0


def unix_s() -> float:
    return EPOCH_S + trio.current_time()


class Log:
    """A logger that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def _add(self, name: str, **fields: object) -> None:
        self.lines.append((name, fields))

    debug = info = warning = error = _add


class RelayBench:
    """A journal, a Letta and a relay between them."""

    def __init__(
        self,
        faults: Sequence[Fault] = (),
        *,
        policy: DeliveryPolicy = POLICY,
        concurrency: int = 64,
        any_agent: bool = True,
        resolve: Callable[[AgentRef], Awaitable[str]] | None = None,
        on_settled: Callable[[AgentRef, Batch], Awaitable[None]] | None = None,
        on_changed: Callable[[str], None] = lambda _agent_id: None,
    ) -> None:
        self.journal = MemoryJournal(PostPolicy(max_turns=4, max_age_s=60.0), clock=unix_s)
        self.letta = FakeLetta(clock=unix_s, faults=faults, any_agent=any_agent)
        self.log = Log()
        self.telemetry = Telemetry(strict=True, logger=self.log)
        self.settled: list[tuple[AgentRef, Batch]] = []

        async def own_agent(ref: AgentRef) -> str:
            return f"agent-of-{ref.caller_key}"

        async def note(ref: AgentRef, batch: Batch) -> None:
            self.settled.append((ref, batch))

        self.relay = Relay(
            self.journal,
            self.letta,
            resolve or own_agent,
            policy=policy,
            concurrency=concurrency,
            clock=unix_s,
            dice=random.Random(7).random,
            emit=self.telemetry.emit,
            on_changed=on_changed,
            on_settled=on_settled or note,
        )

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.relay.run)
            yield
            tasks.cancel_scope.cancel()

    async def say(self, name: str, n: int, *, ref: AgentRef = REF, close: bool = True) -> None:
        """Store a call of `n` turns."""
        call = Call(f"acme/{name}", ref, "livekit", ref.caller_key or "", unix_s())
        await self.journal.open_call(call)
        await self.journal.append(
            [Turn(call.key, f"{name}-{i}", i, "caller", f"{name}:{i}.", unix_s()) for i in range(n)]
        )
        if close:
            await self.journal.close_call(call.key, epoch=1, at_s=unix_s())

    async def delivered(self, *, within_s: float = RECOVERED_S) -> None:
        """Return when the journal has nothing undelivered."""
        with anyio.fail_after(within_s):
            pause_s = 0.5
            while (await self.journal.counts()).undelivered:
                await anyio.sleep(pause_s)
                pause_s = min(1.1 * pause_s, LONGEST_PAUSE_S)

    def heard(self, name: str) -> list[int]:
        """Return the numbers of a call's turns in the order Letta got them."""
        return [
            int(piece.partition(".")[0])
            for taken in self.letta.taken
            for piece in taken.post.text.split(f"{name}:")[1:]
        ]

    async def append(self, name: str, n: int, *, at_s: float | None = None) -> None:
        """Store one more turn of a call."""
        said_s = unix_s() if at_s is None else at_s
        turn = Turn(f"acme/{name}", f"{name}-{n}", n, "caller", f"{name}:{n}.", said_s)
        await self.journal.append([turn])

    def order(self) -> list[str]:
        """Return every turn's text in the order Letta got them, without the full stop."""
        texts = [taken.post.text for taken in self.letta.taken]
        return [word for text in texts for word in re.findall(r">([^<>]+:[0-9]+)\.</turn>", text)]

    def events(self, name: str) -> list[dict[str, object]]:
        return [fields for event, fields in self.log.lines if event == name]


@pytest.fixture(autouse=True)
def rare_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an idle relay look every half hour: the outages here last for days."""
    monkeypatch.setattr("sidecar.delivery.relay._IDLE_S", 1_800.0)


def virtual(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test in virtual time: a sleep costs nothing, and hours pass at once."""
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


class TestDelivery:
    def test_a_call_arrives(self) -> None:
        """A call's turns reach its agent's conversation once and in order, and are settled."""

        async def test() -> None:
            bench = RelayBench()
            async with bench.running():
                await bench.say("one", 9)
                await bench.delivered(within_s=5)
            assert bench.heard("one") == list(range(9))
            assert bench.letta.posts == 1
            (taken,) = bench.letta.taken
            assert taken.post.agent_id == "agent-of-k1"
            assert bench.letta.conversations[taken.post.conversation_id] == "agent-of-k1"
            assert await bench.journal.agent_of(REF) == "agent-of-k1"
            assert [ref for ref, _ in bench.settled] == [REF]
            assert bench.settled[0][1].agent_id == "agent-of-k1"
            assert [fields["how"] for fields in bench.events("batch_settled")] == ["posted"]

        virtual(test)

    def test_one_conversation_per_call(self) -> None:
        """All batches of a call go into one conversation, and another call has its own."""

        async def test() -> None:
            bench = RelayBench()
            async with bench.running():
                await bench.say("one", 4, close=False)
                await anyio.sleep(5)
                await bench.say("two", 1)
                await anyio.sleep(1)
                await bench.journal.append(
                    [
                        Turn("acme/one", f"late-{i}", i, "agent", f"one:{i}.", unix_s())
                        for i in (4, 5)
                    ]
                )
                await bench.delivered()
            assert bench.heard("one") == list(range(6))
            conversations = [taken.post.conversation_id for taken in bench.letta.taken]
            assert len(conversations) == 3
            assert conversations[0] == conversations[2] != conversations[1]

        virtual(test)

    def test_a_live_call_waits_for_enough_or_for_age(self) -> None:
        """A live call's turns are posted once there are enough, or when the oldest is too old."""

        async def test() -> None:
            bench = RelayBench()
            async with bench.running():
                await bench.say("one", 2, close=False)
                await anyio.sleep(55)
                assert bench.letta.posts == 0
                await anyio.sleep(10)
                assert bench.heard("one") == [0, 1]

        virtual(test)

    def test_the_end_of_a_call_wakes_the_relay(self) -> None:
        """A call that closes is delivered at once, not at the next poll."""

        async def test() -> None:
            bench = RelayBench()
            async with bench.running():
                await bench.say("one", 1, close=False)
                await anyio.sleep(3)
                await bench.journal.close_call("acme/one", epoch=1, at_s=unix_s())
                await bench.delivered(within_s=1)

        virtual(test)

    def test_one_post_per_agent_many_agents_at_once(self) -> None:
        """Calls of one agent go one after another, those of others in parallel up to a bound."""

        async def test() -> None:
            faults = [Fault.SLOW] * 40
            bench = RelayBench(faults, concurrency=5)
            async with bench.running():
                for n in range(40):
                    await bench.say(f"c{n}", 1, ref=AgentRef("acme", agent_id=f"agent-{n % 8}"))
                began_s = unix_s()
                await bench.delivered()
                took_s = unix_s() - began_s
            assert bench.letta.overlaps == 0
            at_once = max(
                sum(a.began_s <= b.began_s < a.landed_s for a in bench.letta.taken)
                for b in bench.letta.taken
            )
            assert at_once == 5
            assert 40 / 5 * 5.0 <= took_s < 80 / 5 * 5.0

        virtual(test)

    def test_two_lanes_of_one_agent_take_turns(self) -> None:
        """Two callers who share an agent never have posts to it at the same time."""

        async def test() -> None:
            async def same(_ref: AgentRef) -> str:
                return "agent-shared"

            bench = RelayBench([Fault.SLOW] * 6, resolve=same)
            async with bench.running():
                for n in range(6):
                    await bench.say(f"c{n}", 1, ref=AgentRef("acme", caller_key=f"k{n}"))
                await bench.delivered()
            assert len(bench.letta.taken) == 6
            assert bench.letta.overlaps == 0

        virtual(test)


class TestOrder:
    def test_what_was_said_first_is_heard_first_across_calls(self) -> None:
        """When a caller calls again after a lost call, the earlier turns reach Letta first."""

        async def test() -> None:
            bench = RelayBench()
            async with bench.running():
                await bench.say("lyon", 1, close=False)
                await anyio.sleep(2)
                await bench.say("oslo", 0, close=False)
                await anyio.sleep(1)
                assert bench.heard("lyon") == [0], "due as soon as the caller is back"
                await bench.append("oslo", 0)
                await bench.journal.close_call("acme/oslo", epoch=1, at_s=unix_s())
                await bench.delivered(within_s=5)
            assert bench.order() == ["lyon:0", "oslo:0"]

        virtual(test)

    def test_the_tail_of_a_killed_call_goes_before_the_next_call(self) -> None:
        """Last turns that come from the spool during the next call go before that call's turns."""

        async def test() -> None:
            bench = RelayBench()
            async with bench.running():
                await bench.say("lyon", 1, close=False)
                await anyio.sleep(2)
                said_s = unix_s()
                await bench.say("oslo", 1, close=False)
                await anyio.sleep(1)
                await bench.append("lyon", 1, at_s=said_s - 1)
                await bench.journal.close_call("acme/oslo", epoch=1, at_s=unix_s())
                await bench.delivered()
            assert bench.order() == ["lyon:0", "lyon:1", "oslo:0"]

        virtual(test)

    @settings(max_examples=60, deadline=None)
    @given(
        fault_scripts,
        st.lists(
            st.tuples(
                st.sampled_from(["say", "say", "call", "hang up", "kill", "return"]),
                st.floats(0.0, 30.0),
            ),
            max_size=25,
        ),
    )
    def test_no_word_overtakes_an_earlier_call(
        self, faults: list[Fault], steps: list[tuple[str, float]]
    ) -> None:
        """Whatever ends or returns, turns stored before a call opened go before its own."""

        async def test() -> None:
            bench = RelayBench(faults)
            said: dict[int, list[str]] = {}
            before: dict[int, list[str]] = {}
            on_line: int | None = None
            async with bench.running():
                for step, wait_s in steps:
                    match step:
                        case "call":
                            on_line = len(before)
                            before[on_line] = [word for words in said.values() for word in words]
                            await bench.say(f"c{on_line}-", 0, close=False)
                        case "say" if on_line is not None:
                            words = said.setdefault(on_line, [])
                            words.append(f"c{on_line}-:{len(words)}")
                            await bench.append(f"c{on_line}-", len(words) - 1)
                        case "hang up" if on_line is not None:
                            await bench.journal.close_call(
                                f"acme/c{on_line}-", epoch=1, at_s=unix_s()
                            )
                            on_line = None
                        case "kill":
                            on_line = None
                        case "return" if before:
                            on_line = max(before)
                        case _:
                            pass
                    await anyio.sleep(wait_s)
                await bench.delivered()
                await anyio.sleep(RECOVERED_S)
            order = bench.order()
            assert sorted(order) == sorted(word for words in said.values() for word in words)
            place = {word: n for n, word in enumerate(order)}
            for call, words in said.items():
                assert [word for word in order if word in words] == words
                for word in words:
                    assert all(place[earlier] < place[word] for earlier in before[call])

        virtual(test)


class TestTooLarge:
    def test_a_full_conversation_is_left_for_a_new_one(self) -> None:
        """A batch that no longer fits into its conversation goes into a new one as a whole."""

        async def test() -> None:
            bench = RelayBench()
            bench.letta.context_chars = 1_500
            async with bench.running():
                for part in range(4):
                    for n in range(4):
                        await bench.append("one", 4 * part + n) if part or n else await bench.say(
                            "one", 1, close=False
                        )
                    await anyio.sleep(61)
                await bench.delivered(within_s=30)
            assert bench.heard("one") == list(range(16))
            assert not bench.events("batch_dead")

        virtual(test)

    @settings(max_examples=30, deadline=None)
    @given(fault_scripts, st.integers(500, 2_000), st.integers(1, 30))
    def test_a_batch_too_large_for_the_model_goes_in_parts(
        self, faults: list[Fault], context_chars: int, turns: int
    ) -> None:
        """However small the context, turns arrive in order or are dead letters within minutes."""

        async def test() -> None:
            bench = RelayBench(faults)
            bench.letta.context_chars = context_chars
            async with bench.running():
                await bench.say("one", turns)
                await bench.delivered()
                await anyio.sleep(RECOVERED_S)
                dead = sum(
                    letter.turns
                    for letter in await bench.journal.batches(states=("dead",), limit=99)
                )
            heard = bench.heard("one")
            assert heard == sorted(set(heard))
            assert len(heard) + dead == turns
            assert bench.letta.overlaps == 0

        virtual(test)

    def test_what_never_fits_is_a_dead_letter_at_once(self) -> None:
        """A turn too large for any context is a dead letter within seconds; the lane goes on."""

        async def test() -> None:
            bench = RelayBench()
            bench.letta.context_chars = 10
            async with bench.running():
                await bench.say("one", 1)
                await bench.delivered(within_s=5)
                assert len(await bench.journal.batches(states=("dead",), limit=99)) == 1
                assert len(bench.events("batch_dead")) == 1
                bench.letta.context_chars = None
                await bench.say("two", 1)
                await bench.delivered(within_s=5)
            assert bench.heard("two") == [0]

        virtual(test)


class TestFaults:
    @pytest.mark.parametrize("fault", [f for f in Fault if f is not Fault.REJECT])
    def test_each_fault_alone(self, fault: Fault) -> None:
        """After any single fault the turns arrive once and in order, and so does the next call."""

        async def test() -> None:
            bench = RelayBench([fault])
            async with bench.running():
                await bench.say("one", 3)
                await bench.say("two", 2)
                await bench.delivered()
            assert bench.heard("one") == [0, 1, 2]
            assert bench.heard("two") == [0, 1]
            assert bench.letta.overlaps == 0

        virtual(test)

    @settings(max_examples=60, deadline=None)
    @given(fault_scripts, st.integers(1, 4))
    def test_any_faults_together(self, faults: list[Fault], callers: int) -> None:
        """Under any faults no turn is lost, doubled or misordered, and no agent's posts overlap."""

        async def test() -> None:
            bench = RelayBench(faults)
            async with bench.running():
                for n in range(6):
                    ref = AgentRef("acme", caller_key=f"k{n % callers}")
                    await bench.say(f"c{n}-", 5, ref=ref)
                await bench.delivered()
                await anyio.sleep(RECOVERED_S)
            for n in range(6):
                assert bench.heard(f"c{n}-") == list(range(5)), faults
            assert bench.letta.overlaps == 0

        virtual(test)

    @settings(max_examples=30, deadline=None)
    @given(fault_scripts, st.lists(st.floats(0.0, 40.0), min_size=1, max_size=4))
    def test_the_relay_dies_at_any_moment(self, faults: list[Fault], lives_s: list[float]) -> None:
        """A relay that is stopped at any moments still delivers each turn once."""

        async def test() -> None:
            bench = RelayBench(faults)
            await bench.say("one", 5)
            await bench.say("two", 5)
            for life_s in lives_s:
                with anyio.move_on_after(life_s):
                    await bench.relay.run()
            async with bench.running():
                await bench.delivered()
                await anyio.sleep(RECOVERED_S)
            assert bench.heard("one") == bench.heard("two") == list(range(5))
            assert bench.letta.overlaps == 0

        virtual(test)

    def test_a_relay_that_is_started_again_takes_back_what_it_had_claimed(self) -> None:
        """A batch whose claim was not answered or whose release was cut off is still delivered."""

        async def test() -> None:
            bench = RelayBench([Fault.SLOW])
            claim, release = bench.journal.claim, bench.journal.release

            async def unheard(limit: int, *, now_s: float, post_timeout_s: float) -> list[Batch]:
                await claim(limit, now_s=now_s, post_timeout_s=post_timeout_s)
                await anyio.sleep_forever()
                return []

            async def slow(*args: object, **kwargs: object) -> None:
                await anyio.sleep(10)
                await release(*args, **kwargs)  # type: ignore[arg-type]

            bench.journal.release = slow
            await bench.say("one", 3)
            with anyio.move_on_after(2):
                await bench.relay.run()
            bench.journal.claim = unheard
            await bench.say("two", 3, ref=AgentRef("acme", caller_key="k2"))
            with anyio.move_on_after(2):
                await bench.relay.run()
            bench.journal.claim, bench.journal.release = claim, release
            async with bench.running():
                await bench.delivered()
            assert bench.heard("one") == bench.heard("two") == [0, 1, 2]

        virtual(test)

    def test_a_timeout_that_landed_is_found(self) -> None:
        """A post that landed without an answer is settled by a look-up, and sent once."""

        async def test() -> None:
            bench = RelayBench([Fault.HANG])
            async with bench.running():
                await bench.say("one", 3)
                await bench.delivered()
            assert bench.letta.posts == 1
            assert [fields["how"] for fields in bench.events("batch_settled")] == ["found"]
            assert bench.events("batch_in_doubt")

        virtual(test)

    def test_a_lost_post_waits_for_its_horizon(self) -> None:
        """A post that may still land is not sent again before its horizon."""

        async def test() -> None:
            bench = RelayBench([Fault.CUT_EMPTY])
            async with bench.running():
                began_s = unix_s()
                await bench.say("one", 3)
                await bench.delivered()
                assert unix_s() - began_s > POLICY.horizon_s
            assert bench.letta.posts == 2
            assert len({taken.post.batch_id for taken in bench.letta.taken}) == 1

        virtual(test)

    def test_an_answered_failure_is_sent_again_at_once(self) -> None:
        """After a 500 that stored nothing the batch is sent again within a second."""

        async def test() -> None:
            bench = RelayBench([Fault.ERROR_EMPTY])
            async with bench.running():
                await bench.say("one", 3)
                await bench.delivered(within_s=2)
            assert bench.heard("one") == [0, 1, 2]

        virtual(test)

    def test_a_failed_look_up_decides_nothing(self) -> None:
        """While look-ups fail, a batch in doubt is neither settled nor sent."""

        async def test() -> None:
            bench = RelayBench([Fault.ERROR_LANDED])
            bench.letta.lookups_fail = True
            async with bench.running():
                await bench.say("one", 3)
                await anyio.sleep(600)
                assert bench.letta.posts == 1
                assert (await bench.journal.counts()).undelivered == 3
                bench.letta.lookups_fail = False
                await bench.delivered()
            assert bench.letta.posts == 1

        virtual(test)

    def test_busy_is_retried_soon_and_opens_no_breaker(self) -> None:
        """A busy agent gets its batch within two minutes, and the breaker stays closed."""

        async def test() -> None:
            bench = RelayBench([Fault.BUSY] * 20)
            async with bench.running():
                await bench.say("one", 3)
                await bench.delivered(within_s=120)
            assert not bench.events("relay_breaker_opened")

        virtual(test)

    def test_rejected_three_times_is_a_dead_letter(self) -> None:
        """After three rejections a batch is a dead letter, the lane goes on, and a replay works."""

        async def test() -> None:
            bench = RelayBench([Fault.REJECT] * 3)
            async with bench.running():
                await bench.say("one", 3)
                await bench.say("two", 2)
                await bench.delivered()
                (letter,) = await bench.journal.batches(states=("dead",), limit=99)
                assert (letter.call, letter.turns) == ("acme/one", 3)
                assert bench.heard("one") == []
                assert bench.heard("two") == [0, 1]
                assert bench.events("batch_dead")[0]["turns"] == 3
                await bench.journal.replay(letter.batch_id, now_s=unix_s())
                await bench.delivered()
            assert bench.heard("one") == [0, 1, 2]

        virtual(test)

    def test_a_refused_key_is_never_final(self) -> None:
        """A wrong key makes no dead letter, and all is delivered once the key works."""

        async def test() -> None:
            bench = RelayBench([Fault.DENY] * 500)
            async with bench.running():
                await bench.say("one", 3)
                await anyio.sleep(5 * 3_600)
                assert bench.letta.posts < 500
                assert len(bench.events("agent_unresolved")) == bench.letta.posts
                await bench.delivered(within_s=5 * 3_600)
            assert bench.heard("one") == [0, 1, 2]
            assert not bench.events("batch_dead")

        virtual(test)

    def test_after_its_time_it_is_a_dead_letter(self) -> None:
        """A batch that can't be delivered within the give-up time becomes a dead letter."""

        async def test() -> None:
            policy = DeliveryPolicy(give_up_s=6 * 3_600.0)
            bench = RelayBench([Fault.AGENT_GONE] * 10_000, policy=policy)
            async with bench.running():
                await bench.say("one", 3, ref=AgentRef("acme", agent_id="gone"))
                await anyio.sleep(5.9 * 3_600)
                assert not await bench.journal.batches(states=("dead",), limit=99)
                await anyio.sleep(0.2 * 3_600)
                assert len(await bench.journal.batches(states=("dead",), limit=99)) == 1
            assert len(bench.events("batch_dead")) == 1

        virtual(test)

    def test_a_replayed_letter_has_all_its_time_again(self) -> None:
        """A replayed letter has its full time again, and keeps the time of its first try."""

        async def test() -> None:
            policy = DeliveryPolicy(give_up_s=3_600.0)
            bench = RelayBench([Fault.DENY] * 1_000, policy=policy)
            async with bench.running():
                sealed_s = unix_s()
                await bench.say("one", 3)
                await anyio.sleep(2 * 3_600)
                (dead,) = await bench.journal.batches(states=("dead",), limit=99)
                await bench.journal.replay(dead.batch_id, now_s=unix_s())
                await anyio.sleep(1_800)
                assert not await bench.journal.batches(states=("dead",), limit=99)
                bench.letta._faults = iter(())
                await bench.delivered()
            assert bench.heard("one") == [0, 1, 2]
            (taken,) = bench.letta.taken
            assert taken.post.first_sent_at_s == pytest.approx(sealed_s, abs=1)

        virtual(test)

    def test_a_journal_that_fails_is_asked_again(self) -> None:
        """A settle that the journal refused is repeated until it works; nothing is sent twice."""

        async def test() -> None:
            bench = RelayBench()
            settle, refusals = bench.journal.settle, iter(range(5))

            async def refuse_first(*args: object, **kwargs: object) -> None:
                if next(refusals, None) is not None:
                    raise JournalFull("no room")
                await settle(*args, **kwargs)  # type: ignore[arg-type]

            bench.journal.settle = refuse_first
            async with bench.running():
                await bench.say("one", 3)
                await bench.delivered(within_s=60)
            assert bench.letta.posts == 1
            assert len(bench.events("journal_failed")) == 5

        virtual(test)

    def test_a_change_is_told_before_its_batch_is_settled(self) -> None:
        """Memory is marked as outdated before the batch that changed it is settled."""

        async def test() -> None:
            happened: list[str] = []
            bench = RelayBench(on_changed=happened.append)
            settle = bench.journal.settle

            async def settled(batch: Batch, **when: float) -> None:
                happened.append("settled")
                await settle(batch, **when)

            bench.journal.settle = settled
            async with bench.running():
                await bench.say("one", 2)
                await bench.delivered(within_s=10)
            assert happened == ["agent-of-k1", "settled"]

        virtual(test)

    def test_a_listener_that_fails_hurts_nothing(self) -> None:
        """If `on_settled` raises or never returns, that is logged and delivery goes on."""

        async def test() -> None:
            calls = 0

            async def bad(_ref: AgentRef, _batch: Batch) -> None:
                nonlocal calls
                calls += 1
                if calls == 1:
                    raise LettaUnavailable("no")
                await anyio.sleep_forever()

            bench = RelayBench(on_settled=bad)
            async with bench.running():
                for name in ("one", "two", "three"):
                    await bench.say(name, 1)
                await bench.delivered(within_s=10)
                await anyio.sleep(120)
            assert calls == 3
            assert len(bench.events("part_failed")) == 3

        virtual(test)

    def test_a_stalled_claim_is_recorded_anew(self) -> None:
        """A claim that was held up gets a new horizon when its post is sent."""

        async def test() -> None:
            async def slow(_ref: AgentRef) -> str:
                await anyio.sleep(20)
                return "agent-1"

            bench = RelayBench([Fault.LATE], resolve=slow)
            bench.letta._slow_s = 34.0  # past the horizon of the claim, before that of the try
            async with bench.running():
                await bench.say("one", 3)
                await bench.delivered()
                await anyio.sleep(200)
            assert bench.heard("one") == [0, 1, 2]

        virtual(test)


class TestAddress:
    @pytest.mark.parametrize(
        "error", [LettaUnavailable("away"), LettaDenied("key"), Rejected("no agent")]
    )
    def test_an_agent_that_cannot_be_had_is_waited_for(self, error: SidecarError) -> None:
        """While no agent can be found or made nothing is given up, and each failure is logged."""

        async def test() -> None:
            failures = iter(range(6))

            async def resolve(_ref: AgentRef) -> str:
                if next(failures, None) is not None:
                    raise error
                return "agent-1"

            bench = RelayBench(resolve=resolve)
            async with bench.running():
                await bench.say("one", 3)
                await bench.delivered()
            assert bench.heard("one") == [0, 1, 2]
            assert len(bench.events("agent_unresolved")) == 6

        virtual(test)

    def test_a_deleted_conversation_is_replaced(self) -> None:
        """If a call's conversation is gone, the rest of the call goes into a new one."""

        async def test() -> None:
            bench = RelayBench()
            async with bench.running():
                await bench.say("one", 4, close=False)
                await anyio.sleep(5)
                bench.letta.forget_conversations()
                await bench.journal.append(
                    [Turn("acme/one", "late", 4, "caller", "one:4.", unix_s())]
                )
                await bench.journal.close_call("acme/one", epoch=1, at_s=unix_s())
                await bench.delivered(within_s=30)
            assert bench.heard("one") == list(range(5))
            assert len(bench.letta.conversations) == 1

        virtual(test)

    def test_a_callers_deleted_agent_is_looked_for_again(self) -> None:
        """A caller whose agent was deleted gets another one."""

        async def test() -> None:
            async def find_or_create(_ref: AgentRef) -> str:
                found = await bench.letta.find_agents(["k1"])
                if found:
                    return found[0].agent_id
                return await bench.letta.create_agent(AgentSpec("x", "", (), ["k1"]))

            bench = RelayBench(any_agent=False, resolve=find_or_create)
            async with bench.running():
                await bench.say("one", 1)
                await bench.delivered(within_s=10)
                first = bench.letta.taken[0].post.agent_id
                await bench.letta.delete_agent(first)
                await bench.say("two", 2)
                await bench.delivered()
            assert bench.heard("two") == [0, 1]

        virtual(test)

    def test_one_wrong_answer_costs_no_agent(self) -> None:
        """Two "no such agent" answers in a row don't make the relay forget the agent."""

        async def test() -> None:
            bench = RelayBench([Fault.NONE, Fault.AGENT_GONE, Fault.AGENT_GONE])
            asked: list[AgentRef] = []
            forget = bench.journal.forget_agent

            async def count(ref: AgentRef, agent_id: str) -> None:
                asked.append(ref)
                await forget(ref, agent_id)

            bench.journal.forget_agent = count
            async with bench.running():
                await bench.say("one", 1)
                await bench.say("two", 1)
                await bench.delivered()
            assert asked == []

        virtual(test)

    def test_nobodys_call_is_never_posted(self) -> None:
        """A call of an unknown caller is posted to no agent."""

        async def test() -> None:
            bench = RelayBench()
            async with bench.running():
                await bench.say("one", 9, ref=AgentRef("acme"))
                await anyio.sleep(3_600)
            assert bench.letta.posts == 0

        virtual(test)


class TestBreaker:
    def test_a_letta_that_is_down_is_probed(self) -> None:
        """While Letta is down only probes are sent, and all is delivered soon after it is back."""

        async def test() -> None:
            bench = RelayBench()
            bench.letta.down = True
            async with bench.running():
                for n in range(60):
                    await bench.say(f"c{n}-", 1, ref=AgentRef("acme", caller_key=f"k{n}"))
                await anyio.sleep(3_600)
                assert bench.relay.degraded
                assert len(bench.events("relay_breaker_opened")) == 1
                retried = len(bench.events("agent_unresolved"))
                assert retried < 60 + 3_600 / 15
                bench.letta.down = False
                await bench.delivered(within_s=180)
                assert not bench.relay.degraded
            assert len(bench.events("relay_breaker_closed")) == 1
            assert all(bench.heard(f"c{n}-") == [0] for n in range(60))

        virtual(test)

    def test_a_call_that_ends_meanwhile_is_not_forgotten(self) -> None:
        """Turns that become due while the breaker is open are delivered when it closes."""

        async def test() -> None:
            bench = RelayBench()
            bench.letta.down = True
            async with bench.running():
                for n in range(10):
                    await bench.say(f"c{n}-", 1, ref=AgentRef("acme", caller_key=f"k{n}"))
                await anyio.sleep(60)
                bench.letta.down = False
                await bench.say("late-", 1, ref=AgentRef("acme", caller_key="late"))
                await bench.delivered(within_s=90)
            assert bench.heard("late-") == [0]

        virtual(test)

    def test_callers_without_an_agent_hold_nobody_up(self) -> None:
        """Callers for whom no agent may be made do not open the breaker."""

        async def test() -> None:
            async def resolve(ref: AgentRef) -> str:
                if ref.caller_key == "good":
                    return "agent-good"
                await anyio.sleep(0.02)
                raise Rejected("this caller has no agent")

            bench = RelayBench(resolve=resolve)
            async with bench.running():
                for n in range(20):
                    await bench.say(f"c{n}-", 1, ref=AgentRef("acme", caller_key=f"k{n}"))
                await anyio.sleep(600)
                for n in range(20):
                    await bench.say(f"g{n}-", 1, ref=AgentRef("acme", caller_key="good"))
                    await anyio.sleep(5)
                    assert bench.heard(f"g{n}-") == [0]
            assert not bench.events("relay_breaker_opened")

        virtual(test)

    def test_posts_slower_than_their_deadline_are_no_outage(self) -> None:
        """Posts that are slower than their deadline do not open the breaker."""

        async def test() -> None:
            bench = RelayBench([Fault.SLOW] * 100, policy=DeliveryPolicy(post_timeout_s=60.0))
            bench.letta._slow_s = 70.0
            async with bench.running():
                for n in range(100):
                    await bench.say(f"c{n}-", 1, ref=AgentRef("acme", caller_key=f"k{n}"))
                await bench.delivered(within_s=180)
            assert all(bench.heard(f"c{n}-") == [0] for n in range(100))
            assert not bench.events("relay_breaker_opened")

        virtual(test)

    def test_a_letta_that_answers_nothing_is_probed(self) -> None:
        """Posts that hang open the breaker through the look-ups that fail after them."""

        async def test() -> None:
            bench = RelayBench([Fault.HANG_EMPTY] * 12)
            bench.letta.lookups_fail = True
            async with bench.running():
                for n in range(12):
                    await bench.say(f"c{n}-", 1, ref=AgentRef("acme", caller_key=f"k{n}"))
                await anyio.sleep(POLICY.post_timeout_s + 5)
                assert bench.relay.degraded
                bench.letta.lookups_fail = False
                await bench.delivered()
            assert all(bench.heard(f"c{n}-") == [0] for n in range(12))

        virtual(test)


async def failing(*_: object, **__: object) -> NoReturn:
    """Stand in for a method of a journal whose disk has gone."""
    raise JournalError("the disk has gone")


class TestFlush:
    def test_it_delivers_what_is_pending_of_live_calls(self) -> None:
        """A flush posts live calls' turns now and returns 0 as soon as they are settled."""

        async def test() -> None:
            bench = RelayBench()
            async with bench.running():
                await bench.say("one", 2, close=False)
                began_s = unix_s()
                assert await bench.relay.flush(20) == 0
                assert unix_s() - began_s < 1
            assert bench.heard("one") == [0, 1]

        virtual(test)

    def test_it_keeps_to_its_budget(self) -> None:
        """With a Letta that hangs, a flush ends in time and returns how many turns are left."""

        async def test() -> None:
            bench = RelayBench([Fault.HANG_EMPTY])
            async with bench.running():
                await bench.say("one", 2)
                began_s = unix_s()
                assert await bench.relay.flush(10) == 2
                assert unix_s() - began_s == pytest.approx(10, abs=0.5)

        virtual(test)

    def test_a_journal_that_says_nothing_is_not_called_empty(self) -> None:
        """While the journal fails, a flush ends with its budget and knows no number."""

        async def test() -> None:
            bench = RelayBench()
            async with bench.running():
                await bench.say("one", 2)
                bench.journal.backlog = failing
                assert await bench.relay.flush(10) is None

        virtual(test)

    def test_a_lane_that_another_has_claimed_is_left_to_it(self) -> None:
        """A delivery that ends when another replica has the lane stores nothing, and says so."""

        async def test() -> None:
            def claim_elsewhere(_agent_id: str) -> None:
                tx = SqliteTransaction(bench.journal._connection)
                tx.run("UPDATE lanes SET replica = 'another', epoch = epoch + 1")

            bench = RelayBench(on_changed=claim_elsewhere)
            async with bench.running():
                await bench.say("one", 2)
                await anyio.sleep(60)
            assert bench.letta.posts == 1
            assert [fields["lane"] for fields in bench.events("lane_taken_over")] == [REF.lane]
            assert not bench.events("journal_failed")
            assert not bench.settled
            (batch,) = await bench.journal.batches(states=("sending",), limit=9)
            assert batch.turns == 2

        virtual(test)

    def test_a_stop_beside_a_failing_journal_is_a_stop(self) -> None:
        """A try that can't be given up ends in time, and nothing but the cancellation is raised."""

        async def test() -> None:
            bench = RelayBench([Fault.HANG_EMPTY])
            async with bench.running():
                await bench.say("one", 2)
                await anyio.sleep(5)
                bench.journal.release = failing
                stopped_s = unix_s()
            assert unix_s() - stopped_s < 10
            assert bench.events("journal_failed")

        virtual(test)

    def test_it_does_not_wait_for_what_is_later_than_its_budget(self) -> None:
        """If nothing can be retried in time, a flush does not wait for its whole budget."""

        async def test() -> None:
            bench = RelayBench([Fault.DENY] * 99)
            async with bench.running():
                await bench.say("one", 2)
                await anyio.sleep(600)
                began_s = unix_s()
                await bench.relay.flush(1.0)
                assert unix_s() - began_s <= 1.0

        virtual(test)


def test_no_event_carries_words() -> None:
    """No event has any words of a caller, whatever went wrong."""

    async def test() -> None:
        bench = RelayBench([f for f in Fault for _ in range(2)])
        async with bench.running():
            await bench.say("one", 3)
            await bench.say("two", 3)
            await anyio.sleep(RECOVERED_S)
        assert bench.log.lines
        assert "one:" not in str(bench.log.lines)

    virtual(test)
