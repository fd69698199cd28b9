"""What may be done once by all replicas together."""

from sidecar.journal.sql.reads import NAMED
from sidecar.journal.sql.transaction import Transaction


def first(tx: Transaction, name: str, *, call: str, until_s: float, now_s: float) -> str | None:
    """See `Once.first`. Drops what is no longer known."""
    clear(tx, now_s=now_s)
    taken = tx.run(
        f"INSERT INTO once(call, name, until_s) VALUES ({NAMED}, ?2, ?3)"  # noqa: S608 - constants
        " ON CONFLICT(name) DO NOTHING",
        call,
        name,
        until_s,
    )
    if taken:
        return None
    return str(tx.rows("SELECT answer FROM once WHERE name = ?", name)[0][0])


def answer(tx: Transaction, name: str, text: str) -> None:
    """See `Once.answer`. That of no stored call is not stored: nobody could erase it."""
    tx.run("UPDATE once SET answer = ?2 WHERE name = ?1 AND call IS NOT NULL", name, text)


def clear(tx: Transaction, *, now_s: float) -> None:
    """Drop what is no longer known."""
    tx.run("DELETE FROM once WHERE until_s < ?", now_s)
