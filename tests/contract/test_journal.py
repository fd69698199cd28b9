"""What every journal promises, on every engine."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from sidecar.errors import CallError, JournalError
from sidecar.journal.policy import PostPolicy
from sidecar.journal.port import Journal
from sidecar.journal.postgres import PostgresJournal
from sidecar.journal.sqlite import SqliteJournal
from sidecar.model import AgentRef, Batch, Call, Turn
from sidecar.testing.memory_journal import MemoryJournal
from tests.set_clock import Clock

pytestmark = [pytest.mark.contract, pytest.mark.anyio]

POLICY = PostPolicy(max_turns=3, max_age_s=60.0, batch_turns=5, batch_chars=100)
REF = AgentRef("acme", caller_key="k1")
OTHER = AgentRef("acme", caller_key="k2")
POST_TIMEOUT_S = 30.0


@pytest.fixture(
    params=[
        ("memory", "asyncio"),
        ("memory", "trio"),
        ("sqlite", "asyncio"),
        ("postgres", "asyncio"),
        ("pooled", "asyncio"),
    ],
    ids=["memory-asyncio", "memory-trio", "sqlite", "postgres", "postgres-pooled"],
)
def engine(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def anyio_backend(engine: tuple[str, str]) -> str:
    return engine[1]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def journal(
    engine: tuple[str, str], clock: Clock, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Journal]:
    if engine[0] == "memory":
        yield MemoryJournal(POLICY, clock=clock)
        return
    if engine[0] in {"postgres", "pooled"}:
        url = request.getfixturevalue("postgres").emptied()
        if engine[0] == "pooled":
            url = request.getfixturevalue("pooler").url(url)
        opened = await PostgresJournal.open(url, secret=b"s" * 32, policy=POLICY, clock=clock)
    else:
        opened = await SqliteJournal.open(tmp_path / "journal.db", policy=POLICY, clock=clock)
    yield opened
    await opened.aclose()


def call(name: str = "one", ref: AgentRef = REF, caller_key: str = "k1") -> Call:
    return Call(f"acme/{name}", ref, "livekit", caller_key, 1_799_999_990.0)


def turn(n: int, name: str = "one", text: str = "hello", at_s: float | None = None) -> Turn:
    at_s = 1_800_000_000.0 + n if at_s is None else at_s
    return Turn(f"acme/{name}", f"item-{n}", n, "caller" if n % 2 else "agent", text, at_s)


async def claim_one(journal: Journal, clock: Clock) -> Batch:
    (batch,) = await journal.claim(10, now_s=clock(), post_timeout_s=POST_TIMEOUT_S)
    return batch


async def claim_none(journal: Journal, clock: Clock) -> None:
    assert await journal.claim(10, now_s=clock(), post_timeout_s=POST_TIMEOUT_S) == []


def numbers(batch: Batch) -> list[int]:
    return [turn.seq for turn in batch.turns]


class TestCalls:
    async def test_opening_twice_returns_the_first(self, journal: Journal) -> None:
        """A call opened again is the call that was stored."""
        first = await journal.open_call(call())
        again = await journal.open_call(replace(call(), opened_at_s=5.0))
        assert again == first == call()

    @pytest.mark.parametrize("caller_key", ["k2", ""])
    @pytest.mark.parametrize("ref", [REF, OTHER])
    async def test_another_caller_is_refused(
        self, journal: Journal, ref: AgentRef, caller_key: str
    ) -> None:
        """No caller can open another caller's call, and so get that caller's memory."""
        await journal.open_call(call())
        with pytest.raises(CallError) as refused:
            await journal.open_call(call(ref=ref, caller_key=caller_key))
        assert refused.value.code == "call_claimed"

    async def test_a_refused_consent_stays_refused(self, journal: Journal) -> None:
        """The caller's consent is stored with the call, and a "no" is never changed."""
        stored = [
            (await journal.open_call(replace(call(), consent=consent))).consent
            for consent in ("", "yes", "", "no", "yes")
        ]
        assert stored == ["", "yes", "yes", "no", "no"]
        assert [row.call.consent for row in await journal.calls(limit=5)] == ["no"]

    @pytest.mark.parametrize("first", [REF, AgentRef("acme", agent_id="a"), AgentRef("acme")])
    @pytest.mark.parametrize("caller_key", ["k1", ""])
    async def test_the_first_ref_stands(
        self, journal: Journal, clock: Clock, first: AgentRef, caller_key: str
    ) -> None:
        """A call whose caller has since got another agent goes on with the one it began with."""
        began = call(ref=first, caller_key=caller_key)
        await journal.open_call(began)
        assert await journal.open_call(call(ref=OTHER)) == began
        await journal.append([turn(1)])
        await journal.close_call(began.key, epoch=1, at_s=clock())
        claimed = await journal.claim(10, now_s=clock(), post_timeout_s=POST_TIMEOUT_S)
        assert [batch.call.ref for batch in claimed] == ([first] if first.known else [])

    async def test_a_call_of_nobody_is_given_its_caller(
        self, journal: Journal, clock: Clock
    ) -> None:
        """What was said before a call's caller was known is delivered with the rest."""
        await journal.open_call(call(ref=AgentRef("acme"), caller_key=""))
        await journal.append([turn(1)])
        assert await journal.claim(1, now_s=clock() + 1_000, post_timeout_s=1.0) == []
        known = await journal.identify(call())
        assert (known.ref, known.caller_key) == (call().ref, call().caller_key)
        assert await journal.call(known.key) == known
        assert await journal.identify(call(ref=OTHER, caller_key="x")) == known
        await journal.append([turn(2)])
        await journal.close_call(known.key, epoch=1, at_s=clock())
        (batch,) = await journal.claim(1, now_s=clock() + 1_000, post_timeout_s=1.0)
        assert [one.item_id for one in batch.turns] == ["item-1", "item-2"]

    async def test_a_call_of_one_fixed_agent_is_given_its_caller(self, journal: Journal) -> None:
        """A call with a fixed agent gets a caller, but only together with that same agent."""
        fixed = AgentRef("acme", agent_id="a")
        await journal.open_call(call(ref=fixed, caller_key=""))
        assert (await journal.identify(call(ref=OTHER, caller_key="x"))).caller_key == ""
        assert (await journal.identify(call(ref=fixed, caller_key="k1"))).caller_key == "k1"
        stored = await journal.call("acme/one")
        assert stored is not None
        assert (stored.ref, stored.caller_key) == (fixed, "k1")

    async def test_a_call_that_is_not_there_is_given_no_caller(self, journal: Journal) -> None:
        """Giving a caller to a call that was never opened is an error."""
        assert await journal.call("acme/one") is None
        with pytest.raises(CallError, match="no such call"):
            await journal.identify(call())

    async def test_a_closed_call_opens_again(self, journal: Journal) -> None:
        """A call that was closed is live again when it is opened again."""
        await journal.open_call(call())
        await journal.close_call("acme/one", epoch=1, at_s=7.0)
        (row,) = await journal.calls(limit=5)
        assert row.call.closed_at_s == pytest.approx(7.0)
        assert (await journal.open_call(call())).closed_at_s is None

    async def test_unknown_calls_are_refused(self, journal: Journal) -> None:
        """A turn or a close of a call never opened is refused, and nothing of it is stored."""
        await journal.open_call(call())
        with pytest.raises(CallError) as refused:
            await journal.append([turn(1), turn(1, "ghost")])
        assert refused.value.code == "unknown_call"
        with pytest.raises(CallError):
            await journal.close_call("acme/ghost", epoch=1, at_s=1.0)
        assert await journal.turns("acme/one") == ()

    async def test_closing_twice_keeps_the_first_time(self, journal: Journal) -> None:
        """Closing a call again is no error, and keeps the first time."""
        await journal.open_call(call())
        await journal.close_call("acme/one", epoch=1, at_s=7.0)
        await journal.close_call("acme/one", epoch=1, at_s=9.0)
        (row,) = await journal.calls(limit=5)
        assert row.call.closed_at_s == pytest.approx(7.0)


class TestTurns:
    @pytest.mark.parametrize(
        "text",
        [
            "plain",
            "nul \x00 inside",
            "</turn>",
            "🙂 naïve\u2028line",
            " ",
            "x" * 100_000,
            "\ufeff",
            "'; DROP TABLE turns; --",
        ],
    )
    async def test_a_turn_comes_back_as_it_was(self, journal: Journal, text: str) -> None:
        """Every Unicode text round-trips, with all other fields of its turn."""
        said = replace(
            turn(1, text=text), interrupted=True, metrics={"stt_s": 0.25}, traceparent="00-x"
        )
        await journal.open_call(call())
        await journal.append([said])
        assert await journal.turns("acme/one") == (said,)

    async def test_a_lone_surrogate_is_refused(self, journal: Journal) -> None:
        """Text that UTF-8 cannot encode is refused as a `bad_value`, without repeating it."""
        await journal.open_call(call())
        with pytest.raises(CallError) as refused:
            await journal.append([turn(1, text="secret \ud800")])
        assert refused.value.code == "bad_value"
        assert "secret" not in str(refused.value)
        assert await journal.turns("acme/one") == ()

    async def test_a_seq_that_is_too_large_is_refused(self, journal: Journal) -> None:
        """A `seq` beyond 63 bits is refused as an error of the turn, not of the journal."""
        await journal.open_call(call())
        with pytest.raises(CallError) as refused:
            await journal.append([replace(turn(1), seq=1 << 63)])
        assert refused.value.code == "bad_value"
        await journal.append([replace(turn(1), seq=(1 << 63) - 1)])
        assert len(await journal.turns("acme/one")) == 1

    async def test_the_same_turn_twice_is_one(self, journal: Journal) -> None:
        """A turn is identified by call and item id; the first wins, and order stays."""
        await journal.open_call(call())
        await journal.append([turn(1), turn(2), turn(1, text="changed")])
        await journal.append([turn(2), turn(3)])
        assert await journal.turns("acme/one") == (turn(1), turn(2), turn(3))
        assert (await journal.counts()).turns == 3

    async def test_an_item_id_belongs_to_its_call(self, journal: Journal) -> None:
        """Two calls may use the same item ids."""
        await journal.open_call(call())
        await journal.open_call(call("two"))
        await journal.append([turn(1), turn(1, "two")])
        assert (await journal.counts()).turns == 2

    async def test_a_closed_call_still_takes_turns(self, journal: Journal, clock: Clock) -> None:
        """A late turn of a closed call is stored and due at once."""
        await journal.open_call(call())
        await journal.close_call("acme/one", epoch=1, at_s=1.0)
        await claim_none(journal, clock)
        await journal.append([turn(1)])
        assert numbers(await claim_one(journal, clock)) == [1]


class TestDue:
    async def test_enough_turns_are_due(self, journal: Journal, clock: Clock) -> None:
        """A call is due when `max_turns` of it are pending, and not before."""
        await journal.open_call(call())
        await journal.append([turn(1), turn(2)])
        await claim_none(journal, clock)
        await journal.append([turn(3)])
        assert numbers(await claim_one(journal, clock)) == [1, 2, 3]

    async def test_old_turns_are_due(self, journal: Journal, clock: Clock) -> None:
        """A call is due when its oldest pending turn was appended `max_age_s` ago."""
        await journal.open_call(call())
        await journal.append([turn(1)])
        clock.now_s += 40
        await journal.append([turn(2)])
        assert await journal.next_due_s() == pytest.approx(clock() + 20)
        clock.now_s += 19
        await claim_none(journal, clock)
        clock.now_s += 1
        assert numbers(await claim_one(journal, clock)) == [1, 2]

    async def test_a_closed_call_is_due(self, journal: Journal, clock: Clock) -> None:
        """Closing makes what is pending due at once, and the last batch says it is the last."""
        await journal.open_call(call())
        await journal.append([turn(1)])
        await claim_none(journal, clock)
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        batch = await claim_one(journal, clock)
        assert numbers(batch) == [1]
        assert batch.last_part

    async def test_an_empty_call_is_never_due(self, journal: Journal, clock: Clock) -> None:
        """A call without turns posts nothing."""
        await journal.open_call(call())
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        assert await journal.next_due_s() is None
        await claim_none(journal, clock)

    async def test_nobodys_call_is_never_due(self, journal: Journal, clock: Clock) -> None:
        """A call with neither agent nor caller is stored, never delivered, and counts as done."""
        await journal.open_call(call(ref=AgentRef("acme"), caller_key=""))
        await journal.append([turn(n) for n in range(1, 6)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        clock.now_s += 1_000
        assert await journal.next_due_s() is None
        await claim_none(journal, clock)
        assert len(await journal.turns("acme/one")) == 5
        assert (await journal.counts()).undelivered == 0
        assert await journal.lanes() == []

    async def test_a_trial_write_changes_nothing(self, journal: Journal, clock: Clock) -> None:
        """`try_write` stores no turn and makes nothing due."""
        await journal.open_call(call())
        await journal.append([turn(1)])
        before = await journal.counts(), await journal.next_due_s()
        await journal.try_write()
        assert (await journal.counts(), await journal.next_due_s()) == before

    async def test_hurry_makes_pending_turns_due(self, journal: Journal, clock: Clock) -> None:
        """`hurry` makes turns due that would otherwise have waited for more turns."""
        await journal.open_call(call())
        await journal.append([turn(1)])
        await journal.hurry(now_s=clock())
        assert numbers(await claim_one(journal, clock)) == [1]

    async def test_wait_returns_when_something_is_due_earlier(self, journal: Journal) -> None:
        """An append that makes something due ends a wait at once."""
        await journal.open_call(call())
        await journal.wait(0)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(journal.wait, 60)
                await journal.append([turn(1)])

    async def test_wait_does_not_miss_what_came_before(self, journal: Journal) -> None:
        """What became due before a wait began ends that wait too, but not each one after it."""
        await journal.open_call(call())
        await journal.append([turn(1)])
        with anyio.fail_after(5):
            await journal.wait(60)
        waits = True
        with anyio.fail_after(60):
            while waits:
                with anyio.move_on_after(0.01) as nothing_new:
                    await journal.wait(60)
                waits = not nothing_new.cancelled_caught


class TestBatches:
    async def test_a_batch_is_bounded(self, journal: Journal, clock: Clock) -> None:
        """No batch exceeds its turns or characters; the parts hold every turn once, in order."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 8)])
        await journal.append([turn(8, text="x" * 500), turn(9)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        parts: list[list[int]] = []
        finals: list[bool] = []
        for _ in range(4):
            batch = await claim_one(journal, clock)
            assert batch.part == len(parts) + 1
            parts.append(numbers(batch))
            finals.append(batch.last_part)
            await journal.settle(batch, now_s=clock())
        assert parts == [[1, 2, 3, 4, 5], [6, 7], [8], [9]]
        assert finals == [False, False, False, True]
        await claim_none(journal, clock)

    async def test_a_batch_never_changes(self, journal: Journal, clock: Clock) -> None:
        """Turns that come after sealing, and the end of the call, leave an open batch as it was."""
        await journal.open_call(call())
        await journal.append([turn(1), turn(2), turn(3)])
        first = await claim_one(journal, clock)
        await journal.append([turn(4)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        await journal.release(
            first, due_s=clock(), unknown=False, over=False, error="", now_s=clock()
        )
        again = await claim_one(journal, clock)
        assert (again.batch_id, again.turns, again.part, again.last_part, again.sealed_at_s) == (
            first.batch_id,
            first.turns,
            first.part,
            False,
            first.sealed_at_s,
        )

    async def test_one_batch_per_lane(self, journal: Journal, clock: Clock) -> None:
        """Calls of one agent go out one after another; another agent's goes out in parallel."""
        for name, ref in (("one", REF), ("two", REF), ("three", OTHER)):
            await journal.open_call(call(name, ref))
            await journal.append([turn(1, name)])
            await journal.close_call(f"acme/{name}", epoch=1, at_s=clock())
        first, other = await journal.claim(10, now_s=clock(), post_timeout_s=POST_TIMEOUT_S)
        assert {first.lane, other.lane} == {REF.lane, OTHER.lane}
        await claim_none(journal, clock)
        await journal.settle(first if first.lane == REF.lane else other, now_s=clock())
        assert (await claim_one(journal, clock)).lane == REF.lane

    async def test_the_limit_holds_and_the_longest_due_goes_first(
        self, journal: Journal, clock: Clock
    ) -> None:
        """A claim takes no more lanes than asked, in the order they became due."""
        for n in range(5):
            name = f"call-{n}"
            await journal.open_call(call(name, AgentRef("acme", agent_id=f"agent-{n}")))
            await journal.append([turn(1, name)])
            await journal.close_call(f"acme/{name}", epoch=1, at_s=clock())
            clock.now_s += 1
        taken = await journal.claim(3, now_s=clock(), post_timeout_s=POST_TIMEOUT_S)
        assert [batch.agent_id for batch in taken] == ["agent-0", "agent-1", "agent-2"]

    async def test_a_busy_lane_does_not_starve_others(self, journal: Journal, clock: Clock) -> None:
        """After a batch is settled, its lane goes behind those that wait already."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 11)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        clock.now_s += 1
        await journal.open_call(call("two", OTHER))
        await journal.append([turn(1, "two")])
        await journal.close_call("acme/two", epoch=1, at_s=clock())
        clock.now_s += 1
        (first,) = await journal.claim(1, now_s=clock(), post_timeout_s=POST_TIMEOUT_S)
        await journal.settle(first, now_s=clock())
        (second,) = await journal.claim(1, now_s=clock(), post_timeout_s=POST_TIMEOUT_S)
        assert (first.lane, second.lane) == (REF.lane, OTHER.lane)

    async def test_a_first_claim_knows_its_try(self, journal: Journal, clock: Clock) -> None:
        """A new batch has 0 tries, is not in doubt, and its horizon is the end of the post."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 4)])
        batch = await claim_one(journal, clock)
        assert (batch.attempt, batch.in_doubt, batch.call, batch.agent_id) == (
            0,
            False,
            call(),
            None,
        )
        assert batch.horizon_s == pytest.approx(clock() + POST_TIMEOUT_S)

    async def test_a_refused_try_is_counted(self, journal: Journal, clock: Clock) -> None:
        """A batch released as not taken comes back when due, with its try counted, not in doubt."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 4)])
        batch = await claim_one(journal, clock)
        await journal.release(
            batch, due_s=clock() + 9, unknown=False, over=False, error="no", now_s=clock()
        )
        (status,) = await journal.lanes()
        assert (status.state, status.attempt, status.error) == ("retry", 1, "no")
        await claim_none(journal, clock)
        clock.now_s += 9
        again = await claim_one(journal, clock)
        assert (again.attempt, again.in_doubt) == (1, False)
        assert again.horizon_s == pytest.approx(clock() + POST_TIMEOUT_S)

    async def test_an_unknown_try_keeps_its_horizon(self, journal: Journal, clock: Clock) -> None:
        """A batch in doubt comes back in doubt, with the horizon of the try in doubt."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 4)])
        batch = await claim_one(journal, clock)
        for _ in range(2):
            clock.now_s += 1
            await journal.release(
                batch, due_s=clock(), unknown=True, over=False, error="cut", now_s=clock()
            )
            again = await claim_one(journal, clock)
            assert again.in_doubt
            assert again.attempt == 1
            assert again.horizon_s == batch.horizon_s
            batch = again

    async def test_an_answer_ends_the_horizon(self, journal: Journal, clock: Clock) -> None:
        """When Letta has answered, nothing of that try can still land."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 4)])
        batch = await claim_one(journal, clock)
        await journal.release(
            batch, due_s=clock(), unknown=True, over=True, error="500", now_s=clock()
        )
        again = await claim_one(journal, clock)
        assert again.in_doubt
        assert again.horizon_s == pytest.approx(clock())

    async def test_another_try_is_recorded(self, journal: Journal, clock: Clock) -> None:
        """A resend renews the horizon and counts as a try, which may be in doubt in its turn."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 4)])
        batch = await claim_one(journal, clock)
        await journal.release(
            batch, due_s=clock(), unknown=True, over=True, error="", now_s=clock()
        )
        doubtful = await claim_one(journal, clock)
        clock.now_s += 100
        renewed = await journal.resend(doubtful, now_s=clock(), post_timeout_s=POST_TIMEOUT_S)
        assert renewed.attempt == 1
        assert renewed.horizon_s == pytest.approx(clock() + POST_TIMEOUT_S)
        assert renewed.turns == batch.turns
        await journal.release(
            renewed, due_s=clock(), unknown=True, over=False, error="", now_s=clock()
        )
        assert (await claim_one(journal, clock)).attempt == 2

    async def test_a_hold_keeps_the_lane_closed(self, journal: Journal, clock: Clock) -> None:
        """After a batch is given up with a hold, its lane is not claimed before the hold ends."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 4)])
        batch = await claim_one(journal, clock)
        await journal.retire(batch, error="", now_s=clock(), hold_until_s=clock() + 10)
        await journal.append([turn(n) for n in range(4, 7)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        await journal.hurry(now_s=clock())
        await claim_none(journal, clock)
        clock.now_s += 10
        assert numbers(await claim_one(journal, clock)) == [4, 5, 6]

    async def test_what_was_claimed_is_taken_back(self, journal: Journal, clock: Clock) -> None:
        """A batch whose claimer is gone comes back in doubt, with the horizon of its try."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(3)])
        first = await claim_one(journal, clock)
        clock.now_s += 5
        await journal.take_back(now_s=clock())
        again = await claim_one(journal, clock)
        assert again.batch_id == first.batch_id
        assert again.in_doubt
        assert again.horizon_s == first.horizon_s
        await journal.settle(again, now_s=clock())
        await journal.take_back(now_s=clock())
        await claim_none(journal, clock)

    async def test_a_new_call_makes_its_callers_earlier_words_due(
        self, journal: Journal, clock: Clock
    ) -> None:
        """When a caller calls again, the turns of the earlier call are due, and no one else's."""
        shared = AgentRef("acme", agent_id="agent-shared")
        for name, caller in (("ada", "k1"), ("bob", "k2"), ("hidden", "")):
            await journal.open_call(call(name, shared, caller))
            await journal.append([turn(1, name)])
        await claim_none(journal, clock)
        await journal.open_call(call("bob-again", shared, "k2"))
        await journal.open_call(call("hidden-again", shared, ""))
        batch = await claim_one(journal, clock)
        assert batch.call.call_id == "bob"
        await journal.settle(batch, now_s=clock())
        await claim_none(journal, clock)

    async def test_what_a_caller_said_first_goes_first(
        self, journal: Journal, clock: Clock
    ) -> None:
        """Words said earlier but stored late go before later words that are due sooner."""
        await journal.open_call(call("two"))
        await journal.open_call(call("one"))
        began_s = clock()
        clock.now_s += 60
        await journal.append([turn(50, "two", at_s=began_s + 50)])
        await journal.close_call("acme/two", epoch=1, at_s=clock())
        await journal.append([turn(20, "one", at_s=began_s + 20)])
        for said in ([20], [50]):
            batch = await claim_one(journal, clock)
            assert numbers(batch) == said
            await journal.settle(batch, now_s=clock())

    @pytest.mark.parametrize("ahead_s", [-3e7, -3_600.0, -90.0, 90.0, 3_600.0, 3e7])
    async def test_a_channels_wrong_clock_turns_no_calls_round(
        self, journal: Journal, clock: Clock, ahead_s: float
    ) -> None:
        """Of two calls the first goes first, whatever times a channel gives one of them."""
        for wrong in ("one", "two"):
            ref = AgentRef("acme", caller_key=wrong)
            for n, name in enumerate(("one", "two")):
                key = f"{wrong}-{name}"
                await journal.open_call(Call(f"acme/{key}", ref, "vapi", wrong, clock()))
                clock.now_s += 20
                at_s = clock() + (ahead_s if name == wrong else 0.0)
                await journal.append([turn(n, key, at_s=at_s)])
                await journal.close_call(f"acme/{key}", epoch=1, at_s=clock())
                clock.now_s += 20
            for n in (0, 1):
                batch = await claim_one(journal, clock)
                assert numbers(batch) == [n]
                await journal.settle(batch, now_s=clock())

    async def test_a_callers_words_wait_for_no_other_caller(
        self, journal: Journal, clock: Clock
    ) -> None:
        """On a shared agent, a call that is due does not wait for live calls of other callers."""
        shared = AgentRef("acme", agent_id="agent-shared")
        await journal.open_call(call("ada", shared, "k1"))
        await journal.append([turn(1, "ada")])
        await journal.open_call(call("bob", shared, "k2"))
        await journal.append([turn(2, "bob")])
        await journal.close_call("acme/bob", epoch=1, at_s=clock())
        batch = await claim_one(journal, clock)
        assert batch.call.call_id == "bob"

    @pytest.mark.parametrize("jump_s", [-1e9, -86_400.0, -200.0, 200.0, 86_400.0])
    async def test_a_clock_that_was_set_at_a_restart_holds_no_lane(
        self, journal: Journal, clock: Clock, jump_s: float
    ) -> None:
        """After the clock was set, each lane is tried within the waits that the policy allows."""
        for name in ("retry", "unknown", "held", "live"):
            ref = AgentRef("acme", caller_key=name)
            await journal.open_call(call(name, ref, name))
            await journal.append([turn(n, name) for n in range(3)])
        now_s = clock()
        taken = await journal.claim(9, now_s=now_s, post_timeout_s=50.0)
        by_name = {batch.call.call_id: batch for batch in taken}
        for name, due_s in (("retry", now_s + 60), ("unknown", now_s + 10)):
            await journal.release(
                by_name[name],
                due_s=due_s,
                unknown=name == "unknown",
                over=False,
                error="",
                now_s=now_s,
            )
        await journal.retire(by_name["held"], error="", now_s=now_s, hold_until_s=now_s + 50)
        await journal.append([turn(9, "held")])
        clock.now_s += jump_s
        await journal.take_back(now_s=clock(), wait_s=60.0, horizon_s=50.0)
        tried: dict[str, Batch] = {}
        for _ in range(4):
            for batch in await journal.claim(9, now_s=clock(), post_timeout_s=50.0):
                tried[batch.call.call_id] = batch
                assert batch.horizon_s <= clock() + 50.0
                assert batch.sealed_at_s <= clock()
                await journal.settle(batch, now_s=clock())
            clock.now_s += 20.0
        assert set(tried) == {"retry", "unknown", "held", "live"}

    async def test_a_split_batch_is_two_in_order(self, journal: Journal, clock: Clock) -> None:
        """A split batch comes back as two new batches in order, and each can be split again."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 6)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        whole = await claim_one(journal, clock)
        assert whole.last_part
        await journal.split(whole, now_s=clock())
        await journal.split(whole, now_s=clock())
        recent = await journal.recent(REF, caller_key="k1", except_call="", since_s=0.0, limit=99)
        assert [stored.seq for stored in recent] == [1, 2, 3, 4, 5]
        await journal.split(await claim_one(journal, clock), now_s=clock())
        parts: list[Batch] = []
        for _ in range(3):
            assert (await journal.counts()).undelivered == 5 - sum(len(p.turns) for p in parts)
            parts.append(await claim_one(journal, clock))
            await journal.settle(parts[-1], now_s=clock())
        assert [n for part in parts for n in numbers(part)] == [1, 2, 3, 4, 5]
        assert all(part.turns for part in parts)
        assert [part.last_part for part in parts] == [False, False, True]
        assert not any(part.in_doubt or part.attempt for part in parts)
        assert len({whole.batch_id, *(part.batch_id for part in parts)}) == 4
        await claim_none(journal, clock)

    async def test_settling_twice_is_once(self, journal: Journal, clock: Clock) -> None:
        """A settle whose answer was lost may be repeated, even when the next batch is under way."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 7)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        first = await claim_one(journal, clock)
        await journal.settle(first, now_s=clock())
        second = await claim_one(journal, clock)
        await journal.settle(first, now_s=clock())
        await journal.release(
            first, due_s=clock(), unknown=True, over=True, error="", now_s=clock()
        )
        await journal.retire(first, error="late", now_s=clock())
        await claim_none(journal, clock)
        assert (await journal.counts()).undelivered == len(second.turns)
        assert (await journal.counts()).dead_batches == 0


class TestDeadLetters:
    async def test_a_dead_letter_frees_its_lane(self, journal: Journal, clock: Clock) -> None:
        """A retired batch is listed, is not undelivered, and the next batch goes out."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 7)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        batch = await claim_one(journal, clock)
        await journal.retire(batch, error="400", now_s=clock())
        (letter,) = await journal.batches(states=("dead",), limit=99)
        assert await journal.batches(states=("dead",), limit=-1) == [letter]
        assert (letter.batch_id, letter.call, letter.turns, letter.error) == (
            batch.batch_id,
            "acme/one",
            5,
            "400",
        )
        counts = await journal.counts()
        assert (counts.dead_batches, counts.undelivered) == (1, 1)
        assert numbers(await claim_one(journal, clock)) == [6]

    async def test_a_replay_is_looked_up_first(self, journal: Journal, clock: Clock) -> None:
        """A replayed letter goes out again as the same batch, in doubt, behind the open one."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 7)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        dead = await claim_one(journal, clock)
        await journal.retire(dead, error="400", now_s=clock())
        following = await claim_one(journal, clock)
        clock.now_s += 8 * 86_400
        assert await journal.replay(dead.batch_id, now_s=clock())
        assert not await journal.replay(dead.batch_id, now_s=clock())
        assert await journal.batches(states=("dead",), limit=99) == []
        assert (await journal.counts()).undelivered == 6
        await claim_none(journal, clock)
        await journal.settle(following, now_s=clock())
        again = await claim_one(journal, clock)
        assert (again.batch_id, again.in_doubt, again.turns) == (dead.batch_id, True, dead.turns)
        assert again.horizon_s <= clock()
        assert (again.sealed_at_s, again.tried_since_s) == (dead.sealed_at_s, clock())
        assert dead.tried_since_s == dead.sealed_at_s
        await journal.settle(again, now_s=clock())
        assert (await journal.counts()).undelivered == 0
        await claim_none(journal, clock)

    async def test_a_dropped_letter_is_done_with(self, journal: Journal, clock: Clock) -> None:
        """A dropped letter is no longer listed, nor shown as recent, and can be erased."""
        await journal.open_call(call())
        await journal.append([turn(1)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        dead = await claim_one(journal, clock)
        await journal.retire(dead, error="400", now_s=clock())
        assert await journal.erase_settled(before_s=clock() + 1) == 0
        assert await journal.drop(dead.batch_id, now_s=clock())
        assert not await journal.drop(dead.batch_id, now_s=clock())
        assert await journal.batches(states=("dead",), limit=99) == []
        assert await journal.erase_settled(before_s=clock() + 1) == 1
        assert await journal.calls(limit=5) == []


class TestLearnt:
    async def test_an_agent_is_remembered(self, journal: Journal, clock: Clock) -> None:
        """A batch carries the learnt agent and conversation; a fixed agent needs no learning."""
        fixed = AgentRef("acme", agent_id="agent-9")
        assert await journal.agent_of(REF) is None
        await journal.learn_agent(REF, "agent-1")
        await journal.open_call(call())
        await journal.append([turn(1)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        await journal.learn_conversation("acme/one", "conv-1", agent_id="agent-1")
        assert await journal.agent_of(REF) == "agent-1"
        batch = await claim_one(journal, clock)
        assert (batch.agent_id, batch.call.conversation_id) == ("agent-1", "conv-1")
        await journal.open_call(call("two", fixed))
        await journal.append([turn(1, "two")])
        await journal.close_call("acme/two", epoch=1, at_s=clock())
        assert (await claim_one(journal, clock)).agent_id == "agent-9"

    async def test_another_agent_forgets_conversations(
        self, journal: Journal, clock: Clock
    ) -> None:
        """Learning another agent forgets the lane's conversations; learning the same keeps them."""
        await journal.open_call(call())
        await journal.open_call(call("two", OTHER))
        for key, ref in (("acme/one", REF), ("acme/two", OTHER)):
            await journal.learn_agent(ref, "agent-1")
            await journal.learn_conversation(key, "conv", agent_id="agent-1")
            await journal.learn_agent(ref, "agent-1")
        await journal.forget_agent(REF, "agent-9")
        assert await journal.agent_of(REF) == "agent-1"
        await journal.forget_agent(REF, "agent-1")
        assert await journal.agent_of(REF) is None
        two, one = await journal.calls(limit=5)
        assert (one.call.conversation_id, two.call.conversation_id) == (None, "conv")
        await journal.learn_agent(OTHER, "agent-2", instead_of="agent-1")
        two, _ = await journal.calls(limit=5)
        assert two.call.conversation_id is None

    async def test_the_first_word_counts(self, journal: Journal) -> None:
        """Of several agents or conversations that are learnt, the first stays until replaced."""
        await journal.open_call(call())

        async def conversation(conversation_id: str, *, instead_of: str = "") -> str:
            return await journal.learn_conversation(
                "acme/one", conversation_id, agent_id="agent-1", instead_of=instead_of
            )

        assert await journal.learn_agent(REF, "agent-1") == "agent-1"
        assert await conversation("conv-1") == "conv-1"
        assert await journal.learn_agent(REF, "agent-2") == "agent-1"
        assert await journal.learn_agent(REF, "agent-2", instead_of="agent-3") == "agent-1"
        assert await conversation("conv-2") == "conv-1"
        (row,) = await journal.calls(limit=5)
        assert (await journal.agent_of(REF), row.call.conversation_id) == ("agent-1", "conv-1")
        assert await conversation("conv-2", instead_of="conv-1") == "conv-2"
        assert await journal.learn_agent(REF, "agent-2", instead_of="agent-1") == "agent-2"

    async def test_a_conversation_of_another_agent_is_not_learnt(self, journal: Journal) -> None:
        """A conversation that was opened while the caller's agent was replaced is not used."""
        await journal.open_call(call())
        await journal.open_call(call("fixed", AgentRef("acme", agent_id="agent-9")))
        await journal.learn_agent(REF, "agent-2")
        for key, agent_id, expected in (
            ("acme/one", "agent-1", ""),
            ("acme/one", "agent-2", "conv"),
            ("acme/fixed", "agent-9", "conv"),
            ("acme/none", "agent-1", "conv"),
        ):
            learnt = await journal.learn_conversation(key, "conv", agent_id=agent_id)
            assert learnt == expected


class TestRecent:
    async def test_undigested_turns_of_the_same_caller(
        self, journal: Journal, clock: Clock
    ) -> None:
        """`recent` returns the turns of a caller's other calls, newest last, up to the limit."""
        await journal.open_call(call())
        await journal.open_call(call("two"))
        await journal.append([turn(1), turn(2), turn(3), turn(4, "two")])
        recent = await journal.recent(
            REF, caller_key="k1", except_call="acme/two", since_s=0.0, limit=2
        )
        assert recent == (turn(2), turn(3))

    async def test_nobody_elses(self, journal: Journal) -> None:
        """Neither another caller of the same agent, nor an anonymous one, sees these turns."""
        shared = AgentRef("acme", agent_id="agent-1")
        await journal.open_call(call(ref=shared))
        await journal.append([turn(1)])
        for ref, key in ((shared, "k2"), (shared, ""), (REF, "k1"), (AgentRef("acme"), "k1")):
            found = await journal.recent(ref, caller_key=key, except_call="", since_s=0.0, limit=9)
            assert found == (), (ref, key)

    async def test_settled_turns_leave(self, journal: Journal, clock: Clock) -> None:
        """Turns digested before the snapshot was read are left out; later ones are returned."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 4)])
        batch = await claim_one(journal, clock)
        await journal.append([turn(4)])
        clock.now_s += 5
        await journal.settle(batch, now_s=clock())

        async def shown(since_s: float) -> list[int]:
            turns = await journal.recent(
                REF, caller_key="k1", except_call="", since_s=since_s, limit=9
            )
            return [turn.seq for turn in turns]

        assert await shown(clock() - 1) == [1, 2, 3, 4]
        assert await shown(clock() + 1) == [4]

    async def test_what_settled_by_a_clock_that_was_ahead_leaves(
        self, journal: Journal, clock: Clock
    ) -> None:
        """After a restart with the clock put right, turns digested before it are left out."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 4)])
        await journal.settle(await claim_one(journal, clock), now_s=clock())
        clock.now_s -= 3_600
        await journal.take_back(now_s=clock())
        recent = await journal.recent(
            REF, caller_key="k1", except_call="", since_s=clock() + 1, limit=9
        )
        assert recent == ()

    async def test_dead_letters_are_shown(self, journal: Journal, clock: Clock) -> None:
        """Turns that Letta rejected are still returned for the prompt, so that no word is lost."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 4)])
        await journal.retire(await claim_one(journal, clock), error="400", now_s=clock())
        recent = await journal.recent(
            REF, caller_key="k1", except_call="", since_s=clock() + 99, limit=9
        )
        assert recent == (turn(1), turn(2), turn(3))


class TestTotals:
    async def test_batches_by_state(self, journal: Journal, clock: Clock) -> None:
        """Batches are listed by their state, from either end, with their outcome."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 8)])
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        first = await claim_one(journal, clock)
        (row,) = await journal.batches(states=("sealed", "sending"), limit=9)
        assert (row.batch_id, row.call, row.lane) == (first.batch_id, "acme/one", REF.lane)
        assert (row.state, row.part, row.turns, row.attempt) == ("sending", 1, 5, 1)
        assert row.ended_s is None
        await journal.settle(first, now_s=clock())
        second = await claim_one(journal, clock)
        await journal.retire(second, error="400", now_s=clock())
        rows = await journal.batches(states=("settled", "dead"), limit=9, newest_first=True)
        assert [(r.batch_id, r.state, r.ended_s, r.error) for r in rows] == [
            (second.batch_id, "dead", clock(), "400"),
            (first.batch_id, "settled", clock(), ""),
        ]
        ended = journal.batches
        assert await ended(states=("settled", "dead"), limit=1, newest_first=True) == rows[:1]
        assert await ended(states=("settled", "dead"), limit=9) == rows[::-1]

    async def test_counts_and_lanes(self, journal: Journal, clock: Clock) -> None:
        """Totals count live calls and undelivered turns with their age; lanes give their state."""
        await journal.open_call(call())
        await journal.open_call(call("two", OTHER))
        await journal.append([turn(1), turn(2), turn(3)])
        clock.now_s += 5
        await journal.append([turn(1, "two")])
        await journal.close_call("acme/two", epoch=1, at_s=clock())
        counts = await journal.counts()
        assert (counts.calls, counts.live_calls, counts.turns, counts.undelivered) == (2, 1, 4, 4)
        backlog = await journal.backlog()
        assert (backlog.undelivered, backlog.dead_batches) == (4, 0)
        assert backlog.oldest_undelivered_s == counts.oldest_undelivered_s
        assert counts.oldest_undelivered_s == pytest.approx(clock() - 5)
        for batch in await journal.claim(9, now_s=clock(), post_timeout_s=1.0):
            if batch.lane == REF.lane:
                await journal.settle(batch, now_s=clock())
        (status,) = await journal.lanes()
        assert (status.lane, status.state, status.pending, status.attempt) == (
            OTHER.lane,
            "sending",
            0,
            1,
        )
        assert status.oldest_s == pytest.approx(clock())
        assert (await journal.counts()).undelivered == 1

    async def test_live_calls(self, journal: Journal, clock: Clock) -> None:
        """The calls that are not closed are listed newest first, also one opened again."""
        for name in ("one", "two", "three"):
            await journal.open_call(call(name))
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        await journal.close_call("acme/two", epoch=1, at_s=clock())
        await journal.open_call(call("two"))
        live = await journal.calls(limit=9, live=True)
        assert [row.call.key for row in live] == ["acme/three", "acme/two"]

    async def test_retention(self, journal: Journal, clock: Clock) -> None:
        """Ended calls are erased once digested; a call left open ended with its last turn."""
        for name in ("done", "waiting", "left"):
            await journal.open_call(call(name, AgentRef("acme", agent_id=name)))
            await journal.append([turn(n, name) for n in range(1, 4)])
        for batch in await journal.claim(9, now_s=clock(), post_timeout_s=1.0):
            if batch.agent_id != "waiting":
                await journal.settle(batch, now_s=clock())
        await journal.close_call("acme/done", epoch=1, at_s=clock())
        await journal.close_call("acme/waiting", epoch=1, at_s=clock())
        assert await journal.erase_settled(before_s=clock()) == 0
        assert await journal.erase_settled(before_s=clock() + 1) == 6
        assert [row.call.call_id for row in await journal.calls(limit=9)] == ["waiting"]

    async def test_closing_twice(self, journal: Journal) -> None:
        """A journal may be closed twice."""
        await journal.aclose()
        await journal.aclose()


class TestRewriting:
    async def test_what_is_in_no_batch_is_replaced(self, journal: Journal, clock: Clock) -> None:
        """The turns after the kept ones are replaced, and the new ones are delivered in order."""
        await journal.open_call(call())
        await journal.append([turn(1), turn(2)])
        assert (
            await journal.rewrite(
                "acme/one", [turn(2, text="as heard"), turn(3)], unchanged=1, epoch=1
            )
            == 0
        )
        assert [t.text for t in await journal.turns("acme/one")] == ["hello", "as heard", "hello"]
        assert numbers(await claim_one(journal, clock)) == [1, 2, 3]

    async def test_what_is_in_a_batch_never_changes(self, journal: Journal, clock: Clock) -> None:
        """A rewrite that reaches into a batch changes nothing; it returns how far batches reach."""
        await journal.open_call(call())
        await journal.append([turn(n) for n in range(1, 4)])
        batch = await claim_one(journal, clock)
        await journal.append([turn(4)])
        assert await journal.rewrite("acme/one", [turn(9)], unchanged=2, epoch=1) == 3
        assert [t.seq for t in await journal.turns("acme/one")] == [1, 2, 3, 4]
        assert await journal.rewrite("acme/one", [turn(9)], unchanged=3, epoch=1) == 3
        await journal.settle(batch, now_s=clock())
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        assert numbers(await claim_one(journal, clock)) == [9]

    async def test_it_waits_no_longer_than_what_it_replaces(
        self, journal: Journal, clock: Clock
    ) -> None:
        """Turns that are rewritten again and again are still delivered in time."""
        await journal.open_call(call())
        await journal.append([turn(1)])
        for mended in range(1, 4):
            clock.now_s += 20.0
            await journal.rewrite(
                "acme/one", [turn(1, text=f"mended {mended}")], unchanged=0, epoch=1
            )
        assert [t.text for t in (await claim_one(journal, clock)).turns] == ["mended 3"]

    async def test_taking_all_back_leaves_nothing_due(self, journal: Journal, clock: Clock) -> None:
        """A call whose pending turns were all withdrawn has nothing to deliver."""
        await journal.open_call(call())
        await journal.append([turn(1)])
        await journal.rewrite("acme/one", [], unchanged=0, epoch=1)
        await journal.close_call("acme/one", epoch=1, at_s=clock())
        await claim_none(journal, clock)
        assert (await journal.counts()).undelivered == 0

    async def test_a_call_of_nobody_may_be_rewritten(self, journal: Journal, clock: Clock) -> None:
        """A call that is never delivered may be rewritten at any time."""
        await journal.open_call(call("anon", AgentRef("acme"), ""))
        await journal.append([turn(1, "anon"), turn(2, "anon")])
        assert await journal.rewrite("acme/anon", [turn(5, "anon")], unchanged=1, epoch=1) == 0
        assert [t.seq for t in await journal.turns("acme/anon")] == [1, 5]
        await claim_none(journal, clock)
        assert (await journal.counts()).undelivered == 0

    async def test_an_unknown_call_is_refused(self, journal: Journal) -> None:
        """Only a call that was opened can be rewritten."""
        with pytest.raises(CallError):
            await journal.rewrite("acme/ghost", [], unchanged=0, epoch=1)


async def test_a_closed_journal_takes_nothing(journal: Journal) -> None:
    """After `aclose`, which may be repeated, nothing is written or read any more."""
    await journal.aclose()
    await journal.aclose()
    for ask in (lambda: journal.open_call(call()), journal.counts):
        with pytest.raises(JournalError):
            await ask()
