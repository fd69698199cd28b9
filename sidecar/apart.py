"""Work on large bodies runs in a worker thread, so that no request holds the loop.

Most bodies cost less to process than the hop to a thread and back; those are processed in place.
At most two threads work at once: each can hold the interpreter for 5 ms while the loop waits.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

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
    result, error = await anyio.to_thread.run_sync(partial(_done, job, *args), limiter=limiter)
    if error is not None:
        try:
            raise error
        finally:
            del error  # else it and this frame would be each other's until the collector runs
    return cast("_T", result)


def _done(job: Callable[..., _T], *args: object) -> tuple[_T | None, Exception | None]:
    """Run a job; an error that passed through a thread would keep what the job was given."""
    try:
        return job(*args), None
    except Exception as error:  # noqa: BLE001 - raised where the job was asked for
        return None, error
