"""`SqlReports`: reports for people, read from an SQL database."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from sidecar.journal.backlog import Backlog
from sidecar.journal.reports import BatchRow, CallRow, JournalCounts, LaneStatus
from sidecar.journal.sql import reads
from sidecar.journal.sql.transaction import Transaction
from sidecar.model import Call, Turn

if TYPE_CHECKING:
    from sidecar.journal.reports import Reports

T = TypeVar("T")


class RunsReads(Protocol):
    """Runs reads; an `Executor` is one."""

    def read(self, operation: Callable[[Transaction], T]) -> Awaitable[T]:
        """See `Executor.read`."""
        ...


class SqlReports:
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


if TYPE_CHECKING:
    _EVERY_REPORT: type[Reports] = SqlReports
