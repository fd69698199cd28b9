"""`SqliteReports`: reports for people, read from the journal's SQLite file."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import apsw

from sidecar.errors import JournalError
from sidecar.journal.backlog import Backlog
from sidecar.journal.reports import BatchRow, CallRow, JournalCounts, LaneStatus
from sidecar.journal.sqlite import reads
from sidecar.journal.sqlite.file import SCHEMA_VERSION, execute, journal_error
from sidecar.journal.sqlite.inline import Inline
from sidecar.journal.sqlite.transactions import Transaction
from sidecar.model import Call, Turn

if TYPE_CHECKING:
    from sidecar.journal.reports import Reports

T = TypeVar("T")
_BUSY_MS = 5_000


class RunsReads(Protocol):
    """Runs reads; an `Executor` is one."""

    def read(self, operation: Callable[[Transaction], T]) -> Awaitable[T]:
        """See `Executor.read`."""
        ...


class SqliteReports:
    """Implements `Reports`: each report is on the state of one commit, and delays no append.

    Args:
        reader: Runs the reads.
    """

    def __init__(self, reader: RunsReads) -> None:
        self._reader = reader

    async def counts(self) -> JournalCounts:
        """See `Reports.counts`."""
        return await self._reader.read(reads.counts)

    async def backlog(self) -> Backlog:
        """See `Reports.backlog`."""
        return await self._reader.read(reads.backlog)

    async def lanes(self) -> list[LaneStatus]:
        """See `Reports.lanes`."""
        return await self._reader.read(reads.lanes)

    async def batches(
        self, *, states: Sequence[str], limit: int, newest_first: bool = False
    ) -> list[BatchRow]:
        """See `Reports.batches`."""
        return await self._reader.read(
            lambda tx: reads.batches(tx, states=states, limit=limit, newest_first=newest_first)
        )

    async def batch(self, name: str) -> tuple[BatchRow, tuple[Turn, ...]] | None:
        """See `Reports.batch`."""
        return await self._reader.read(lambda tx: reads.batch(tx, name))

    async def calls(self, *, limit: int, live: bool = False, caller_key: str = "") -> list[CallRow]:
        """See `Reports.calls`."""
        return await self._reader.read(
            lambda tx: reads.calls(tx, limit=limit, live=live, caller_key=caller_key)
        )

    async def call(self, key: str) -> Call | None:
        """See `Reports.call`."""
        return await self._reader.read(lambda tx: reads.call(tx, key))

    async def call_row(self, key: str) -> CallRow | None:
        """See `Reports.call_row`."""
        return await self._reader.read(lambda tx: reads.call_row(tx, key))

    async def call_keys(self) -> list[str]:
        """See `Reports.call_keys`."""
        return await self._reader.read(reads.call_keys)

    async def caller_keys(self, beginning: str) -> list[str]:
        """See `Reports.caller_keys`."""
        return await self._reader.read(lambda tx: reads.caller_keys(tx, beginning))

    async def agents_of(self, caller_key: str) -> list[str]:
        """See `Reports.agents_of`."""
        return await self._reader.read(lambda tx: reads.agents_of(tx, caller_key))

    async def turns(self, key: str) -> tuple[Turn, ...]:
        """See `Reports.turns`."""
        return await self._reader.read(lambda tx: reads.turns(tx, key))

    async def turns_since(self, appended_s: float) -> list[tuple[float, Turn]]:
        """See `Reports.turns_since`."""
        return await self._reader.read(lambda tx: reads.turns_since(tx, appended_s))


@asynccontextmanager
async def reports_of_file(path: Path) -> AsyncGenerator[SqliteReports]:
    """Open a journal's file for reading only, also while a sidecar owns and writes it.

    Takes no lock that would stop a sidecar from starting. Reads block the loop: for a command, not
    for a server.

    Raises:
        JournalError: there is none, it can't be read, or another version wrote it.
    """
    inline = Inline(_connect(path), path)
    try:
        yield SqliteReports(inline)
    finally:
        await inline.stop()


def _connect(path: Path) -> apsw.Connection:
    """Open a file of this version for reading.

    Raises:
        JournalError: as `reports_of_file`.
    """
    if not path.is_file():
        raise JournalError(
            f"there is no journal at {path}",
            hint="start the sidecar once, or check SIDECAR_DATA_DIR",
        )
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(_BUSY_MS)
        ((version,),) = execute(connection, "PRAGMA user_version")
    except apsw.Error as error:
        raise journal_error(error, path) from error
    if version != SCHEMA_VERSION:
        connection.close()
        raise JournalError(
            f"{path} was written by another version of the sidecar (schema {version})",
            hint="start this version once, or look with the version that runs",
        )
    return connection


if TYPE_CHECKING:
    _EVERY_REPORT: type[Reports] = SqliteReports
