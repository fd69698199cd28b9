"""What runs the journal's operations: the interface between its SQL and a thread or loop."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio

from sidecar.journal.sql.transaction import Transaction

T = TypeVar("T")


class Executor(Protocol):
    """Runs operations on one database.

    Promises: writes take effect in the order in which they are submitted, each wholly or not at
    all, and durably if the database is on disk; a read sees every write that has returned; a caller
    that stops waiting for an operation does not stop it.
    """

    @property
    def has_room(self) -> bool:
        """Whether writes that grow the database are accepted."""
        ...

    def write(self, operation: Callable[[Transaction], T], *, grows: bool = False) -> Awaitable[T]:
        """Run a write; with `grows` it stores more, and is refused when the disk is full.

        Raises:
            CallError: the operation raised it.
            JournalError: nothing of it was stored; or the journal is closed.
        """
        ...

    def read(self, operation: Callable[[Transaction], T]) -> Awaitable[T]:
        """Run a read.

        Raises:
            JournalError: the read failed, or the journal is closed.
        """
        ...

    async def wait(self, timeout_s: float) -> None:
        """Return when a write may have made something due earlier, or after `timeout_s`."""
        ...

    async def stop(self) -> None:
        """Finish the submitted operations and close the database. Safe to call twice."""
        ...


class Bell:
    """Rings when something may have become due; a ring also ends a wait that begins after it."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        """End the wait that is under way, or the next one. Call it on the loop."""
        self._rung.set()

    async def wait(self, timeout_s: float) -> None:
        """Return when it rings, or after `timeout_s`."""
        with anyio.move_on_after(timeout_s):
            await self._rung.wait()
        self._rung = anyio.Event()
