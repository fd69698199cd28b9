"""Threads, each with a connection: one commits writes in groups, one reads.

A connection may end at any moment. What was not committed then is tried again; a commit whose
answer was lost is looked up by the number of its transaction, so that no operation takes effect
twice and none is lost. A replica that was taken for gone goes on under a new name, and has nothing
any more of what it had under the old one.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, LiteralString, TypeVar, cast

import anyio.to_thread
import psycopg
from typing_extensions import override

from sidecar.errors import JournalAway, JournalFull, JournalLocked, LeaseLost, SidecarError
from sidecar.journal.postgres.connection import (
    IDLE_S,
    STATEMENT_S,
    Connection,
    connect,
    cut,
)
from sidecar.journal.postgres.faults import away, is_lost, is_passing, journal_error
from sidecar.journal.postgres.lease import (
    LEASE_S,
    RENEW_S,
    Lease,
    ahead_s,
    giving_back,
    is_committed,
    reap,
    renew,
    take,
)
from sidecar.journal.postgres.notifications import Notifications, tell_digested, wake_and_commit
from sidecar.journal.postgres.owner import nonce_of
from sidecar.journal.postgres.transactions import PostgresTransaction
from sidecar.journal.sql.executor import Bell
from sidecar.journal.sql.reads import name_of_lane
from sidecar.journal.sql.threads import Queued, ReaderAndWriter, Worker, fail
from sidecar.journal.sql.transaction import Transaction

T = TypeVar("T")

AWAY_S: Final = 10.0
"""How long an operation waits for a database that is away before it fails."""
WRITE_S: Final = 15.0
"""How long a group of writes may take before its connection is cut."""
READ_S: Final = 60.0
"""The same of a read."""
GROUP_LIMIT: Final = 64
"""Operations in one transaction. All other replicas wait for its end, and give up in `AWAY_S`."""
_LOOK_EVERY_S: Final = 1.0
_AGAIN_S: Final = 0.1
_BARRED: Final = (JournalLocked, LeaseLost)
POLL_S: Final = 1.0
"""How often to look for what other replicas have made due, where no notification comes through."""
# One message: a transaction pooler passes no setting on that outlives a transaction. JIT would
# compile for tens of milliseconds while rows are locked; a transaction whose client is gone must
# not hold them.
_BEGIN: Final = cast(
    "LiteralString",
    "BEGIN; SET LOCAL jit = off; SET LOCAL synchronous_commit = on;"
    f" SET LOCAL statement_timeout = '{STATEMENT_S}s';"
    f" SET LOCAL idle_in_transaction_session_timeout = '{IDLE_S}s'",
)


class _NotCommitted(Exception):
    """A transaction certainly was not committed, and has to be made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """What there is to do for a replica beside reads and writes.

    Attributes:
        secret: The installation's, to take another lease by.
        freed: Frees what replicas that are gone have claimed, within a transaction; called in the
            writer's thread, as the next one.
        timed: Called now and then with what `ahead_s` returns; None: nobody follows that clock.
        digested: Called on the loop with a lane of which another replica has settled a batch.
    """

    secret: bytes
    freed: Callable[[Transaction], None]
    timed: Callable[[float], None] | None
    digested: Callable[[str], None]


class DatabaseThreads(ReaderAndWriter["DatabaseReader", "DatabaseWriter"]):
    """An `Executor` for one database, on an asyncio loop.

    Args:
        url: Of the database.
        lease: The right to write; given back by `stop`.
        connection: To begin with, for writing.
        replica: What else the writer does.
    """

    def __init__(self, url: str, *, lease: Lease, connection: Connection, replica: Replica) -> None:
        bell = Bell()
        writer = DatabaseWriter(
            url, lease=lease, connection=connection, replica=replica, wake=bell.ring
        )
        super().__init__(DatabaseReader("journal-reader", url), writer, bell)
        self._loop = asyncio.get_running_loop()
        self._digested = replica.digested
        self._notifications: Notifications | None = None
        if not lease.alone:
            self._notifications = Notifications(
                url, woken=self._hear_wake, digested=self._hear_digested
            )
        self._look = self._loop.call_later(_LOOK_EVERY_S, self._look_after)

    @property
    def replica(self) -> str:
        """The name of this replica; another one once it was taken for gone."""
        return self._writer.replica

    def _hear_wake(self, replica: str) -> None:
        if replica != nonce_of(self.replica):
            self._bell.ring()

    def _hear_digested(self, replica: str, lane: int) -> None:
        if replica != nonce_of(self.replica):
            self.read(lambda tx: name_of_lane(tx, lane)).add_done_callback(self._tell_digested)

    def _tell_digested(self, named: "asyncio.Future[str]") -> None:
        if not named.cancelled() and named.exception() is None and named.result():
            self._digested(named.result())

    def _look_after(self) -> None:
        """Cut the connections that have not answered for too long."""
        self._writer.cut_after(WRITE_S)
        self._reader.cut_after(READ_S)
        self._look = self._loop.call_later(_LOOK_EVERY_S, self._look_after)

    @property
    def has_room(self) -> bool:
        """See `Executor.has_room`: False from when the disk is full until a write succeeds.

        And while another writes alone.
        """
        return self._writer.has_room

    @override
    async def wait(self, timeout_s: float) -> None:
        """See `Executor.wait`; also after `POLL_S`, for what other replicas have made due."""
        await super().wait(min(timeout_s, POLL_S))

    @override
    async def stop(self) -> None:
        """See `Executor.stop`."""
        try:
            if self._notifications is not None:
                await anyio.to_thread.run_sync(self._notifications.stop)
            await super().stop()
        finally:
            self._look.cancel()


class _OnDatabase(Worker):
    """A thread that owns one connection, and makes another when it is gone.

    Args:
        name: Of the thread.
        url: Of the database.
        connection: To begin with.
        idle_s: See `Worker`.
        wake: See `Worker`.
    """

    def __init__(
        self,
        name: str,
        url: str,
        connection: Connection | None = None,
        *,
        idle_s: float | None = None,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self._url = url
        self._connection = connection
        self._asked_s: float | None = None
        self._pause = threading.Event()
        super().__init__(name, idle_s=idle_s, wake=wake, group_limit=GROUP_LIMIT)

    def cut_after(self, limit_s: float) -> None:
        """End the connection if what was asked of it has taken longer than this; on the loop."""
        asked_s, connection = self._asked_s, self._connection
        if asked_s is not None and connection is not None and time.monotonic() - asked_s > limit_s:
            cut(connection)

    def _connected(self) -> Connection:
        self._asks()
        if self._connection is None:
            self._connection = connect(self._url)
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    @override
    def _disconnect(self) -> None:
        self._drop_connection()

    def _persist(self, attempt: Callable[[], T]) -> T:
        """Try until the database answers, for `AWAY_S`.

        Raises:
            JournalAway: it did not answer.
            Exception: what else `attempt` raised.
        """
        began_s = time.monotonic()
        while True:
            try:
                return attempt()
            except (psycopg.Error, _NotCommitted) as error:
                if not is_passing(error):
                    if isinstance(error, psycopg.Error) and not is_lost(error, self._connection):
                        raise
                    self._drop_connection()
                is_away = not isinstance(error, _NotCommitted)
                if time.monotonic() - began_s > AWAY_S or (self._closing and is_away):
                    raise away(error) from error
                self._pause.wait(_AGAIN_S)
            finally:
                self._asked_s = None

    def _asks(self) -> None:
        """Note that the database is asked something: it has to answer in time."""
        self._asked_s = time.monotonic()


class DatabaseReader(_OnDatabase):
    """Runs reads, each on the state of the last commit."""

    @override
    def _carry_out(self, group: list[Queued]) -> None:
        gone: JournalAway | None = None
        for job in group:
            if job.future.done():  # nobody waits for it any more
                continue
            if gone is not None:
                job.error = gone
                continue
            try:
                job.value = self._persist(lambda job=job: self._read(job))
            except Exception as error:  # noqa: BLE001 - whoever waits gets it
                job.error = journal_error(error)
                if isinstance(error, JournalAway):
                    gone = error

    def _read(self, job: Queued) -> Any:
        return job.operation(PostgresTransaction(self._connected(), asks=self._asks))


class DatabaseWriter(_OnDatabase):
    """Commits operations in groups: each wholly or not at all, in the order submitted.

    Args:
        url: Of the database.
        lease: The right to write.
        connection: To begin with.
        replica: What else to do.
        wake: Called on the loop after a commit that may have made something due earlier.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: Lease,
        connection: Connection,
        replica: Replica,
        wake: Callable[[], None],
    ) -> None:
        self._lease = lease
        self._replica = replica
        self._committed_s = self._looked_s = time.monotonic()
        self._reaps_after_s = self._looked_s + LEASE_S
        self._is_full = self._is_barred = False
        super().__init__("journal-writer", url, connection, idle_s=RENEW_S, wake=wake)

    @property
    def replica(self) -> str:
        """The name of this replica."""
        return self._lease.replica

    @property
    def has_room(self) -> bool:
        """See `DatabaseThreads.has_room`."""
        return not (self._is_full or self._is_barred)

    @override
    def _rest(self) -> None:
        # What is wrong is met again by the next write, which reports it.
        try:
            self._once([])
        except Exception as error:  # noqa: BLE001 - as said
            self._is_barred = isinstance(error, _BARRED)
        else:
            self._is_barred = False

    @override
    def _disconnect(self) -> None:
        if self._closing and self._connection is not None:
            self._asks()
            with suppress(psycopg.Error), giving_back(self._connection, self._lease) as tx:
                self._replica.freed(tx)
            self._asked_s = None
        super()._disconnect()

    @override
    def _carry_out(self, group: list[Queued]) -> None:
        is_away = False
        try:
            self._once(group)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            is_away = isinstance(error, JournalAway)
            if len(group) == 1 or is_away:
                fail(group, error if isinstance(error, SidecarError) else journal_error(error))
            else:
                # One of them failed, and with it all: now each by itself.
                for job in group:
                    self._carry_out([job])
                return
        self._is_full = any(isinstance(job.error, JournalFull) for job in group)
        self._is_barred = any(isinstance(job.error, _BARRED) for job in group)
        if not is_away and time.monotonic() - self._committed_s > RENEW_S:
            self._rest()  # what fails renews nothing

    def _once(self, jobs: Sequence[Queued]) -> None:
        """Run jobs in one transaction, once.

        Raises:
            Exception: none of them was stored.
        """
        self._persist(lambda: self._transact(jobs))

    def _transact(self, jobs: Sequence[Queued]) -> None:
        connection = self._connected()
        tx = PostgresTransaction(connection, asks=self._asks)
        connection.execute(_BEGIN)
        try:
            asked_s = time.monotonic()
            number, database_s = renew(tx, self._lease)
            self._look_around(tx, ahead_s(database_s, asked_s=asked_s))
            for job in jobs:
                job.value = job.operation(tx)
            tell_digested(tx, replica=nonce_of(self.replica))
        except BaseException as error:
            if not connection.closed:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
            if isinstance(error, LeaseLost):
                self._go_on_anew(connection)
            raise
        try:
            self._asks()
            if tx.wakes:  # in one message, so that both are done or neither
                connection.execute(wake_and_commit(nonce_of(self.replica)))
            else:
                connection.execute("COMMIT")
        except psycopg.Error as error:
            if not is_lost(error, connection):
                raise
            if not self._took_effect(number):
                raise _NotCommitted from error
        self._committed_s = time.monotonic()
        self._wakes = self._wakes or tx.wakes

    def _look_around(self, tx: PostgresTransaction, clock_ahead_s: float | None) -> None:
        """Free what replicas that are gone have claimed, and take the database's time."""
        now_s = time.monotonic()
        if now_s - self._committed_s > 2 * RENEW_S:
            # The database was away, or this process was: let the others renew their leases first.
            self._reaps_after_s = now_s + LEASE_S
        if now_s - self._looked_s < RENEW_S:
            return
        self._looked_s = now_s
        if clock_ahead_s is not None and self._replica.timed is not None:
            self._replica.timed(clock_ahead_s)
        may_have_ended = now_s > self._reaps_after_s
        if reap(tx, except_for=self._lease.replica, ended=may_have_ended):
            self._replica.freed(tx)

    def _go_on_anew(self, connection: Connection) -> None:
        """Take a lease under another name, once this replica was taken for gone.

        Raises:
            _NotCommitted: it has one; the transaction has to be made again.
            JournalLocked: another writes alone.
            LeaseLost: this one has written alone.
        """
        if self._lease.alone:
            return
        self._asks()
        self._lease = take(connection, secret=self._replica.secret, freed=self._replica.freed)
        raise _NotCommitted

    def _took_effect(self, number: int) -> bool:
        """Find out whether a transaction was committed, however long the database is away.

        Raises:
            LeaseLost: this replica was taken for gone; nobody can say.
            JournalAway: the journal is being closed, and nothing is known.
        """
        began_s = time.monotonic()
        while not self._closing or time.monotonic() - began_s < AWAY_S:
            self._drop_connection()
            if time.monotonic() - began_s > AWAY_S:
                self._refuse_waiting(
                    JournalAway("the journal's database does not say what became of a commit")
                )
            try:
                return is_committed(self._connected(), self._lease, number)
            except psycopg.Error:
                self._pause.wait(_AGAIN_S)
        raise JournalAway("the journal's database does not say what became of a commit")
