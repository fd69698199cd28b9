"""Who has a call: which replica, and which of the jobs that name it.

A call is that job's which opened it last, and belongs to the replica at which that one did. When
its worker is lost, another job may open it under a key of its own: its *successor* (ADR 20).
"""

from collections.abc import Sequence
from dataclasses import replace

from sidecar.errors import HeardElsewhere
from sidecar.journal.policy import GOES_ON_S
from sidecar.journal.sql.reads import NAMED, NEWEST, OPENED_LAST, free_calls, row_of
from sidecar.journal.sql.replicas import THERE
from sidecar.journal.sql.transaction import Transaction
from sidecar.model import Call


def going_on(
    tx: Transaction, call: Call, *, continues: str, lost: bool, replica: str, now_s: float
) -> int | None:
    """Return the row of the call that a new one goes on with; None: there is none.

    A job that opened its call within the minute is the successor, also if it says so later.

    Raises:
        HeardElsewhere: another replica has it, and its worker is not known to be lost.
    """
    if not call.room or not call.caller_key:
        return None
    row = tx.row(
        "SELECT id, key, replica, closed_at_s, lost_s,"  # noqa: S608 - constants only
        f" CASE WHEN replica IN {THERE} THEN 1 ELSE 0 END"
        " FROM calls WHERE room = ?1 AND room <> '' AND caller_key = ?2"
        f" ORDER BY CASE WHEN key = ?3 THEN 0 ELSE 1 END, {NEWEST} LIMIT 1",
        call.room,
        call.caller_key,
        continues,
    )
    if row is None:
        return None
    row_id, key, whose, closed_at_s, lost_s, is_there = row
    if lost_s is not None:
        after_s = call.opened_at_s - lost_s
        recent = abs(after_s) < GOES_ON_S or (not lost and lost_s > now_s - GOES_ON_S)
    else:
        # A replica takes over what is free as it starts, and every few seconds from then on.
        recent = closed_at_s is None and not is_there
    if recent or (key == continues and whose == replica):
        return row_id
    if closed_at_s is None and lost_s is None and whose != replica:
        raise _heard_elsewhere(tx, row_id)
    return None


def require_not_elsewhere(tx: Transaction, row_id: int, key: str, *, replica: str) -> None:
    """Check that no other replica has a call for another job.

    Raises:
        HeardElsewhere: one has.
    """
    if tx.row(
        "SELECT 1 FROM calls c WHERE c.id = ? AND c.closed_at_s IS NULL"  # noqa: S608 - constants
        f" AND c.lost_s IS NULL AND c.replica <> ? AND c.replica IN {THERE} AND {OPENED_LAST} <> ?",
        row_id,
        replica,
        key,
    ):
        raise _heard_elsewhere(tx, row_id)


def _heard_elsewhere(tx: Transaction, row_id: int) -> HeardElsewhere:
    (row,) = tx.rows(
        f"SELECT c.key, {OPENED_LAST}, coalesce(s.opened_at_s, c.opened_at_s)"  # noqa: S608
        " FROM calls c LEFT JOIN successors s ON s.key = c.opened_by WHERE c.id = ?",
        row_id,
    )
    key, by, since_s = row
    return HeardElsewhere(key, by=by, since_s=since_s)


def refuse(tx: Transaction, key: str) -> None:
    """Mark a call as refused by its caller."""
    sql = f"UPDATE calls SET consent = 'no' WHERE id = {NAMED}"  # noqa: S608 - constants only
    tx.run(f"{sql} AND consent <> 'no'", key)


def lose(tx: Transaction, lost: Sequence[tuple[str, int]], *, replica: str, at_s: float) -> None:
    """Note when the workers of calls were lost that this replica still has at these epochs."""
    for key, epoch in lost:
        tx.run(
            "UPDATE calls SET lost_s = ? WHERE key = ? AND replica = ? AND epoch = ?"
            " AND room <> '' AND closed_at_s IS NULL AND lost_s IS NULL",
            at_s,
            key,
            replica,
            epoch,
        )


def taken_by(tx: Transaction, key: str, *, replica: str) -> int:
    """Take a call for a replica that has not got it, and return its epoch."""
    tx.run(
        "UPDATE calls SET replica = ?1, epoch = epoch + 1 WHERE key = ?2 AND replica <> ?1",
        replica,
        key,
    )
    return tx.rows("SELECT epoch FROM calls WHERE key = ?", key)[0][0]


def take_over(tx: Transaction, *, replica: str, now_s: float, first: bool = False) -> list[Call]:
    """Take the live calls that belong to no replica, and return them; their workers are lost."""
    taken = [
        replace(call, epoch=taken_by(tx, call.key, replica=replica)) for call in free_calls(tx)
    ]
    for call in taken:
        tx.run(
            "UPDATE calls SET lost_s = CASE WHEN ?2 = 1 AND last_s < ?3 THEN last_s ELSE ?3 END"
            " WHERE key = ?1 AND room <> '' AND lost_s IS NULL",
            call.key,
            int(first),
            now_s,
        )
    return taken


def retake(tx: Transaction, key: str, *, replica: str) -> int | None:
    """Take a live call, whoever has it; return its epoch.

    None: it is closed or unknown, or another worker goes on with it.
    """
    row_id = row_of(tx, key)
    row = None
    if row_id is not None and is_last(tx, row_id, key):
        row = tx.row("SELECT key FROM calls WHERE id = ? AND closed_at_s IS NULL", row_id)
    if row is None:
        return None
    tx.run("UPDATE calls SET lost_s = NULL WHERE id = ? AND lost_s IS NOT NULL", row_id)
    return taken_by(tx, row[0], replica=replica)


def is_last(tx: Transaction, row_id: int, key: str) -> bool:
    """Whether a call was opened last by this key."""
    sql = f"SELECT {OPENED_LAST} FROM calls c WHERE c.id = ?"  # noqa: S608 - constants
    return tx.row(sql, row_id) == (key,)
