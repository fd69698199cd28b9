"""Who writes to the journal: replicas beside one another, or one process alone.

A replica has a row with a lease, not a lock of its session: a transaction pooler gives each
transaction another session. Each write locks the one row of `writer` first, so that transactions of
all replicas follow one another, and renews its replica's lease; it stores nothing if that replica
was taken for gone. Only the database's clock counts.

A command that needs the journal for itself, and a sidecar of the versions before replicas, puts its
name into `writer`; then no other writes.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, LiteralString, cast

from sidecar.errors import JournalLocked, JournalRefused, LeaseLost
from sidecar.journal.postgres.connection import IDLE_S, STATEMENT_S, Connection
from sidecar.journal.postgres.owner import is_gone, own_name, shown
from sidecar.journal.postgres.transactions import PostgresTransaction
from sidecar.journal.sql.transaction import Transaction

LEASE_S: Final = 5.0
RENEW_S: Final = 1.5
"""Less than a third of the lease: two renewals may be late before a replica is taken for gone."""
_AT_ONCE_S: Final = 0.2
_LOOKS: Final = 5
_REPLICAS: Final = "*"
"""In place of an owner's name: the replicas write, in turn."""
_IN_TIME: Final = cast(
    "LiteralString",
    f"SET LOCAL statement_timeout = '{STATEMENT_S}s';"
    f" SET LOCAL idle_in_transaction_session_timeout = '{IDLE_S}s'",
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A right to write.

    Attributes:
        replica: Names this run of a process, for people and to tell it from every other.
        alone: Whether nobody else may write meanwhile.
    """

    replica: str
    alone: bool

    @property
    def owner(self) -> str:
        """What stands in `writer`."""
        return self.replica if self.alone else _REPLICAS


def take(
    connection: Connection,
    *,
    secret: bytes,
    freed: Callable[[Transaction], None],
    alone: bool = False,
    copied_from: str = "",
) -> Lease:
    """Take a lease, under a new name.

    Args:
        connection: To the database.
        secret: The installation's. The first taking stores a keyed hash of it; another one's
            tombstones would not be found.
        freed: Frees what replicas that are gone have claimed, within the transaction.
        alone: Only where no replica is there, and let none come.
        copied_from: Where a copy comes from that is about to be made or finished.

    Raises:
        JournalLocked: another writes alone; or a replica is there, and `alone` is set.
        JournalRefused: the journal belongs to another installation's secret; or a copy into it was
            not finished; or a copy is to be made, and it is not empty.
        psycopg.Error: the database refused.
    """
    with _in_time(connection):
        tx = PostgresTransaction(connection)
        ((owner, ended, theirs, unfinished),) = tx.rows(
            "SELECT owner, until < clock_timestamp(), installation, copied_from FROM writer"
            " FOR UPDATE"
        )
        ours = hmac.digest(secret, b"installation", hashlib.sha256)
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
        _require_free(tx, owner, ended=ended, alone=alone)
        lease = Lease(own_name(), alone)
        tx.run(
            "UPDATE writer SET owner = ?1, epoch = epoch + 1, installation = ?2, copied_from = ?3,"
            " until = clock_timestamp() + make_interval(secs => ?4)",
            lease.owner,
            ours,
            copied_from,
            LEASE_S,
        )
        tx.run(
            "INSERT INTO replicas(name, entered_s, until)"
            " VALUES (?1, extract(epoch FROM clock_timestamp())::float8,"
            " clock_timestamp() + make_interval(secs => ?2))",
            lease.replica,
            LEASE_S,
        )
        freed(tx)
        return lease


def _require_free(tx: PostgresTransaction, owner: str, *, ended: bool, alone: bool) -> None:
    """Let a lease be taken; replicas that are in the way, and gone, go out of `replicas`.

    Raises:
        JournalLocked: see `take`.
    """
    if owner == _REPLICAS:
        reap(tx, ended=alone)
        if alone:
            there = tx.row("SELECT name FROM replicas ORDER BY name LIMIT 1")
            if there is not None:
                raise _locked(there[0])
    elif owner and not ended and not is_gone(owner):
        raise _locked(owner)
    else:
        tx.run("DELETE FROM replicas")


def reap(tx: PostgresTransaction, *, except_for: str = "", ended: bool) -> bool:
    """Take out of `replicas` those that are gone; return whether any was.

    To be called in a transaction that has locked `writer`.

    Args:
        tx: The transaction.
        except_for: A replica that is there.
        ended: Those whose lease has ended, too; False: only those whose process has.
    """
    gone = [
        name
        for name, has_ended in tx.rows(
            "SELECT name, until < clock_timestamp() FROM replicas WHERE name <> ?", except_for
        )
        if (ended and has_ended) or is_gone(name)
    ]
    for name in gone:
        tx.run("DELETE FROM replicas WHERE name = ?", name)
    return bool(gone)


def writers(tx: PostgresTransaction) -> list[str]:
    """Return the names of those who write, oldest first."""
    ((owner, ended),) = tx.rows("SELECT owner, until < clock_timestamp() FROM writer")
    if owner != _REPLICAS:
        return [owner] if owner and not ended else []
    rows = tx.rows(
        "SELECT name FROM replicas WHERE until >= clock_timestamp() ORDER BY entered_s, name"
    )
    return [name for (name,) in rows]


def renew(tx: PostgresTransaction, lease: Lease) -> tuple[int, float]:
    """Wait for the turn of this transaction, and renew the lease within it, even a late one.

    Returns:
        The number of the transaction among those of this lease, and the database's Unix time.

    Raises:
        LeaseLost: the replica was taken for gone, or another writes alone.
    """
    # Locks `writer` before the replica's row, as everyone does.
    row = tx.row(
        "WITH turn AS (UPDATE writer SET until = clock_timestamp() + make_interval(secs => ?3)"
        " WHERE owner = ?2 RETURNING one)"
        " UPDATE replicas SET commits = commits + 1,"
        " until = clock_timestamp() + make_interval(secs => ?3)"
        " FROM turn WHERE name = ?1 AND one = 1"
        " RETURNING commits, extract(epoch FROM clock_timestamp())::float8",
        lease.replica,
        lease.owner,
        LEASE_S,
    )
    if row is None:
        raise _lost()
    return row[0], row[1]


def ahead_s(database_s: float, *, asked_s: float) -> float | None:
    """Return by how much the database's Unix time is ahead of the monotonic clock.

    Args:
        database_s: As it answered just now.
        asked_s: What the monotonic clock showed when it was asked.

    Returns:
        None: the answer took too long to say when it was given.
    """
    answered_s = time.monotonic()
    return database_s - answered_s if answered_s - asked_s < _AT_ONCE_S else None


def look_at_clock(connection: Connection) -> float | None:
    """Return what `ahead_s` does; None if no answer of a few came at once."""
    for _ in range(_LOOKS):
        asked_s = time.monotonic()
        ((now_s,),) = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        if (ahead := ahead_s(now_s, asked_s=asked_s)) is not None:
            return ahead
    return None


def is_committed(connection: Connection, lease: Lease, number: int) -> bool:
    """Whether the transaction of a number took effect; waits until it has ended.

    A transaction whose connection was cut may still be committing: it has the row until then.

    Raises:
        LeaseLost: the replica was taken for gone, so nobody can say.
        psycopg.Error: the database did not answer.
    """
    with _in_time(connection):
        row = PostgresTransaction(connection).row(
            "SELECT commits FROM replicas WHERE name = ? FOR UPDATE", lease.replica
        )
    if row is None:
        raise _lost()
    return row[0] >= number


@contextmanager
def giving_back(connection: Connection, lease: Lease) -> Generator[PostgresTransaction]:
    """Give a lease back, in one transaction with what else is done in it."""
    with _in_time(connection):
        tx = PostgresTransaction(connection)
        tx.rows("SELECT 1 FROM writer FOR UPDATE")
        tx.run("DELETE FROM replicas WHERE name = ?", lease.replica)
        tx.run(
            "UPDATE writer SET owner = '' WHERE owner = ? AND NOT EXISTS (SELECT 1 FROM replicas)",
            lease.owner,
        )
        yield tx


@contextmanager
def _in_time(connection: Connection) -> Generator[None]:
    """Let the server give up on statements that wait for too long, in one transaction."""
    with connection.transaction():
        connection.execute(_IN_TIME)
        yield


def _locked(name: str) -> JournalLocked:
    return JournalLocked(
        f"{shown(name)} writes to this journal",
        hint=f"stop it; if it is gone, its lease ends within {LEASE_S:.0f} s",
    )


def _lost() -> LeaseLost:
    return LeaseLost("another sidecar writes to the journal now", hint="try again")
