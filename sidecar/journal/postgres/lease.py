"""Who writes to the journal: one sidecar at a time, for as long as it renews its lease.

The lease is a row, not a lock of the session: a transaction pooler gives each transaction another
session. Every write renews it in its own transaction, and stores nothing if another holds it. Only
the database's clock counts.
"""

import hashlib
import hmac
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, LiteralString, cast

from sidecar.errors import JournalLocked, JournalRefused, LeaseLost
from sidecar.journal.postgres.connection import STATEMENT_S, Connection
from sidecar.journal.postgres.owner import is_gone, own_name, shown
from sidecar.journal.postgres.transactions import PostgresTransaction

LEASE_S: Final = 5.0
RENEW_S: Final = 1.5
"""Less than a third of the lease: two renewals may be late before another may take it."""
_IN_TIME: Final = cast("LiteralString", f"SET LOCAL statement_timeout = '{STATEMENT_S}s'")


@dataclass(frozen=True, slots=True)
class Lease:
    """A right to write.

    Attributes:
        owner: Names the process, for people and to tell it from every other.
        epoch: Grows with each taking.
    """

    owner: str
    epoch: int


def take(connection: Connection, *, secret: bytes, copied_from: str = "") -> Lease:
    """Take the lease.

    Args:
        connection: To the database.
        secret: The installation's. The first taking stores a keyed hash of it; another one's
            tombstones would not be found.
        copied_from: Where a copy comes from that is about to be made or finished.

    Raises:
        JournalLocked: another holds it.
        JournalRefused: the journal belongs to another installation's secret; or a copy into it was
            not finished; or a copy is to be made, and it is not empty.
        psycopg.Error: the database refused.
    """
    tx = PostgresTransaction(connection)
    ours = hmac.digest(secret, b"installation", hashlib.sha256)
    ((theirs, unfinished),) = tx.rows("SELECT installation, copied_from FROM writer")
    if theirs is not None and theirs != ours:
        raise JournalRefused(
            "the journal's database belongs to an installation with another secret",
            hint="set SIDECAR_SECRET, or copy the file `secret` of its data directory",
        )
    if unfinished and not copied_from:
        raise JournalRefused(
            f"a copy of {unfinished} into this journal was not finished",
            hint="repeat `sidecar journal copy`",
        )
    if copied_from and unfinished != copied_from and tx.row("SELECT 1 FROM lanes LIMIT 1"):
        raise JournalRefused("there is a journal already", hint="name an empty database")
    owner = own_name()
    there = owner_of(tx)
    row = tx.row(
        "UPDATE writer SET owner = ?1, epoch = epoch + 1, installation = ?3, copied_from = ?4,"
        " until = clock_timestamp() + make_interval(secs => ?2)"
        " WHERE owner = '' OR until < clock_timestamp() OR owner = ?5 RETURNING epoch",
        owner,
        LEASE_S,
        ours,
        copied_from,
        there if is_gone(there) else None,
    )
    if row is not None:
        return Lease(owner, row[0])
    raise JournalLocked(
        f"{shown(owner_of(tx))} writes to this journal",
        hint=f"stop it; if it is gone, its lease ends within {LEASE_S:.0f} s",
    )


def owner_of(tx: PostgresTransaction) -> str:
    """Return who holds the lease; empty: nobody does."""
    row = tx.row("SELECT owner FROM writer WHERE until >= clock_timestamp()")
    return "" if row is None else row[0]


def renew(tx: PostgresTransaction, lease: Lease) -> int:
    """Renew the lease within a transaction; return the number of that transaction.

    Raises:
        LeaseLost: another has it.
    """
    row = tx.row(
        "UPDATE writer SET commits = commits + 1,"
        " until = clock_timestamp() + make_interval(secs => ?3)"
        " WHERE owner = ?1 AND epoch = ?2 RETURNING commits",
        lease.owner,
        lease.epoch,
        LEASE_S,
    )
    if row is None:
        raise _lost()
    return row[0]


def is_committed(connection: Connection, lease: Lease, number: int) -> bool:
    """Whether the transaction of a number took effect; waits until it has ended.

    A transaction whose connection was cut may still be committing: it holds the row until then.

    Raises:
        LeaseLost: another has the lease, so nobody can say.
        psycopg.Error: the database did not answer.
    """
    with _in_time(connection):
        row = PostgresTransaction(connection).row(
            "SELECT commits FROM writer WHERE owner = ?1 AND epoch = ?2 FOR UPDATE",
            lease.owner,
            lease.epoch,
        )
    if row is None:
        raise _lost()
    return row[0] >= number


def give_back(connection: Connection, lease: Lease) -> None:
    """Let another take the lease at once."""
    with _in_time(connection):
        PostgresTransaction(connection).run(
            "UPDATE writer SET owner = '' WHERE owner = ?1 AND epoch = ?2", lease.owner, lease.epoch
        )


@contextmanager
def _in_time(connection: Connection) -> Generator[None]:
    """Let the server give up on statements that wait for too long, in one transaction."""
    with connection.transaction():
        connection.execute(_IN_TIME)
        yield


def _lost() -> LeaseLost:
    return LeaseLost(
        "another sidecar writes to the journal now", hint="restart this one, or stop it"
    )
