"""The state table of a batch, and a state machine that runs it with random faults."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from typing_extensions import override

from sidecar.delivery.decisions import (
    DeliveryPolicy,
    Facts,
    LookUp,
    Outcome,
    Release,
    Retire,
    Send,
    Settle,
    Split,
    Step,
    decide,
)
from sidecar.journal.states import TRANSITIONS, BatchEvent, State, after
from tests.playbook import Playbook

pytestmark = pytest.mark.unit

POLICY = DeliveryPolicy(post_timeout_s=30.0, grace_s=5.0)
FRESH = Facts(attempt=0, in_doubt=False, horizon_s=35.0, tried_since_s=0.0)
DOUBTFUL = replace(FRESH, in_doubt=True, attempt=1)
ENDS = {State.SETTLED, State.DROPPED}
NOT_TAKEN = [
    BatchEvent.REFUSED,
    BatchEvent.BUSY,
    BatchEvent.DENIED,
    BatchEvent.AGENT_GONE,
    BatchEvent.NO_AGENT,
    BatchEvent.UNADDRESSED,
]


def step(facts: Facts, event: BatchEvent, *, now_s: float = 1.0, **outcome: Any) -> Step:
    return decide(facts, Outcome(event, **outcome), now_s=now_s, dice=0.5, policy=POLICY)


class TestTable:
    def test_no_state_is_a_dead_end(self) -> None:
        """Every state except the final ones has a next state, and every state can be reached."""
        sources = {state for state, _ in TRANSITIONS}
        assert set(State) - sources == ENDS
        assert set(State) == set(TRANSITIONS.values())

    def test_an_impossible_event_is_refused(self) -> None:
        """An event that can't happen in a state raises an error."""
        with pytest.raises(ValueError, match="settled"):
            after(State.SETTLED, BatchEvent.SENT)
        with pytest.raises(ValueError, match="sending"):
            step(FRESH, BatchEvent.FOUND)

    def test_doubt_ends_only_by_a_look_up_or_an_answer(self) -> None:
        """From `unknown` a batch is sent again only once it is absent for good."""
        ways_out = {
            event: to
            for (state, event), to in TRANSITIONS.items()
            if state is State.UNKNOWN and to is not State.UNKNOWN
        }
        assert ways_out == {
            BatchEvent.FOUND: State.SETTLED,
            BatchEvent.DIGESTED: State.SETTLED,
            BatchEvent.ABSENT_FOR_GOOD: State.SEALED,
            BatchEvent.REJECTED_FOR_GOOD: State.DEAD,
            BatchEvent.EXPIRED: State.DEAD,
            BatchEvent.SPLIT: State.PENDING,
        }


@dataclass(frozen=True)
class At:
    """What happens to a batch, and when (seconds)."""

    now_s: float
    event: BatchEvent
    retry_after_s: float | None = None

    @override
    def __str__(self) -> str:
        asked = "" if self.retry_after_s is None else f", retry after {self.retry_after_s:g} s"
        return f"{self.now_s:g} s: {self.event.value}{asked}"


class Claimable:
    """A batch, with what the journal and the relay keep of it between steps.

    It is claimed with `BatchEvent.CLAIMED`. Without jitter, every wait is half of its ceiling.
    """

    def __init__(self, *, turns: int = 1) -> None:
        self._turns = turns
        self._tries = self._rejections = 0
        self._in_doubt = False
        self._horizon_s = 0.0
        self._facts = FRESH

    def __call__(self, happens: At) -> list[Step]:
        if happens.event is BatchEvent.CLAIMED:
            self._facts = replace(FRESH, attempt=self._tries, in_doubt=self._in_doubt)
            if not self._in_doubt:
                self._record(happens.now_s)
        facts = replace(
            self._facts,
            horizon_s=self._horizon_s,
            rejections=self._rejections,
            turns=self._turns,
        )
        outcome = Outcome(happens.event, retry_after_s=happens.retry_after_s)
        done = decide(facts, outcome, now_s=happens.now_s, dice=0.0, policy=POLICY)
        self._rejections += happens.event is BatchEvent.REJECTED
        match done:
            case Send(record_anew=True):
                self._record(happens.now_s)
            case Release():
                self._in_doubt = done.unknown
                if done.over:
                    self._horizon_s = min(self._horizon_s, happens.now_s)
            case _:
                pass
        return [done]

    def _record(self, now_s: float) -> None:
        self._tries += 1
        self._horizon_s = now_s + POLICY.horizon_s


def a_batch(*, turns: int = 1) -> Playbook[At, Step]:
    return Playbook(Claimable(turns=turns))


def again(due_s: float, *, unknown: bool = False, over: bool = True) -> Release:
    near: Any = pytest.approx(due_s)  # stands for a float
    return Release(near, unknown=unknown, over=over)


class TestScripts:
    """What happens to one batch, step by step."""

    def test_a_fresh_batch_is_sent_and_settled(self) -> None:
        """A batch not in doubt is sent without a look-up, and settles when its post returns."""
        assert (
            a_batch()
            >> At(0.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(1.0, BatchEvent.DIGESTED)
            << Settle()
        )

    def test_a_lost_batch_is_looked_up_and_found(self) -> None:
        """A batch whose try may have landed is looked up, not sent again, and may be found."""
        assert (
            a_batch()
            >> At(0.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(10.0, BatchEvent.LOST)
            << again(10.25, unknown=True, over=False)
            >> At(10.25, BatchEvent.CLAIMED)
            << LookUp()
            >> At(10.5, BatchEvent.RUNNING)
            << again(13.125, unknown=True, over=False)
            >> At(13.125, BatchEvent.CLAIMED)
            << LookUp()
            >> At(13.25, BatchEvent.FOUND)
            << Settle()
        )

    def test_absent_counts_past_the_horizon_alone(self) -> None:
        """Absent is final only after the horizon of 35 s, and is looked up right after it."""
        assert (
            a_batch()
            >> At(0.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(30.0, BatchEvent.LOST)
            << again(30.25, unknown=True, over=False)
            >> At(34.5, BatchEvent.CLAIMED)
            << LookUp()
            >> At(34.5, BatchEvent.ABSENT)
            << again(35.01, unknown=True, over=False)
            >> At(35.0, BatchEvent.CLAIMED)
            << LookUp()
            >> At(35.0, BatchEvent.ABSENT)
            << Send(record_anew=True)
            >> At(36.0, BatchEvent.DIGESTED)
            << Settle()
        )

    def test_an_answer_ends_a_horizon(self) -> None:
        """After a try answered with an error, an absent batch is sent again at once."""
        assert (
            a_batch()
            >> At(0.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(1.0, BatchEvent.FAILED)
            << again(1.05, unknown=True)
            >> At(1.05, BatchEvent.CLAIMED)
            << LookUp()
            >> At(1.1, BatchEvent.ABSENT)
            << Send(record_anew=True)
            >> At(2.0, BatchEvent.DIGESTED)
            << Settle()
        )

    def test_a_busy_agent_may_be_busy_with_the_very_batch(self) -> None:
        """A refusal does not end an earlier doubt: the batch is looked up again."""
        assert (
            a_batch()
            >> At(0.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(0.1, BatchEvent.BUSY)
            << again(0.35)
            >> At(1.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(2.0, BatchEvent.LOST)
            << again(2.25, unknown=True, over=False)
            >> At(36.0, BatchEvent.CLAIMED)
            << LookUp()
            >> At(36.0, BatchEvent.ABSENT)
            << Send(record_anew=True)
            >> At(36.1, BatchEvent.BUSY)
            << again(37.1, unknown=True)
            >> At(37.1, BatchEvent.CLAIMED)
            << LookUp()
            >> At(37.2, BatchEvent.FOUND)
            << Settle()
        )

    def test_retry_after_is_followed_within_bounds(self) -> None:
        """Letta's `Retry-After` counts where it is longer than our wait, up to five minutes."""
        assert (
            a_batch()
            >> At(0.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(1.0, BatchEvent.REFUSED, retry_after_s=20.0)
            << again(21.0)
            >> At(21.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(22.0, BatchEvent.REFUSED, retry_after_s=86_400.0)
            << again(322.0)
        )

    def test_the_third_rejection_is_a_dead_letter(self) -> None:
        """Two rejections are tried again, and the third makes a dead letter."""
        assert (
            a_batch()
            >> At(0.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(1.0, BatchEvent.REJECTED)
            << again(1.25)
            >> At(2.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(3.0, BatchEvent.REJECTED)
            << again(3.5)
            >> At(4.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(5.0, BatchEvent.REJECTED)
            << Retire()
        )

    @pytest.mark.parametrize(("turns", "end"), [(2, Split()), (1, Retire())])
    def test_what_is_too_large_is_split_down_to_one_turn(self, turns: int, end: Step) -> None:
        """A batch that is too large is split in half, in doubt or not; one turn is given up."""
        assert (
            a_batch(turns=turns)
            >> At(0.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(1.0, BatchEvent.TOO_LARGE)
            << end
        )
        assert (
            a_batch(turns=turns)
            >> At(0.0, BatchEvent.CLAIMED)
            << Send(record_anew=False)
            >> At(1.0, BatchEvent.FAILED)
            << again(1.05, unknown=True)
            >> At(2.0, BatchEvent.CLAIMED)
            << LookUp()
            >> At(2.0, BatchEvent.ABSENT)
            << Send(record_anew=True)
            >> At(3.0, BatchEvent.TOO_LARGE)
            << end
        )


class TestDecide:
    @pytest.mark.parametrize("now_s", [10.0, 40.0])
    def test_found_frees_the_lane_at_once(self, now_s: float) -> None:
        """A found batch settles at once, without waiting for its horizon."""
        assert step(DOUBTFUL, BatchEvent.FOUND, now_s=now_s) == Settle()

    def test_a_batch_given_up_in_doubt_keeps_its_lane_to_the_horizon(self) -> None:
        """A batch given up while its try may still run holds its lane until the horizon."""
        late_s = POLICY.give_up_s + 1.0
        out = replace(DOUBTFUL, horizon_s=late_s + 20.0)
        assert step(out, BatchEvent.RUNNING, now_s=late_s) == Retire(hold_until_s=late_s + 20.0)
        assert step(out, BatchEvent.FAILED, now_s=late_s) == Retire()

    @pytest.mark.parametrize("event", [BatchEvent.LOST, BatchEvent.FAILED])
    def test_an_unknown_outcome_leaves_doubt(self, event: BatchEvent) -> None:
        """A try with an unknown outcome is looked up, and only an answer ends its horizon."""
        released = step(FRESH, event)
        assert isinstance(released, Release)
        assert released.unknown
        assert released.over is (event is BatchEvent.FAILED)

    @pytest.mark.parametrize("event", NOT_TAKEN)
    def test_not_taken_is_tried_again(self, event: BatchEvent) -> None:
        """A batch that Letta did not take is due again later, without doubt."""
        released = step(FRESH, event)
        assert isinstance(released, Release)
        assert not released.unknown
        assert released.due_s > 1.0

    @pytest.mark.parametrize("event", NOT_TAKEN)
    def test_not_taken_does_not_clear_an_earlier_doubt(self, event: BatchEvent) -> None:
        """A refused batch stays in doubt if it was, as the agent may be busy with that batch."""
        released = step(DOUBTFUL, event)
        assert isinstance(released, Release)
        assert released.unknown

    def test_busy_is_tried_again_soon(self) -> None:
        """A batch refused as busy is due again within 0.25 to 5 s, after any number of tries."""
        for attempt in range(30):
            released = step(replace(FRESH, attempt=attempt), BatchEvent.BUSY)
            assert isinstance(released, Release)
            assert 0.25 <= released.due_s - 1.0 <= 5.0

    def test_denied_is_patient(self) -> None:
        """A denied batch is tried again slowly, at most a minute apart, however often."""
        waits: list[float] = []
        for attempt in range(20):
            released = step(replace(FRESH, attempt=attempt), BatchEvent.DENIED)
            assert isinstance(released, Release)
            waits.append(released.due_s - 1.0)
        assert waits[0] > 3.0
        assert max(waits) <= 60.0

    @pytest.mark.parametrize("event", [*NOT_TAKEN, BatchEvent.LOST, BatchEvent.FAILED])
    def test_a_week_is_enough(self, event: BatchEvent) -> None:
        """A batch older than the give-up age is given up when a try fails, and not before a try."""
        late_s = POLICY.give_up_s + 1.0
        assert step(FRESH, BatchEvent.CLAIMED, now_s=late_s) == Send(record_anew=False)
        assert step(FRESH, BatchEvent.DIGESTED, now_s=late_s) == Settle()
        assert step(FRESH, event, now_s=late_s) == Retire()

    @given(
        st.sampled_from([*NOT_TAKEN, BatchEvent.LOST, BatchEvent.FAILED, BatchEvent.REJECTED]),
        st.integers(0, 10_000),
        st.floats(0, 1, exclude_max=True),
        st.booleans(),
    )
    def test_every_wait_is_bounded(
        self, event: BatchEvent, attempt: int, dice: float, in_doubt: bool
    ) -> None:
        """Every wait is more than zero and at most a minute."""
        facts = replace(FRESH, attempt=attempt, in_doubt=in_doubt)
        released = decide(facts, Outcome(event), now_s=1.0, dice=dice, policy=POLICY)
        assert isinstance(released, Release)
        assert 0.0 < released.due_s - 1.0 <= POLICY.retry_cap_s


# A state machine around the table: lanes with batches, and a Letta that is honest but unreliable.

LANES = 2
PER_LANE = 3
FAULTS = st.sampled_from(
    [
        "fine",
        "refused",
        "busy",
        "lost",
        "lost_landed",
        "long",
        "late",
        "failed",
        "failed_landed",
        "gone",
    ]
)


@dataclass
class StoredBatch:
    """A batch as a journal keeps it."""

    number: int
    lane: int
    state: State = State.SEALED
    attempt: int = 0
    horizon_s: float = 0.0
    due_s: float = 0.0


@dataclass
class Oracle:
    """A Letta that stores whatever arrives, twice if it comes twice, and can find it.

    `tries` holds when each try reached it, when it landed, and the batch. A look-up does not find a
    try that is still on its way, as on a slow network.
    """

    tries: list[tuple[float, float, StoredBatch]] = field(
        default_factory=list[tuple[float, float, StoredBatch]]
    )

    def find(self, batch: StoredBatch, *, now_s: float) -> BatchEvent:
        known = [lands_s for begins_s, lands_s, b in self.tries if b is batch and begins_s <= now_s]
        if any(lands_s > now_s for lands_s in known):
            return BatchEvent.RUNNING
        return BatchEvent.FOUND if known else BatchEvent.ABSENT

    def of_lane(self, lane: int) -> list[tuple[float, float, StoredBatch]]:
        return sorted((t for t in self.tries if t[2].lane == lane), key=lambda t: t[:2])


class Deliveries(RuleBasedStateMachine):
    """Claims, faults, crashes and waits in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.letta = Oracle()
        self.lanes: list[list[StoredBatch]] = []

    @initialize()
    def fill(self) -> None:
        self.lanes = [
            [StoredBatch(lane * PER_LANE + n, lane) for n in range(PER_LANE)]
            for lane in range(LANES)
        ]

    def head(self, lane: int) -> StoredBatch | None:
        return next((b for b in self.lanes[lane] if b.state is not State.SETTLED), None)

    @rule(lane=st.integers(0, LANES - 1), fault=FAULTS, dice=st.floats(0, 1, exclude_max=True))
    def deliver(self, lane: int, fault: str, dice: float) -> None:
        self.attempt(lane, fault, dice)

    @rule(lane=st.integers(0, LANES - 1), landed=st.booleans())
    def crash_while_sending(self, lane: int, landed: bool) -> None:
        self.attempt(lane, "crash_landed" if landed else "crash", 0.5)

    @rule(lane=st.integers(0, LANES - 1))
    def crash_after_the_look(self, lane: int) -> None:
        """The process dies after a look-up, before it acts on the answer."""
        batch = self.head(lane)
        if batch is not None and batch.state is State.UNKNOWN:
            self.letta.find(batch, now_s=self.now_s)

    @rule(by_s=st.floats(0.01, 40.0))
    def time_passes(self, by_s: float) -> None:
        self.now_s += by_s

    def attempt(self, lane: int, fault: str, dice: float) -> None:
        """Claim the lane's batch, if it is due, and take every step of that claim."""
        batch = self.head(lane)
        if batch is None or batch.due_s > self.now_s:
            return
        in_doubt = batch.state is State.UNKNOWN
        facts_attempt = batch.attempt
        if not in_doubt:
            batch.state = after(batch.state, BatchEvent.SENT)
            batch.attempt += 1
            batch.horizon_s = self.now_s + POLICY.horizon_s
        outcome = Outcome(BatchEvent.CLAIMED)
        while True:
            facts = Facts(facts_attempt, in_doubt, batch.horizon_s, 0.0)
            following = decide(facts, outcome, now_s=self.now_s, dice=dice, policy=POLICY)
            match following:
                case LookUp():
                    outcome = Outcome(self.letta.find(batch, now_s=self.now_s))
                case Send(record_anew):
                    if record_anew:
                        batch.attempt += 1
                        batch.horizon_s = self.now_s + POLICY.horizon_s
                    if fault.startswith("crash"):
                        self.send(batch, fault)
                        batch.state = State.UNKNOWN
                        batch.due_s = self.now_s
                        return
                    outcome = Outcome(self.send(batch, fault))
                case _:
                    self.end(batch, following)
                    return

    def end(self, batch: StoredBatch, following: Settle | Release | Retire | Split) -> None:
        match following:
            case Settle():
                batch.state = State.SETTLED
            case Release(due_s, unknown, over):
                batch.state = State.UNKNOWN if unknown else State.RETRY
                batch.due_s = due_s
                if over:
                    batch.horizon_s = min(batch.horizon_s, self.now_s)
            case Retire() | Split():
                raise AssertionError("nothing here is rejected or a week old")

    def send(self, batch: StoredBatch, fault: str) -> BatchEvent:
        now_s = self.now_s
        match fault:
            case "fine":
                self.letta.tries.append((now_s, now_s + 1.0, batch))
                self.now_s += 1.0
                return BatchEvent.DIGESTED
            case "refused":
                return BatchEvent.REFUSED
            case "busy":
                return BatchEvent.BUSY
            case "gone":
                return BatchEvent.CONVERSATION_GONE
            case "lost_landed" | "crash_landed":
                self.letta.tries.append((now_s, now_s + 0.5, batch))
                return BatchEvent.LOST
            case "long":
                # The client is cut off at once, and the server works on until the deadline.
                self.letta.tries.append((now_s, now_s + POLICY.post_timeout_s, batch))
                return BatchEvent.LOST
            case "late":
                self.letta.tries.append((now_s + 20.0, now_s + 21.0, batch))
                return BatchEvent.LOST
            case "failed_landed":
                self.letta.tries.append((now_s, now_s, batch))
                return BatchEvent.FAILED
            case "failed":
                return BatchEvent.FAILED
            case _:
                return BatchEvent.LOST

    @invariant()
    def never_doubled(self) -> None:
        numbers = [batch.number for _, _, batch in self.letta.tries]
        assert len(numbers) == len(set(numbers))

    @invariant()
    def never_two_at_work_in_a_lane(self) -> None:
        for lane in range(LANES):
            tries = self.letta.of_lane(lane)
            for (_, lands_s, _), (begins_s, _, _) in pairwise(tries):
                assert lands_s <= begins_s

    @invariant()
    def never_out_of_order(self) -> None:
        for lane in range(LANES):
            numbers = [batch.number for _, _, batch in self.letta.of_lane(lane)]
            assert numbers == sorted(numbers)

    @invariant()
    def never_lost(self) -> None:
        landed = {batch.number for _, _, batch in self.letta.tries}
        for lane in self.lanes:
            for batch in lane:
                assert batch.state is not State.SETTLED or batch.number in landed

    @override
    def teardown(self) -> None:
        """Once Letta works again, all is delivered within a bounded time."""
        if not self.lanes:
            return
        deadline_s = self.now_s + 10 * PER_LANE * POLICY.horizon_s
        while any(self.head(lane) for lane in range(LANES)):
            assert self.now_s < deadline_s, "delivery did not come to an end"
            for lane in range(LANES):
                self.attempt(lane, "fine", 0.5)
            self.now_s += 0.5
        assert {batch.number for _, _, batch in self.letta.tries} == set(range(LANES * PER_LANE))
        self.never_doubled()


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
