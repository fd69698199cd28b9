"""Two threads on one file: writes committed in groups, and reads that never delay them.

A commit costs one fsync whatever it holds, so all operations that wait are committed together:
at 200 appends a second each has its own, at 10,000 a second some hundred share one.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
import apsw
from typing_extensions import override

from sidecar.errors import JournalError, JournalFull
from sidecar.journal.sql.executor import Bell
from sidecar.journal.sql.transaction import Transaction
from sidecar.journal.sqlite.file import FileLock, Reserve, is_write_fault, journal_error
from sidecar.journal.sqlite.transactions import Job, commit, read

T = TypeVar("T")

_GROUP_LIMIT = 512


class Threads:
    """An `Executor` for one file, on an asyncio loop.

    Args:
        path: Of the journal.
        lock: Released when both threads have ended.
        reserve: Disk kept aside.
        connections: One to write with, one to read with; from here on only its thread uses each.
    """

    def __init__(
        self,
        path: Path,
        *,
        lock: FileLock,
        reserve: Reserve,
        connections: tuple[apsw.Connection, apsw.Connection],
    ) -> None:
        self._lock = lock
        self._reserve = reserve
        self._bell = Bell()
        self._stopped = False
        self._writer = Writer(connections[0], path, reserve=reserve, wake=self._bell.ring)
        self._reader = Reader("journal-reader", connections[1], path)

    @property
    def has_room(self) -> bool:
        """See `Executor.has_room`: False from when the disk is full until space returns."""
        return self._reserve.allocated

    def write(
        self, operation: Callable[[Transaction], T], *, grows: bool = False
    ) -> "asyncio.Future[T]":
        """See `Executor.write`."""
        return self._writer.submit(operation, grows=grows)

    def read(self, operation: Callable[[Transaction], T]) -> "asyncio.Future[T]":
        """See `Executor.read`."""
        return self._reader.submit(operation)

    async def wait(self, timeout_s: float) -> None:
        """See `Executor.wait`."""
        await self._bell.wait(timeout_s)

    async def stop(self) -> None:
        """See `Executor.stop`."""
        if self._stopped:
            return
        self._stopped = True
        await anyio.to_thread.run_sync(self._reader.stop)
        await anyio.to_thread.run_sync(self._writer.stop)
        self._lock.release()


@dataclass(slots=True, kw_only=True)
class _Queued(Job):
    """A job on its way. `grows`: it stores more, and is refused when the disk is full."""

    future: "asyncio.Future[Any]"
    grows: bool = False

    def settle(self) -> None:
        """Hand the result over, on the loop; its caller may have stopped waiting."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.value)


class _Worker:
    """A thread that owns one connection and takes jobs in order.

    The queue is bounded by those that submit: a link's call, a page and a request each wait for
    what they submitted before they submit more, and are themselves bounded in bytes.

    Args:
        name: Of the thread.
        connection: Used by this thread alone from here on.
        path: Of the journal, for messages.
    """

    def __init__(self, name: str, connection: apsw.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
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
        job = _Queued(operation, future=self._loop.create_future(), grows=grows)
        self._jobs.put(job)
        return job.future

    def stop(self) -> None:
        """Finish what is queued, close the connection and return when the thread has ended."""
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        self._thread.join()

    def _groups(self) -> Iterator[list[_Queued]]:
        """Yield the waiting jobs, at most some hundred at a time, until `stop`."""
        while True:
            group: list[_Queued] = []
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

    def _hand_over(self, group: list[_Queued]) -> None:
        for job in group:
            job.settle()

    def _carry_out(self, group: list[_Queued]) -> None:
        raise NotImplementedError


class Reader(_Worker):
    """Runs reads, each on the state of the last commit."""

    @override
    def _carry_out(self, group: list[_Queued]) -> None:
        for job in group:
            read(self._connection, job, self._path)


class Writer(_Worker):
    """Commits operations in groups: each wholly or not at all, in the order submitted.

    When the disk is full, operations that grow the journal fail with `JournalFull` until the
    reserve can be taken again; those that settle and erase go on, in the space it freed.

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
    def _hand_over(self, group: list[_Queued]) -> None:
        super()._hand_over(group)
        if self._wakes:
            self._wakes = False
            self._wake()

    @override
    def _carry_out(self, group: list[_Queued]) -> None:
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

    def _commit(self, group: list[_Queued]) -> None:
        """Run a group in one transaction.

        Raises:
            apsw.Error: nothing of the group was stored.
        """
        if group and commit(self._connection, group, self._path):
            self._wakes = True


def _fail(group: list[_Queued], error: JournalError) -> None:
    for job in group:
        job.error = error


def _refuse_growth(group: list[_Queued]) -> list[_Queued]:
    """Fail what would grow the journal and return the rest."""
    for job in group:
        if job.grows:
            job.error = JournalFull(
                "the disk takes no more of the journal",
                hint="free space on the disk that holds SIDECAR_DATA_DIR",
            )
    return [job for job in group if not job.grows]
