"""Bounds of CPU time that hold on a slow machine as they do on a fast one."""

import gc
import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

_ROUNDS: Final = 100_000
_ROUNDS_S: Final = 0.007
"""CPU time of the loop on the machine of docs/benchmarks.md, about."""


def slowness() -> float:
    """Return how many times slower this machine is just now than that of docs/benchmarks.md.

    At least 1. Of what its arithmetic is slower, by which it is measured, half is added: it may be
    slower still at moving text about. It takes some tens of milliseconds to measure.
    """
    slower = statistics.median(_loop_s() for _ in range(5)) / _ROUNDS_S - 1.0
    return 1.0 + max(0.0, 1.5 * slower)


def is_within(took_s: float, limit_s: float) -> bool:
    """Return whether a CPU time of this machine is less than `limit_s` on that machine."""
    return took_s < limit_s or took_s < limit_s * slowness()


def _loop_s() -> float:
    total = 0
    began_s = time.thread_time()
    for number in range(_ROUNDS):
        total += number * number
    return time.thread_time() - began_s


@contextmanager
def at_most(limit_s: float) -> Generator[None]:
    """Fail if the block takes more CPU time of this thread than `limit_s` on that machine.

    The garbage collector rests meanwhile: it would look at whatever earlier tests left.
    """
    gc.disable()
    try:
        began_s = time.thread_time()
        yield
        took_s = time.thread_time() - began_s
    finally:
        gc.enable()
    assert is_within(took_s, limit_s), f"{took_s:.3f} s of CPU"
