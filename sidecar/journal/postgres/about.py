"""What there is to know of a journal's database, for `sidecar journal status` and the doctor."""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import psycopg

from sidecar.journal.postgres.connection import Connection, connect, cut
from sidecar.journal.postgres.faults import as_journal_errors
from sidecar.journal.postgres.lease import writers
from sidecar.journal.postgres.owner import shown
from sidecar.journal.postgres.schema import SCHEMA_VERSION, migrate, version_of
from sidecar.journal.postgres.transactions import PostgresTransaction

Pooling: TypeAlias = Literal["none", "session", "transaction"]
_LOOKS: Final = 10
"""How often to look for a session that two connections share."""
_LOOK_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatus:
    """A journal's database.

    Attributes:
        server: Version of PostgreSQL, as 150007.
        schema: Version of the tables; 0: there are none.
        newest: The version that this sidecar makes.
        writers: Who writes to it.
        fsync: Whether a commit survives a power cut, as far as the server goes.
        synchronous_commit: The server's own setting; the sidecar asks for `on` in each write.
        jit: Whether the server compiles what it takes for long queries; writes ask for `off`.
        pooling: What a pooler between us and it gives each client: nothing is between, a session
            of its own, or one for each transaction.
        read_only: Whether it takes no writes: a standby, or set so.
        may_write: Whether this role may write to the tables; True if there are none.
        clock_ahead_s: How far the database's clock is before ours.
        round_trip_s: Of one statement, the fastest of a few.
    """

    server: int
    schema: int
    newest: int
    writers: tuple[str, ...]
    fsync: bool
    synchronous_commit: str
    jit: bool
    pooling: Pooling
    read_only: bool
    may_write: bool
    clock_ahead_s: float
    round_trip_s: float


def about(url: str) -> DatabaseStatus:
    """Look at the database of `url`. Blocking.

    Raises:
        JournalError: it does not answer, or refuses.
    """
    with as_journal_errors(), connect(url) as connection:
        return _about(connection, _pooling(url, connection))


def migrated(url: str) -> list[int]:
    """Apply the migrations that are missing; return their numbers. Blocking.

    Raises:
        JournalError: the database does not answer or refuses, or the tables are a newer sidecar's.
    """
    with as_journal_errors(), connect(url) as connection:
        return migrate(connection)


def _about(connection: Connection, pooling: Pooling) -> DatabaseStatus:
    tx = PostgresTransaction(connection)
    schema = version_of(connection)
    ((fsync, synchronous, jit, read_only),) = tx.rows(
        "SELECT current_setting('fsync'), current_setting('synchronous_commit'),"
        " current_setting('jit'), current_setting('transaction_read_only')"
    )
    names = writers(tx) if schema else []
    may_write = True
    if schema:
        ((may_write,),) = tx.rows(
            "SELECT bool_and(has_table_privilege(name, may)) FROM"
            " unnest(ARRAY['lanes', 'calls', 'turns', 'batches', 'tombstones', 'writer',"
            "  'replicas']) AS name,"
            " unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS may"
            " WHERE to_regclass(name) IS NOT NULL"
        )
    ahead_s, round_trip_s = min((_asked(tx) for _ in range(5)), key=lambda asked: asked[1])
    return DatabaseStatus(
        server=connection.info.server_version,
        schema=schema,
        newest=SCHEMA_VERSION,
        writers=tuple(shown(name) for name in names),
        fsync=fsync == "on",
        synchronous_commit=synchronous,
        jit=jit == "on",
        pooling=pooling,
        read_only=read_only == "on",
        may_write=may_write,
        clock_ahead_s=ahead_s,
        round_trip_s=round_trip_s,
    )


def _pooling(url: str, connection: Connection) -> Pooling:
    """Find out what is between; a second connection shows whether sessions are shared."""
    process = _process(connection)
    if process == connection.info.backend_pid:
        return "none"
    # A pooler gives the session that was used last to whom asks next. Others may ask meanwhile.
    # One that has no second session to give lets us wait.
    with suppress(psycopg.OperationalError), connect(url) as beside:
        timer = threading.Timer(_LOOK_S, cut, [beside])
        timer.start()
        try:
            for _ in range(_LOOKS):
                if _process(beside) == _process(connection):
                    return "transaction"
        finally:
            timer.cancel()
            timer.join()
    return "session"


def _process(connection: Connection) -> int:
    """Return the server's process that a transaction of a connection has."""
    with connection.transaction():
        ((process,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
    return process


def _asked(tx: PostgresTransaction) -> tuple[float, float]:
    """Return how far the database's clock is ahead, and how long it took to ask."""
    asked_s, began_s = time.time(), time.perf_counter()
    ((theirs_s,),) = tx.rows("SELECT extract(epoch FROM clock_timestamp())::float8")
    took_s = time.perf_counter() - began_s
    return theirs_s - (asked_s + took_s / 2), took_s
