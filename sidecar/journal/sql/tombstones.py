"""What is kept of calls, callers and agents that were erased, so that nothing brings them back.

A tombstone is a keyed hash of a key, and the time it was set. From the journal alone nobody can
tell whose it is, or find out whether a call or a caller they know of has one.
"""

import hashlib
import hmac
from collections.abc import Collection, Iterable

from sidecar.journal.sql.transaction import Transaction


def seal_of(secret: bytes, key: str) -> bytes:
    """Return the keyed hash of a call's key: without the secret nobody can tell whose it is."""
    return hmac.digest(secret, b"erased call\0" + key.encode(), hashlib.sha256)


def seal_of_caller(secret: bytes, caller_key: str) -> bytes:
    """Return the keyed hash of a caller's key."""
    return hmac.digest(secret, b"erased caller\0" + caller_key.encode(), hashlib.sha256)


def seal_of_agent(secret: bytes, agent_id: str) -> bytes:
    """Return the keyed hash of an agent's id."""
    return hmac.digest(secret, b"erased agent\0" + agent_id.encode(), hashlib.sha256)


def bury(tx: Transaction, seals: Iterable[bytes], *, now_s: float) -> None:
    """Set a tombstone for each of these."""
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


def erased_s(tx: Transaction, seal: bytes) -> float:
    """Return when it was erased; 0: it was not."""
    row = tx.row("SELECT erased_s FROM tombstones WHERE seal = ?", seal)
    return row[0] if row else 0.0


def is_any_since(tx: Transaction, since_s: float) -> bool:
    """Whether anything was erased since."""
    return tx.row("SELECT 1 FROM tombstones WHERE erased_s >= ? LIMIT 1", since_s) is not None


def erased_agents(
    tx: Transaction, agent_ids: Collection[str], *, secret: bytes, since_s: float
) -> set[str]:
    """Return which of these agents were erased since."""
    rows = tx.rows("SELECT seal FROM tombstones WHERE erased_s >= ?", since_s)
    seals = {bytes(seal) for (seal,) in rows}
    return {agent_id for agent_id in agent_ids if seal_of_agent(secret, agent_id) in seals}


def clear(tx: Transaction, *, before_s: float) -> None:
    """Remove the tombstones that were set before `before_s`."""
    tx.run("DELETE FROM tombstones WHERE erased_s < ?", before_s)
