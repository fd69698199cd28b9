"""Commands into live calls, from the replica that was asked to those that have the call."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from sidecar.journal.elsewhere import Commanded
from sidecar.journal.sql.reads import NAMED, OPENED_LAST
from sidecar.journal.sql.replicas import THERE
from sidecar.journal.sql.transaction import Transaction

LASTS_S: Final = 60.0
"""How long words and a hang-up wait for a replica to take them."""
SUPERSEDES_S: Final = 3.0
"""How long a replica may take to see that a reply is not wanted any more."""
_OPEN: Final = "c.closed_at_s IS NULL AND c.lost_s IS NULL"
_LIVE_ELSEWHERE: Final = f"{_OPEN} AND c.replica <> ? AND c.replica IN {THERE}"
_CALL: Final = "SELECT 1 FROM calls c"
# In this order, from the few commands to their calls.
_COMMANDS: Final = (
    f"SELECT m.n, {OPENED_LAST}, m.command, m.text"  # noqa: S608 - constants
    " FROM commands m CROSS JOIN calls c WHERE c.id = m.call"
)
_TAKEN: Final = f"{_COMMANDS} AND m.command IN ('say', 'hang-up') AND c.replica = ?"


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
    drop_late(tx, now_s=now_s)
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
        f"{_COMMANDS} AND {_OPEN} AND m.command IN ('guide', 'supersede') AND m.n > ?", after
    )
    for key in opened:
        found += tx.rows(
            f"{_COMMANDS} AND {_OPEN} AND m.command = 'guide' AND m.n <= ?2 AND c.id = {NAMED}",
            key,
            after,
        )
    return _commanded(found)


def to_take(tx: Transaction, *, replica: str, live: Collection[str]) -> list[Commanded]:
    """Return the words and hang-ups for calls of a replica that are live there."""
    return [one for one in _commanded(tx.rows(_TAKEN, replica)) if one.call in live]


def take(tx: Transaction, *, replica: str, live: Collection[str]) -> list[Commanded]:
    """Take what `to_take` returns."""
    taken = to_take(tx, replica=replica, live=live)
    for one in taken:
        tx.run("DELETE FROM commands WHERE n = ?", one.n)
    return taken


def drop_late(tx: Transaction, *, now_s: float) -> None:
    """Drop what nobody has taken or seen in time, and what is for a closed call."""
    tx.run(
        "DELETE FROM commands WHERE (command <> 'guide' AND asked_s < ?)"
        " OR (command = 'supersede' AND asked_s < ?)"
        " OR EXISTS (SELECT 1 FROM calls c WHERE c.id = commands.call"
        "  AND c.closed_at_s IS NOT NULL)",
        now_s - LASTS_S,
        now_s - SUPERSEDES_S,
    )


def _commanded(rows: Sequence[tuple[Any, ...]]) -> list[Commanded]:
    return [Commanded(key, command, text, n) for n, key, command, text in rows]
