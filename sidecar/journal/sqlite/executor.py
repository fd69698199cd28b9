"""Who carries the journal's operations out, and where: the seam between its SQL and a thread."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio

from sidecar.journal.sqlite.transactions import Transaction

T = TypeVar("T")


class Executor(Protocol):
    """Carries operations out on one database.

    Promises: writes take effect in the order of the calls, each wholly or not at all, durably where
    the database is; a read sees every write that has returned; whoever stops waiting for an
    operation does not stop it.
    """

    @property
    def has_room(self) -> bool:
        """Whether writes that grow the database are taken."""
        ...

    def write(self, operation: Callable[[Transaction], T], *, grows: bool = False) -> Awaitable[T]:
        """Carry out a write; with `grows` it stores more, and is refused when the disk is full.

        Raises:
            CallError: the operation's own.
            JournalError: nothing of it was stored; or the journal is closed.
        """
        ...

    def read(self, operation: Callable[[Transaction], T]) -> Awaitable[T]:
        """Carry out a read.

        Raises:
            JournalError: the read failed, or the journal is closed.
        """
        ...

    async def wait(self, timeout_s: float) -> None:
        """Return when a write may have made something due earlier, or after `timeout_s`."""
        ...

    async def stop(self) -> None:
        """Finish what was asked for and close the database. Safe to call twice."""
        ...


class Bell:
    """Rings when something may have become due; who waits hears it, also when it rang before."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        """Wake whoever waits, or who waits next. On the loop."""
        self._rung.set()

    async def wait(self, timeout_s: float) -> None:
        """Return when it rings, or after `timeout_s`."""
        with anyio.move_on_after(timeout_s):
            await self._rung.wait()
        self._rung = anyio.Event()
