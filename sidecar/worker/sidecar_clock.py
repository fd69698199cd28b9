"""The sidecar's clock, as a worker on another machine knows it. Pure."""

from typing import Final

TOLERATED_S: Final = 1.0
"""Clocks that differ by less count as equal: on a slow link the measurement is no better."""


class SidecarClock:
    """Computes how far the sidecar's clock is ahead of the worker's own, once a `welcome` came.

    Turns of calls in several workers are ordered by their times, so all workers use the sidecar's
    clock. After a `welcome` it advances with the monotonic clock: setting the worker's clock moves
    the worker's own times, but not the sidecar's.
    """

    def __init__(self) -> None:
        self._at_s: float | None = None
        self._tolerated_s = TOLERATED_S

    @property
    def known(self) -> bool:
        """Whether a sidecar has sent its clock."""
        return self._at_s is not None

    def set(self, unix_s: float, *, asked_s: float, answered_s: float) -> None:
        """Take the sidecar's clock from a `welcome`.

        Args:
            unix_s: What the clock showed at some moment between the next two.
            asked_s: Monotonic time at which the `hello` was sent.
            answered_s: Monotonic time at which the `welcome` came.
        """
        doubt_s = (answered_s - asked_s) / 2
        self._at_s = unix_s - (asked_s + doubt_s)
        self._tolerated_s = TOLERATED_S + doubt_s

    def ahead_s(self, *, unix_s: float, now_s: float) -> float:
        """Return the seconds to add to a time of the worker's own; 0 for clocks that agree.

        Args:
            unix_s: What the worker's own clock shows.
            now_s: Monotonic time.
        """
        if self._at_s is None:
            return 0.0
        ahead_s = self._at_s + now_s - unix_s
        return ahead_s if abs(ahead_s) > self._tolerated_s else 0.0
