"""Operations on one connection: each runs wholly or not at all."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from sidecar.errors import SidecarError
from sidecar.journal.sql.threads import Job
from sidecar.journal.sql.transaction import Transaction
from sidecar.journal.sqlite.file import execute, is_write_fault, journal_error


class SqliteTransaction:
    """A `Transaction` on one connection.

    Args:
        connection: Used by one thread at a time.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.wakes = False
        self.digested: list[int] = []

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        return execute(self._connection, sql, values)

    def row(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        """Run a statement and return its first row."""
        return next(iter(execute(self._connection, sql, values)), None)

    def run(self, sql: str, *values: Any) -> int:
        """Run a statement and return how many rows it changed."""
        execute(self._connection, sql, values)
        return self._connection.changes()

    def write_nothing_new(self) -> None:
        """Write the first page as it is."""
        ((version,),) = self.rows("PRAGMA user_version")
        self.run(f"PRAGMA user_version = {version}")

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """Let all statements of a read see the same commit; a single statement does so anyway."""
        if self._connection.in_transaction:
            yield
            return
        execute(self._connection, "BEGIN")
        try:
            yield
        finally:
            execute(self._connection, "ROLLBACK")


def read(connection: apsw.Connection, job: Job, path: Path) -> None:
    """Run a read, on the state of the last commit."""
    try:
        job.value = job.operation(SqliteTransaction(connection))
    except Exception as error:  # noqa: BLE001 - whoever waits gets it
        job.error = journal_error(error, path)


def commit(connection: apsw.Connection, jobs: Sequence[Job], path: Path) -> bool:
    """Run writes in one transaction, in order; one that fails undoes no other.

    Returns:
        Whether something may be due earlier than before.

    Raises:
        apsw.Error: none of them was stored.
    """
    transaction = SqliteTransaction(connection)
    execute(connection, "BEGIN IMMEDIATE")
    try:
        for job in jobs:
            _attempt(connection, job, transaction, path)
        execute(connection, "COMMIT")
    except BaseException:
        if connection.in_transaction:
            execute(connection, "ROLLBACK")
        raise
    return transaction.wakes


def _attempt(connection: apsw.Connection, job: Job, transaction: Transaction, path: Path) -> None:
    job.error = None
    execute(connection, "SAVEPOINT job")
    try:
        job.value = job.operation(transaction)
    except Exception as error:
        if is_write_fault(error) or not connection.in_transaction:
            raise
        execute(connection, "ROLLBACK TO job")
        job.error = error if isinstance(error, SidecarError) else journal_error(error, path)
    execute(connection, "RELEASE job")
