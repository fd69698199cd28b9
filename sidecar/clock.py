"""The time of day for a running process: it never jumps."""

import time
from collections.abc import Callable


class SteadyClock:
    """Unix time that advances with the monotonic clock, whatever is done to the wall clock.

    Every due time, horizon and age in one process comes from one of these, so that setting the
    clock neither delays deliveries nor makes a post look older than it is. It differs from the
    wall clock by the jumps since it was built; a restart takes the new time. So compare times that
    come from outside (of a signature, a file, a run of Letta's, a day's budget) with `time.time`,
    never with this.

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
