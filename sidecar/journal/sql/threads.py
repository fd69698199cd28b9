"""Threads that own one connection each and run operations in the order in which they come."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio.to_thread

from sidecar.errors import JournalError
from sidecar.journal.sql.executor import Bell
from sidecar.journal.sql.transaction import Transaction

T = TypeVar("T")

_GROUP_LIMIT = 512


@dataclass(slots=True)
class Job:
    """An operation, and what it ended with: a value or an error."""

    operation: Callable[[Transaction], Any]
    value: Any = None
    error: Exception | None = None


@dataclass(slots=True, kw_only=True)
class Queued(Job):
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


class Worker:
    """A thread that owns one connection and takes jobs in order, all that wait at once.

    The queue is bounded by those that submit: a link's call, a page and a request each wait for
    what they submitted before they submit more, and are themselves bounded in bytes.

    Args:
        name: Of the thread.
        idle_s: How long no job comes before `_rest` is called; None: it never is.
        wake: Called on the loop after a group that has set `_wakes`; None: none does.
        group_limit: Jobs taken at once.
    """

    def __init__(
        self,
        name: str,
        *,
        idle_s: float | None = None,
        wake: Callable[[], None] | None = None,
        group_limit: int = _GROUP_LIMIT,
    ) -> None:
        self._idle_s = idle_s
        self._group_limit = group_limit
        self._wake = wake
        self._wakes = False
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Queued | None] = queue.SimpleQueue()
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
        job = Queued(operation, future=self._loop.create_future(), grows=grows)
        self._jobs.put(job)
        return job.future

    def stop(self) -> None:
        """Finish what is queued, close the connection and return when the thread has ended."""
        if not self._closing:
            self._closing = True
            self._jobs.put(None)
        self._thread.join()

    def _groups(self) -> Iterator[list[Queued]]:
        """Yield the waiting jobs, at most `group_limit` at a time, until `stop`."""
        while True:
            group: list[Queued] = []
            job = self._next()
            while job is not None:
                group.append(job)
                if len(group) == self._group_limit or self._jobs.empty():
                    break
                job = self._jobs.get()
            if group:
                yield group
            if job is None:
                return

    def _next(self) -> Queued | None:
        while True:
            try:
                return self._jobs.get(timeout=self._idle_s)
            except queue.Empty:
                self._rest()

    def _run(self) -> None:
        for group in self._groups():
            self._carry_out(group)
            try:
                self._loop.call_soon_threadsafe(self._hand_over, group)
            except RuntimeError:  # the loop is closed; what was committed stays committed
                break
        self._disconnect()

    def _refuse_waiting(self, error: Exception) -> None:
        """Let every job that waits end with an error, while the one under way goes on."""
        waiting: list[Queued] = []
        ends = False
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                ends = True
            else:
                waiting.append(job)
        if ends:
            self._jobs.put(None)
        fail(waiting, error)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._hand_over, waiting)

    def _hand_over(self, group: list[Queued]) -> None:
        for job in group:
            job.settle()
        if self._wakes and self._wake is not None:
            self._wakes = False
            self._wake()

    def _carry_out(self, group: list[Queued]) -> None:
        raise NotImplementedError

    def _rest(self) -> None:
        """Do what is to be done while no job comes. May take no longer than a job."""

    def _disconnect(self) -> None:
        raise NotImplementedError


AReader = TypeVar("AReader", bound=Worker)
AWriter = TypeVar("AWriter", bound=Worker)


class ReaderAndWriter(Generic[AReader, AWriter]):
    """An `Executor` of two threads, so that reads never delay writes.

    Args:
        reader: Runs the reads.
        writer: Runs the writes.
        bell: Rung by `writer`.
    """

    def __init__(self, reader: AReader, writer: AWriter, bell: Bell) -> None:
        self._reader = reader
        self._writer = writer
        self._bell = bell
        self._stopped = False

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
        self._end()

    def _end(self) -> None:
        """Let go of what both threads used; they have ended."""


def fail(group: list[Queued], error: Exception) -> None:
    """Let every job of a group end with this error."""
    for job in group:
        job.error = error
