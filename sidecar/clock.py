"""The time of day for a running process: it jumps with no setting of a clock."""

import time
from collections.abc import Callable

_APART_S = 0.25
"""Less is no difference of clocks: an answer of a database takes that long."""


class SteadyClock:
    """Unix time that advances with the monotonic clock, whatever is done to the wall clock.

    Every due time, horizon and age in one process comes from one of these, so that setting the
    clock neither delays deliveries nor makes a post look older than it is. It differs from the
    wall clock by the jumps since it was built; a restart takes the new time. Processes that share
    a database follow its time, since each reads due times and horizons which another one stored.
    So compare times that come from outside (of a signature, a file, a run of Letta's, a day's
    budget) with `time.time`, never with this.

    Args:
        wall: Unix time, read once.
        monotonic: Seconds that never go back.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._offset_s = wall() - monotonic()

    def follow(self, offset_s: float) -> None:
        """Take another's time, unless this is near it; from any thread.

        Args:
            offset_s: Unix time there less what the monotonic clock showed here at that moment. It
                stays right however late it comes: a process may be frozen at any point.
        """
        if abs(offset_s - self._offset_s) > _APART_S:
            self._offset_s = offset_s

    def __call__(self) -> float:
        """Return Unix time in seconds."""
        return self._offset_s + self._monotonic()
