"""Commands into live calls, from the replica that was asked to the one that has the call."""

from typing import Final

from sidecar.journal.elsewhere import Commanded
from sidecar.journal.sql.reads import NAMED, OPENED_LAST
from sidecar.journal.sql.replicas import THERE
from sidecar.journal.sql.transaction import Transaction

KEPT_S: Final = 60.0
_LIVE_ELSEWHERE: Final = (
    f"closed_at_s IS NULL AND lost_s IS NULL AND replica <> ? AND replica IN {THERE}"
)


def live_elsewhere(tx: Transaction, *, replica: str) -> list[str]:
    """Return the keys of the calls that are live at other replicas."""
    sql = f"SELECT key FROM calls WHERE {_LIVE_ELSEWHERE} ORDER BY id"  # noqa: S608 - constants
    return [key for (key,) in tx.rows(sql, replica)]


def pass_on(tx: Transaction, commanded: Commanded, *, replica: str, now_s: float) -> bool:
    """Store a command for another replica; False: none has the call."""
    row = tx.row(f"SELECT {NAMED}", commanded.call)
    live = f"SELECT id FROM calls WHERE {_LIVE_ELSEWHERE} AND id = ?"  # noqa: S608 - constants
    if row is None or tx.row(live, replica, row[0]) is None:
        return False
    tx.run(
        "INSERT INTO commands(call, command, text, asked_s) VALUES (?, ?, ?, ?)",
        row[0],
        commanded.command,
        commanded.text,
        now_s,
    )
    return True


def is_any(tx: Transaction) -> bool:
    """Whether any command is stored."""
    return tx.row("SELECT 1 FROM commands LIMIT 1") is not None


def passed_on(tx: Transaction, *, replica: str, now_s: float) -> list[Commanded]:
    """Take the commands for calls of a replica, and drop those that nobody took in time."""
    tx.run("DELETE FROM commands WHERE asked_s < ?", now_s - KEPT_S)
    found = tx.rows(
        f"SELECT m.id, {OPENED_LAST}, m.command, m.text FROM commands m"  # noqa: S608 - constants
        " JOIN calls c ON c.id = m.call WHERE c.replica = ? ORDER BY m.id",
        replica,
    )
    for row_id, *_ in found:
        tx.run("DELETE FROM commands WHERE id = ?", row_id)
    return [Commanded(key, command, text) for _, key, command, text in found]
