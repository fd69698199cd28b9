"""The time of day as a running process may use it: it never jumps."""

import time
from collections.abc import Callable


class SteadyClock:
    """Unix time that goes on at the pace of the monotonic clock, whatever is done to the wall's.

    Every due time, horizon and age in one process comes from one of these, so that setting the
    clock neither holds deliveries back nor makes a post look older than it is. It differs from
    the wall clock by the jumps since it was built; a restart takes the new time. So what the
    world outside has dated (a signature, a file, a run of Letta's, a day's budget) is compared
    with `time.time`, never with this.

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

    def __call__(self) -> float:
        """Return Unix time in seconds."""
        return self._offset_s + self._monotonic()
