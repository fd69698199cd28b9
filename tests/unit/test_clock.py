"""The clock that due times come from."""

import pytest

from sidecar.clock import SteadyClock

pytestmark = pytest.mark.unit


class Times:
    """What a machine shows."""

    def __init__(self) -> None:
        self.wall_s = 1_000.0
        self.monotonic_s = 5.0

    def clock(self) -> SteadyClock:
        return SteadyClock(wall=lambda: self.wall_s, monotonic=lambda: self.monotonic_s)


def test_a_setting_of_the_wall_clock_changes_nothing() -> None:
    """It advances with the monotonic clock alone."""
    times = Times()
    clock = times.clock()
    times.wall_s = -1e9
    times.monotonic_s += 2.0
    assert clock() == 1_002.0


def test_it_follows_another_clock_however_late_it_hears_of_it() -> None:
    """What it was told before a pause of any length is right after that pause."""
    times = Times()
    clock = times.clock()
    ahead_s = 1_060.0 - times.monotonic_s
    times.monotonic_s += 9.0
    clock.follow(ahead_s)
    assert clock() == 1_069.0


def test_it_does_not_follow_what_is_near() -> None:
    """A difference that the way of an answer explains moves no due time."""
    times = Times()
    clock = times.clock()
    clock.follow(1_000.2 - times.monotonic_s)
    assert clock() == 1_000.0
