"""Work on large bodies runs in a worker thread, so that no request holds the loop.

Most bodies cost less to process than the hop to a thread and back; those are processed in place.
At most two threads work at once: each can hold the interpreter for 5 ms while the loop waits.
"""

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

LARGE = 20_000
"""The cost of comparing this many characters of text: some milliseconds, at most 15."""
JSON_SHARE = 5
"""Bytes of JSON that cost as much as comparing one character."""
MESSAGE = 50
"""The cost of a message in addition to that of its text, in the same unit."""
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
