"""Work on large bodies runs in a worker thread, so that no request holds the loop.

For most bodies the work costs less than the way to a thread and back, and runs in place. At most
two threads: each that computes keeps the loop from the interpreter for 5 ms at a time.
"""

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

LARGE = 20_000
"""A cost of some milliseconds, at most 15: that of comparing so many characters of text."""
JSON_SHARE = 5
"""So many bytes of JSON cost as much as one character to compare."""
MESSAGE = 50
"""What a message costs besides its text, in the same unit."""
_THREADS = 2

_T = TypeVar("_T")
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("_limiter")


async def apart(cost: int, job: Callable[..., _T], *args: object) -> _T:
    """Run a job that touches nothing else; in a thread if it costs `LARGE` or more."""
    if cost < LARGE:
        return job(*args)
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_THREADS)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(job, *args, limiter=limiter)
