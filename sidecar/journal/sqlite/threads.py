"""Two threads on one file: writes committed in groups, and reads that never delay them.

A commit costs one fsync whatever it holds, so all operations that wait are committed together:
at 200 appends a second each is alone, at 10,000 a second some hundred share one.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw
from typing_extensions import override

from sidecar.errors import CallError, JournalError, JournalFull
from sidecar.journal.sqlite.file import Reserve, execute, is_write_fault, journal_error

T = TypeVar("T")

_GROUP_LIMIT = 512


class Transaction:
    """What an operation gets: SQL, and a way to say that something may be due earlier."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.wakes = False

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


@dataclass(slots=True)
class _Job:
    """An operation on its way. `grows`: it stores more, and is refused when the disk is full."""

    operation: Callable[[Transaction], object]
    future: "asyncio.Future[Any]"
    grows: bool = False
    value: object = None
    error: Exception | None = None

    def settle(self) -> None:
        """Hand the result over, on the loop; nobody may wait for it any more."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.value)


class _Worker:
    """A thread that owns one connection and takes jobs in order.

    What waits here is bounded by those who bring it: a link's call, a page and a request each wait
    for what they have brought before they bring more, and are themselves bounded in bytes.

    Args:
        name: Of the thread.
        connection: Used by this thread alone from here on.
        path: Of the journal, for messages.
    """

    def __init__(self, name: str, connection: apsw.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(
        self, operation: Callable[[Transaction], T], *, grows: bool = False
    ) -> "asyncio.Future[T]":
        """Queue an operation. A caller that stops waiting does not stop the operation.

        Raises:
            JournalError: the journal is closed.
        """
        if self._closing:
            raise JournalError("the journal is closed")
        job = _Job(operation, self._loop.create_future(), grows)
        self._jobs.put(job)
        return job.future

    def stop(self) -> None:
        """Finish what is queued, close the connection and return when the thread has ended."""
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        self._thread.join()

    def _groups(self) -> Iterator[list[_Job]]:
        """Yield what waits, some hundred jobs at most at a time, until told to stop."""
        while True:
            group: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                group.append(job)
                if len(group) == _GROUP_LIMIT or self._jobs.empty():
                    break
                job = self._jobs.get()
            if group:
                yield group
            if job is None:
                return

    def _run(self) -> None:
        for group in self._groups():
            self._carry_out(group)
            try:
                self._loop.call_soon_threadsafe(self._hand_over, group)
            except RuntimeError:  # the loop is closed; what was committed stays committed
                break
        self._connection.close()

    def _hand_over(self, group: list[_Job]) -> None:
        for job in group:
            job.settle()

    def _carry_out(self, group: list[_Job]) -> None:
        raise NotImplementedError


class Reader(_Worker):
    """Runs reads, each on the state of the last commit."""

    @override
    def _carry_out(self, group: list[_Job]) -> None:
        transaction = Transaction(self._connection)
        for job in group:
            try:
                job.value = job.operation(transaction)
            except Exception as error:  # noqa: BLE001 - whoever waits gets it
                job.error = journal_error(error, self._path)


class Writer(_Worker):
    """Commits operations in groups: each wholly or not at all, in the order submitted.

    When the disk is full, operations that grow the journal fail with `JournalFull` until the
    reserve can be taken again; those that settle and erase go on, on the space it freed.

    Args:
        connection: Used by this thread alone from here on.
        path: Of the journal, for messages.
        reserve: Disk kept aside.
        wake: Called on the loop after a commit that may have made something due earlier.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        path: Path,
        *,
        reserve: Reserve,
        wake: Callable[[], None],
    ) -> None:
        self._reserve = reserve
        self._wake = wake
        self._wakes = False
        super().__init__("journal-writer", connection, path)

    @override
    def _hand_over(self, group: list[_Job]) -> None:
        super()._hand_over(group)
        if self._wakes:
            self._wakes = False
            self._wake()

    @override
    def _carry_out(self, group: list[_Job]) -> None:
        if not self._reserve.take():
            group = _refuse_growth(group)
        try:
            self._commit(group)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            if not is_write_fault(error):
                _fail(group, journal_error(error, self._path))
                return
            self._reserve.free()
            group = _refuse_growth(group)
            try:
                self._commit(group)
            except Exception as again:  # noqa: BLE001 - whoever waits gets it
                _fail(group, journal_error(again, self._path))

    def _commit(self, group: list[_Job]) -> None:
        """Run a group in one transaction.

        Raises:
            apsw.Error: nothing of the group was stored.
        """
        if not group:
            return
        transaction = Transaction(self._connection)
        execute(self._connection, "BEGIN IMMEDIATE")
        try:
            for job in group:
                self._attempt(job, transaction)
            execute(self._connection, "COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute(self._connection, "ROLLBACK")
            raise
        self._wakes = self._wakes or transaction.wakes

    def _attempt(self, job: _Job, transaction: Transaction) -> None:
        job.error = None
        execute(self._connection, "SAVEPOINT job")
        try:
            job.value = job.operation(transaction)
        except Exception as error:
            if is_write_fault(error) or not self._connection.in_transaction:
                raise
            execute(self._connection, "ROLLBACK TO job")
            job.error = error if isinstance(error, CallError) else journal_error(error, self._path)
        execute(self._connection, "RELEASE job")


def _fail(group: list[_Job], error: JournalError) -> None:
    for job in group:
        job.error = error


def _refuse_growth(group: list[_Job]) -> list[_Job]:
    """Fail what would grow the journal and return the rest."""
    for job in group:
        if job.grows:
            job.error = JournalFull(
                "the disk takes no more of the journal",
                hint="free space on the disk that holds SIDECAR_DATA_DIR",
            )
    return [job for job in group if not job.grows]
