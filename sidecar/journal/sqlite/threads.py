"""Two threads on one file: writes committed in groups, and reads that never delay them.

A commit costs one fsync whatever it holds, so all operations that wait are committed together:
at 200 appends a second each has its own, at 10,000 a second some hundred share one.
"""

from collections.abc import Callable
from pathlib import Path

import apsw
from typing_extensions import override

from sidecar.errors import JournalFull
from sidecar.journal.sql.executor import Bell
from sidecar.journal.sql.threads import Queued, ReaderAndWriter, Worker, fail
from sidecar.journal.sqlite.file import FileLock, Reserve, is_write_fault, journal_error
from sidecar.journal.sqlite.transactions import commit, read


class Threads(ReaderAndWriter["Reader", "Writer"]):
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
        bell = Bell()
        writer = Writer(connections[0], path, reserve=reserve, wake=bell.ring)
        super().__init__(Reader("journal-reader", connections[1], path), writer, bell)

    @property
    def has_room(self) -> bool:
        """See `Executor.has_room`: False from when the disk is full until space returns."""
        return self._reserve.allocated

    @override
    def _end(self) -> None:
        self._lock.release()


class _OnFile(Worker):
    """A thread that owns one connection to the file.

    Args:
        name: Of the thread.
        connection: Used by this thread alone from here on.
        path: Of the journal, for messages.
        wake: See `Worker`.
    """

    def __init__(
        self,
        name: str,
        connection: apsw.Connection,
        path: Path,
        *,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._path = path
        super().__init__(name, wake=wake)

    @override
    def _disconnect(self) -> None:
        self._connection.close()


class Reader(_OnFile):
    """Runs reads, each on the state of the last commit."""

    @override
    def _carry_out(self, group: list[Queued]) -> None:
        for job in group:
            read(self._connection, job, self._path)


class Writer(_OnFile):
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
        super().__init__("journal-writer", connection, path, wake=wake)

    @override
    def _carry_out(self, group: list[Queued]) -> None:
        if not self._reserve.take():
            group = _refuse_growth(group)
        try:
            self._commit(group)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            if not is_write_fault(error):
                fail(group, journal_error(error, self._path))
                return
            self._reserve.free()
            group = _refuse_growth(group)
            try:
                self._commit(group)
            except Exception as again:  # noqa: BLE001 - whoever waits gets it
                fail(group, journal_error(again, self._path))

    def _commit(self, group: list[Queued]) -> None:
        """Run a group in one transaction.

        Raises:
            apsw.Error: nothing of the group was stored.
        """
        if group and commit(self._connection, group, self._path):
            self._wakes = True


def _refuse_growth(group: list[Queued]) -> list[Queued]:
    """Fail what would grow the journal and return the rest."""
    for job in group:
        if job.grows:
            job.error = JournalFull(
                "the disk takes no more of the journal",
                hint="free space on the disk that holds SIDECAR_DATA_DIR",
            )
    return [job for job in group if not job.grows]
