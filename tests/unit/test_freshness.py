"""How fresh a snapshot is, and the breaker and the backoff of reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.breaker import Breaker, backoff_s
from sidecar.memory.freshness import FreshnessPolicy, age_s, judge

pytestmark = pytest.mark.unit

ORDER = ["fresh", "stale", "expired"]


@given(
    st.floats(0, 1e10),
    st.floats(-1e6, 1e9),
    st.floats(0, 100),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
)
def test_a_snapshot_never_gets_fresher_with_time(
    read_at_s: float, age: float, fresh_s: float, more_s: float, later_s: float
) -> None:
    """Without a new read a snapshot never becomes fresher, even when the clock is set back."""
    policy = FreshnessPolicy(fresh_s, fresh_s + more_s)
    now_s = read_at_s + age
    first = judge(read_at_s, now_s=now_s, policy=policy)
    later = judge(read_at_s, now_s=now_s + later_s, policy=policy)
    assert ORDER.index(first) <= ORDER.index(later)
    assert age_s(read_at_s, now_s=now_s) >= 0


@given(st.floats(0, 1e10), st.floats(0, 1e9), st.floats(0, 100))
def test_what_is_outdated_is_never_fresh(read_at_s: float, age: float, fresh_s: float) -> None:
    """An outdated snapshot is never fresh, however young it is."""
    policy = FreshnessPolicy(fresh_s)
    assert judge(read_at_s, now_s=read_at_s + age, policy=policy, outdated=True) != "fresh"


def test_no_snapshot_is_absent() -> None:
    """Without a read the snapshot is absent, not stale."""
    assert judge(None, now_s=5.0, policy=FreshnessPolicy()) == "absent"


@given(st.integers(1, 200), st.floats(0, 0.999), st.floats(0.01, 10), st.floats(0.01, 100))
def test_a_backoff_stays_within_its_cap(
    attempt: int, dice: float, base_s: float, cap_s: float
) -> None:
    """Every wait is longer than zero and at most the cap."""
    assert 0 < backoff_s(attempt, base_s=base_s, cap_s=cap_s, dice=dice) <= cap_s


class BreakerMachine(RuleBasedStateMachine):
    """Overlapping calls with random ends and times, checked against what a breaker promises."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(failure_limit=3, cool_s=1.0, cool_cap_s=8.0)
        self.now_s = 0.0
        self.in_a_row = 0
        self.counts_from_s = 0.0
        self.under_way: list[float] = []
        self.probe: float | None = None

    @rule(step_s=st.floats(0, 20))
    def time_passes(self, step_s: float) -> None:
        self.now_s += step_s

    @rule()
    def begin(self) -> None:
        admitted = self.breaker.admits(now_s=self.now_s)
        if self.in_a_row < 3:
            assert admitted
            self.under_way.append(self.now_s)
        elif admitted:
            assert self.probe is None, "one probe at a time"
            self.probe = self.now_s

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), ok=st.booleans())
    def end(self, data: st.DataObject, *, ok: bool) -> None:
        began_s = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        self._ended(began_s, ok=ok)

    @precondition(lambda self: self.probe is not None)
    @rule(outcome=st.sampled_from(["ok", "fail", "abandon"]))
    def end_probe(self, outcome: str) -> None:
        assert self.probe is not None
        began_s, self.probe = self.probe, None
        if outcome == "abandon":
            self.breaker.abandoned()
        else:
            self._ended(began_s, ok=outcome == "ok")

    def _ended(self, began_s: float, *, ok: bool) -> None:
        shut_s = self.breaker.retry_in_s(now_s=self.now_s)
        if ok:
            self.breaker.succeeded(now_s=self.now_s)
            self.in_a_row, self.counts_from_s = 0, self.now_s
            if self.probe is not None:  # from now on a call like any other
                self.under_way.append(self.probe)
                self.probe = None
            return
        self.breaker.failed(now_s=self.now_s, began_s=began_s)
        if began_s < self.counts_from_s:
            assert self.breaker.retry_in_s(now_s=self.now_s) == shut_s
            return
        self.in_a_row += 1
        if self.in_a_row >= 3:
            self.counts_from_s = self.now_s + self.breaker.retry_in_s(now_s=self.now_s)

    @invariant()
    def never_shut_for_longer_than_the_cap(self) -> None:
        assert self.breaker.retry_in_s(now_s=self.now_s) <= 8.0 + 1e-9  # for rounding
        assert self.breaker.is_open == (self.in_a_row >= 3)


TestBreaker = BreakerMachine.TestCase
