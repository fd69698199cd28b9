"""What is kept of a call that was erased with its caller, so that nothing brings it back.

A tombstone is a keyed hash of the call's key, and the time it was set. From the file alone nobody
can tell whose it is, or find out whether a call they know of has one.
"""

import hashlib
import hmac
from collections.abc import Iterable

from sidecar.journal.sql.transaction import Transaction


def seal_of(secret: bytes, key: str) -> bytes:
    """Return the keyed hash of a call's key: without the secret nobody can tell whose it is."""
    return hmac.digest(secret, b"erased call\0" + key.encode(), hashlib.sha256)


def bury(tx: Transaction, seals: Iterable[bytes], *, now_s: float) -> None:
    """Set a tombstone for each of these calls."""
    for seal in seals:
        tx.run(
            "INSERT INTO tombstones(seal, erased_s) VALUES (?, ?)"
            " ON CONFLICT (seal) DO UPDATE SET erased_s = excluded.erased_s",
            seal,
            now_s,
        )


def is_buried(tx: Transaction, seal: bytes) -> bool:
    """Whether a call was erased."""
    return tx.row("SELECT 1 FROM tombstones WHERE seal = ?", seal) is not None


def clear(tx: Transaction, *, before_s: float) -> None:
    """Remove the tombstones that were set before `before_s`."""
    tx.run("DELETE FROM tombstones WHERE erased_s < ?", before_s)
