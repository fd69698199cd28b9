"""Commands into live calls, from the replica that was asked to those that have the call."""

from collections.abc import Sequence
from typing import Final

from sidecar.journal.elsewhere import Commanded
from sidecar.journal.sql.reads import NAMED, OPENED_LAST
from sidecar.journal.sql.replicas import THERE
from sidecar.journal.sql.transaction import Transaction

LASTS_S: Final = 60.0
_OPEN: Final = "c.closed_at_s IS NULL AND c.lost_s IS NULL"
_LIVE_ELSEWHERE: Final = f"{_OPEN} AND c.replica <> ? AND c.replica IN {THERE}"
_CALL: Final = "SELECT 1 FROM calls c"
_COMMANDS: Final = (
    f"SELECT m.n, {OPENED_LAST}, m.command, m.text"  # noqa: S608 - constants
    " FROM commands m JOIN calls c ON c.id = m.call"
)


def live_elsewhere(tx: Transaction, *, replica: str) -> dict[str, str]:
    """See `Elsewhere.live_elsewhere`."""
    rows = tx.rows(
        f"SELECT c.key, {OPENED_LAST} FROM calls c"  # noqa: S608 - constants
        f" WHERE {_LIVE_ELSEWHERE} ORDER BY c.id",
        replica,
    )
    return {name: key for key, last in rows for name in (key, last)}


def pass_on(tx: Transaction, commanded: Commanded, *, replica: str, now_s: float) -> int:
    """See `Elsewhere.pass_on`."""
    (call,) = tx.rows(f"SELECT {NAMED}", commanded.call)[0]
    if commanded.command in {"guide", "supersede"}:
        found = tx.rows(f"{_CALL} WHERE {_OPEN} AND c.id = ?", call)
    else:
        found = tx.rows(f"{_CALL} WHERE {_LIVE_ELSEWHERE} AND c.id = ?", replica, call)
    if not found:
        return 0
    rows = tx.rows(
        "INSERT INTO commands(call, command, text, asked_s) VALUES (?, ?, ?, ?) RETURNING n",
        call,
        commanded.command,
        commanded.text,
        now_s,
    )
    return int(rows[0][0])


def for_all(tx: Transaction, *, after: int, opened: Sequence[str]) -> list[Commanded]:
    """Return the part of `Elsewhere.passed_on` that is not taken."""
    if tx.row("SELECT 1 FROM commands LIMIT 1") is None:
        return []
    found = tx.rows(
        f"{_COMMANDS} WHERE {_OPEN} AND m.command IN ('guide', 'supersede') AND m.n > ?", after
    )
    for key in opened:
        found += tx.rows(
            f"{_COMMANDS} WHERE {_OPEN} AND m.command = 'guide' AND m.n <= ?2 AND c.id = {NAMED}",
            key,
            after,
        )
    return [Commanded(key, command, text, n) for n, key, command, text in found]


def is_any_due(tx: Transaction, *, replica: str, now_s: float) -> bool:
    """Whether `take` would change anything."""
    sql = (
        "SELECT 1 FROM commands m JOIN calls c ON c.id = m.call WHERE c.closed_at_s IS NOT NULL"
        " OR (m.command <> 'guide' AND m.asked_s < ?)"
        " OR (m.command IN ('say', 'hang-up') AND c.replica = ?) LIMIT 1"
    )
    return tx.row(sql, now_s - LASTS_S, replica) is not None


def take(tx: Transaction, *, replica: str, now_s: float) -> list[Commanded]:
    """Take the words and hang-ups for calls of a replica; drop what is too late for any."""
    tx.run("DELETE FROM commands WHERE command <> 'guide' AND asked_s < ?", now_s - LASTS_S)
    tx.run(
        "DELETE FROM commands WHERE call IN (SELECT id FROM calls WHERE closed_at_s IS NOT NULL)"
    )
    taken = tx.rows(f"{_COMMANDS} WHERE m.command IN ('say', 'hang-up') AND c.replica = ?", replica)
    for n, *_ in taken:
        tx.run("DELETE FROM commands WHERE n = ?", n)
    return [Commanded(key, command, text, n) for n, key, command, text in taken]
