"""Runs operations on the event loop itself: no thread, any kind of loop, virtual time."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar, cast

import anyio.lowlevel
import apsw

from sidecar.errors import JournalError
from sidecar.journal.sql.executor import Bell
from sidecar.journal.sql.threads import Job
from sidecar.journal.sql.transaction import Transaction
from sidecar.journal.sqlite.file import journal_error
from sidecar.journal.sqlite.transactions import commit, read

T = TypeVar("T")

_MEMORY: Final = Path(":memory:")


class Inline:
    """An `Executor` on the loop itself, for a database in memory or for reads of a file.

    On a disk each write would block the loop for an fsync: that is what `Threads` is for.

    Args:
        connection: To the database; closed by `stop`.
        path: Its file, for errors.
    """

    def __init__(self, connection: apsw.Connection, path: Path = _MEMORY) -> None:
        self.has_room: Final = True
        self._connection = connection
        self._path = path
        self._bell = Bell()
        self._stopped = False

    async def write(self, operation: Callable[[Transaction], T], *, grows: bool = False) -> T:
        """See `Executor.write`."""
        self._refuse_stopped()
        job = Job(operation)
        try:
            if commit(self._connection, [job], self._path):
                self._bell.ring()
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            job.error = journal_error(error, self._path)
        return cast("T", await _outcome(job))

    async def read(self, operation: Callable[[Transaction], T]) -> T:
        """See `Executor.read`."""
        self._refuse_stopped()
        job = Job(operation)
        read(self._connection, job, self._path)
        return cast("T", await _outcome(job))

    async def wait(self, timeout_s: float) -> None:
        """See `Executor.wait`."""
        await self._bell.wait(timeout_s)

    async def stop(self) -> None:
        """See `Executor.stop`."""
        self._stopped = True
        self._connection.close()

    def _refuse_stopped(self) -> None:
        if self._stopped:
            raise JournalError("the journal is closed")


async def _outcome(job: Job) -> object:
    """Return the value of a finished job, after other tasks had a chance to run."""
    await anyio.lowlevel.checkpoint()
    if job.error is not None:
        raise job.error
    return job.value
