"""Reports for people, read from the journal's database while a sidecar may be writing to it."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from sidecar.errors import JournalRefused, NoJournal
from sidecar.journal.postgres.connection import Connection, connect
from sidecar.journal.postgres.faults import as_journal_errors
from sidecar.journal.postgres.schema import SCHEMA_VERSION, refuse_newer, version_of
from sidecar.journal.postgres.transactions import PostgresTransaction
from sidecar.journal.sql import SqlReports
from sidecar.journal.sql.transaction import Transaction

T = TypeVar("T")


@asynccontextmanager
async def reports_of_database(url: str) -> AsyncGenerator[SqlReports]:
    """Connect to a journal's database to read from it, also while a sidecar writes to it.

    Reads block the loop: for a command, not for a server.

    Raises:
        NoJournal: no sidecar has made its tables there yet.
        JournalError: it can't be read, or another version made the tables.
    """
    connection = _connected(url)
    try:
        yield SqlReports(_Inline(connection))
    finally:
        connection.close()


class _Inline:
    """Runs reads at once, on the loop.

    Args:
        connection: Closed by whoever opened it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(self, operation: Callable[[Transaction], T]) -> T:
        """See `RunsReads.read`.

        Raises:
            JournalError: the read failed.
        """
        with as_journal_errors():
            return operation(PostgresTransaction(self._connection))


def _connected(url: str) -> Connection:
    with as_journal_errors():
        connection = connect(url)
        try:
            _refuse_others(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _refuse_others(connection: Connection) -> None:
    version = version_of(connection)
    if version == 0:
        raise NoJournal(
            "there is no journal in the database",
            hint="start the sidecar once, or check SIDECAR_JOURNAL_URL",
        )
    if version < SCHEMA_VERSION:
        raise JournalRefused(
            f"an earlier version of the sidecar made the journal's tables (schema {version})",
            hint="run `sidecar journal migrate`, or look with the version that runs",
        )
    refuse_newer(connection)
