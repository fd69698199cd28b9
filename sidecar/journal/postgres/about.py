"""What there is to know of a journal's database, for `sidecar journal status` and the doctor."""

import time
from dataclasses import dataclass

from sidecar.journal.postgres.connection import Connection, connect
from sidecar.journal.postgres.faults import as_journal_errors
from sidecar.journal.postgres.lease import writers
from sidecar.journal.postgres.owner import shown
from sidecar.journal.postgres.schema import SCHEMA_VERSION, migrate, version_of
from sidecar.journal.postgres.transactions import PostgresTransaction


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
        return _about(connection)


def migrated(url: str) -> list[int]:
    """Apply the migrations that are missing; return their numbers. Blocking.

    Raises:
        JournalError: the database does not answer or refuses, or the tables are a newer sidecar's.
    """
    with as_journal_errors(), connect(url) as connection:
        return migrate(connection)


def _about(connection: Connection) -> DatabaseStatus:
    tx = PostgresTransaction(connection)
    schema = version_of(connection)
    ((fsync, synchronous, read_only),) = tx.rows(
        "SELECT current_setting('fsync'), current_setting('synchronous_commit'),"
        " current_setting('transaction_read_only')"
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
        read_only=read_only == "on",
        may_write=may_write,
        clock_ahead_s=ahead_s,
        round_trip_s=round_trip_s,
    )


def _asked(tx: PostgresTransaction) -> tuple[float, float]:
    """Return how far the database's clock is ahead, and how long it took to ask."""
    asked_s, began_s = time.time(), time.perf_counter()
    ((theirs_s,),) = tx.rows("SELECT extract(epoch FROM clock_timestamp())::float8")
    took_s = time.perf_counter() - began_s
    return theirs_s - (asked_s + took_s / 2), took_s
