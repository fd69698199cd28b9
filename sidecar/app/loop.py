"""The event loop that `sidecar run` serves on, and the garbage collector beside it."""

import gc
import os
from collections.abc import Awaitable, Callable
from typing import Final, TypeVarTuple

import anyio

Args = TypeVarTuple("Args")
LOOKUPS: Final = 32
"""Names that are looked up at a time."""


def run(serve: Callable[[*Args], Awaitable[object]], *args: *Args) -> None:
    """Run a coroutine function to its end, on uvloop.

    A lookup of a name can't be cancelled, and libuv makes two at a time by its own measure: a Letta
    whose name hangs would keep the model's waiting. The size of libuv's pool is read when the first
    lookup is made, and half of it takes lookups (docs.libuv.org/en/v1.x/threadpool.html).
    """
    os.environ.setdefault("UV_THREADPOOL_SIZE", str(2 * LOOKUPS))
    anyio.run(serve, *args, backend_options={"use_uvloop": True})


def collect_rarely() -> None:
    """Let the garbage collector pass over what the start has made, and run less often.

    A full collection stops the loop for as long as it takes: 0.29 s beside 600 live calls by
    Python's own thresholds, six times a minute, and 0.13 s by these, three times. What most calls
    leave is freed without it. Young objects are looked at often enough that what refused requests
    leave stays small.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 20, 100)
