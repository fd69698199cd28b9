"""A circuit breaker and a backoff. Pure: the clock and the dice are arguments."""

import math
from dataclasses import dataclass


def backoff_s(attempt: int, *, base_s: float, cap_s: float, dice: float) -> float:
    """Return the wait before try `attempt` (1 is the first retry): full jitter, capped.

    Args:
        attempt: How many tries have failed.
        base_s: Ceiling of the first wait; it doubles with each attempt.
        cap_s: No ceiling is higher.
        dice: In [0, 1).
    """
    ceiling = min(cap_s, base_s * 2 ** min(max(attempt - 1, 0), 30))
    return ceiling * (0.5 + dice / 2)


@dataclass(slots=True)
class Breaker:
    """Closed until `failure_limit` failures in a row; then one probe per cool-down.

    A failure counts only if its call began after the last verdict: of many calls under way when an
    endpoint failed, those that end later bring no news, neither while the breaker is open nor once
    a later call has succeeded.

    Attributes:
        failure_limit: Failures in a row that open it.
        cool_s: First cool-down in seconds; doubles with each failed probe.
        cool_cap_s: No cool-down is longer.
    """

    failure_limit: int = 5
    cool_s: float = 1.0
    cool_cap_s: float = 30.0
    _failures: int = 0
    _open_until_s: float = 0.0
    _counts_from_s: float = -math.inf
    _probing: bool = False

    @property
    def is_open(self) -> bool:
        """Whether calls are being refused, except for the probes."""
        return self._failures >= self.failure_limit

    @property
    def failing(self) -> bool:
        """Whether the last call that counted has failed."""
        return self._failures > 0

    def admits(self, *, now_s: float) -> bool:
        """Return whether a call may be made now; while the breaker is open, it is the probe."""
        if not self.is_open:
            return True
        if self._probing or now_s < self._open_until_s:
            return False
        self._probing = True
        return True

    def retry_in_s(self, *, now_s: float) -> float:
        """Return the seconds until the next probe is admitted; 0 while closed."""
        return max(0.0, self._open_until_s - now_s) if self.is_open else 0.0

    def succeeded(self, *, now_s: float) -> bool:
        """Close the breaker; return whether it was open."""
        was_open = self.is_open
        self._failures = 0
        self._counts_from_s = now_s
        self._probing = False
        return was_open

    def failed(self, *, now_s: float, began_s: float) -> bool:
        """Count a failure of a call that began at `began_s`; return whether that opened it."""
        if began_s < self._counts_from_s:
            return False
        self._failures += 1
        self._probing = False
        if not self.is_open:
            return False
        over = self._failures - self.failure_limit
        self._open_until_s = now_s + min(self.cool_cap_s, self.cool_s * 2 ** min(over, 30))
        self._counts_from_s = self._open_until_s
        return over == 0

    def abandoned(self) -> None:
        """The admitted call ended without a verdict (cancelled): free the probe."""
        self._probing = False
