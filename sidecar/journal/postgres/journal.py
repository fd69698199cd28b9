"""`PostgresJournal`: the journal in a PostgreSQL database, for one sidecar or for many."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

import anyio.to_thread
import psycopg
from typing_extensions import override

from sidecar.errors import JournalLocked
from sidecar.journal.policy import PostPolicy
from sidecar.journal.postgres import lease as leases
from sidecar.journal.postgres.connection import Connection, connect
from sidecar.journal.postgres.faults import as_journal_errors
from sidecar.journal.postgres.lease import Lease
from sidecar.journal.postgres.schema import migrate
from sidecar.journal.postgres.threads import DatabaseThreads, Replica
from sidecar.journal.sql import SqlJournal
from sidecar.journal.sql.batches import doubt
from sidecar.journal.sql.transaction import Transaction
from sidecar.model import AgentRef

_AGAIN_S: Final = 0.2


class PostgresJournal(SqlJournal):
    """A journal in a PostgreSQL database, for a process on an asyncio loop, beside others.

    `open` creates one. Costs: one commit per group of operations that wait at the same time;
    transactions of all processes follow one another. `replica` changes when this process was taken
    for gone: then it has nothing any more of what it had claimed and opened before.
    """

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        secret: bytes,
        policy: PostPolicy,
        clock: Callable[[], float] = time.time,
        redact: Callable[[str], str] | None = None,
        wait_s: float = 0.0,
        alone: bool = False,
        copied_from: str = "",
        timed: Callable[[float], None] | None = None,
    ) -> Self:
        """Open the journal in the database of `url`, creating its tables when missing.

        Batches that a process was sending which is gone are in doubt from here on.

        Args:
            url: As libpq reads it, ``postgresql://…``; several hosts may be named.
            secret: Keys the tombstones; the same for every process that ever opens this journal.
            policy: When turns are due.
            clock: Unix time in seconds.
            redact: As for `SqlJournal`.
            wait_s: How long to wait for another's lease to end: that of a process which was killed
                lasts for `LEASE_S`.
            alone: Only where no other process has the journal open, and let none open it.
            copied_from: Where a copy comes from that is to be made or finished; until `finish_copy`
                no other open succeeds.
            timed: Called in a thread, at once and every few seconds, with the database's Unix time
                less what `time.monotonic` shows: see `SteadyClock.follow`.

        Raises:
            JournalLocked: another process has it alone; or has it, and `alone` is set.
            JournalAway: the database does not answer.
            JournalError: it refuses; a newer sidecar made the tables; they belong to another
                installation's secret.
        """
        give_up_s = time.monotonic() + wait_s

        def freed(tx: Transaction) -> None:
            doubt(tx, now_s=clock())

        def prepare() -> tuple[Connection, Lease]:
            with as_journal_errors():
                connection = connect(url)
                try:
                    migrate(connection)
                    ahead_s = leases.look_at_clock(connection) if timed else None
                    if timed and ahead_s is not None:
                        timed(ahead_s)
                    lease = taken(connection)
                except BaseException:
                    with suppress(psycopg.Error):
                        connection.close()
                    raise
                return connection, lease

        def taken(connection: Connection) -> Lease:
            while True:
                try:
                    return leases.take(
                        connection,
                        secret=secret,
                        freed=freed,
                        alone=alone,
                        copied_from=copied_from,
                    )
                except JournalLocked:
                    if time.monotonic() > give_up_s:
                        raise
                    time.sleep(_AGAIN_S)

        connection, lease = await anyio.to_thread.run_sync(prepare)
        journal: Self
        threads = DatabaseThreads(
            url,
            lease=lease,
            connection=connection,
            replica=Replica(
                secret=secret,
                freed=freed,
                timed=timed,
                digested=lambda lane: journal.digested(AgentRef.of_lane(lane)),
            ),
        )
        journal = cls(
            threads,
            policy=policy,
            secret=secret,
            clock=clock,
            redact=redact,
            replica=lease.replica,
        )
        return journal

    @property
    @override
    def replica(self) -> str:
        """See `Journal.replica`."""
        assert isinstance(self.executor, DatabaseThreads)
        return self.executor.replica

    @override
    async def finish_copy(self) -> None:
        """See `SqlJournal.finish_copy`."""
        await self.executor.write(_finish_copy)


def _finish_copy(tx: Transaction) -> None:
    for table in ("lanes", "calls", "batches"):
        sequence = f"pg_get_serial_sequence('{table}', 'id')"
        tx.rows(f"SELECT setval({sequence}, max(id)) FROM {table}")  # noqa: S608 - constants only
    tx.run("UPDATE writer SET copied_from = ''")
