"""What the journal stores of one caller, and how that, or what is old, is erased."""

from collections.abc import Sequence
from typing import Final

from sidecar.errors import CallerBusy
from sidecar.journal.erasure import StoredOfCaller
from sidecar.journal.sql.batches import free_lane
from sidecar.journal.sql.tombstones import bury, seal_of, seal_of_agent, seal_of_caller
from sidecar.journal.sql.transaction import Transaction
from sidecar.model import AgentRef

_ERASE_CALLS: Final = 50
_OF_CALLS: Final = ("turns", "batches", "successors", "commands", "once")


def stored_of_caller(tx: Transaction, caller_key: str) -> StoredOfCaller:
    """Return what is stored of a caller."""
    if not caller_key:
        return StoredOfCaller((), 0, 0, 0, 0, 0, (), (), None)
    calls = tx.rows("SELECT key FROM calls WHERE caller_key = ? ORDER BY id", caller_key)
    live, turns, undelivered = tx.rows(
        "SELECT count(*) FILTER (WHERE closed_at_s IS NULL), coalesce(sum(head), 0),"
        " coalesce(sum(head - acked), 0) FROM calls WHERE caller_key = ?",
        caller_key,
    )[0]
    dead, under_way = tx.rows(
        "SELECT count(*) FILTER (WHERE state = 'dead'), count(*) FILTER (WHERE state = 'sending')"
        " FROM batches WHERE call IN (SELECT id FROM calls WHERE caller_key = ?1)",
        caller_key,
    )[0]
    lanes = [
        (AgentRef.of_lane(name), agent_id)
        for name, agent_id in tx.rows(
            "SELECT name, agent_id FROM lanes WHERE id IN"
            " (SELECT id FROM lanes WHERE substr(name, instr(name, '/') + 1) = ?2"
            "  UNION SELECT lane FROM calls WHERE caller_key = ?1)",
            caller_key,
            f"caller/{caller_key}",
        )
    ]
    own = next((agent for ref, agent in lanes if ref.caller_key == caller_key), None)
    agents = {ref.agent_id or agent for ref, agent in lanes} - {None}
    conversations = tx.rows(
        "SELECT l.name, l.agent_id, c.conversation_id FROM calls c JOIN lanes l ON l.id = c.lane"
        " WHERE c.caller_key = ? AND c.conversation_id IS NOT NULL ORDER BY c.id",
        caller_key,
    )
    return StoredOfCaller(
        tuple(key for (key,) in calls),
        live,
        turns,
        undelivered,
        dead,
        under_way,
        tuple(sorted(agents)),
        tuple(
            (AgentRef.of_lane(lane).agent_id or agent or "", c) for lane, agent, c in conversations
        ),
        own,
    )


def erase_caller(
    tx: Transaction,
    caller_key: str,
    *,
    also: Sequence[str],
    agents: Sequence[str],
    secret: bytes,
    now_s: float,
) -> int:
    """Erase all calls of a caller, with a tombstone for each, and for all else that is theirs.

    Returns:
        How many turns.

    Raises:
        CallerBusy: a call is live or a batch under way; nothing was erased.
    """
    if not caller_key:
        return 0
    stored = stored_of_caller(tx, caller_key)
    if stored.live_calls:
        raise CallerBusy("a call of this caller is live", hint="try again when it has ended")
    if stored.under_way:
        raise CallerBusy(
            "a batch of this caller is on its way to Letta", hint="try again in a minute"
        )
    succeeding = tx.rows(
        "SELECT key FROM successors WHERE call IN (SELECT id FROM calls WHERE caller_key = ?)",
        caller_key,
    )
    keys = (*stored.calls, *(key for (key,) in succeeding), *also)
    seals = [
        *(seal_of(secret, key) for key in keys),
        *(seal_of_agent(secret, agent) for agent in agents),
        seal_of_caller(secret, caller_key),
    ]
    bury(tx, seals, now_s=now_s)
    lanes = tx.rows("SELECT DISTINCT lane FROM calls WHERE caller_key = ?", caller_key)
    for (lane,) in lanes:
        tx.run(
            "UPDATE lanes SET open_batch = NULL WHERE id = ?2 AND open_batch IN"
            " (SELECT id FROM batches WHERE call IN (SELECT id FROM calls WHERE caller_key = ?1))",
            caller_key,
            lane,
        )
    erased = _erase_calls(tx, "caller_key = ?", caller_key)
    for (lane,) in lanes:
        row = tx.row("SELECT open_batch, hold_s FROM lanes WHERE id = ?", lane)
        if row is not None and row[0] is None:
            free_lane(tx, lane, now_s=now_s, hold_until_s=row[1])
    tx.run(
        "DELETE FROM lanes WHERE substr(name, instr(name, '/') + 1) = ?"
        " AND NOT EXISTS (SELECT 1 FROM calls WHERE lane = lanes.id)",
        f"caller/{caller_key}",
    )
    return erased


def erase_ended(tx: Transaction, *, before_s: float) -> int | None:
    """Erase some calls that ended before `before_s`; return how many turns, None: no call left.

    Only some at a time, because an append waits for the transaction it shares with them.
    """
    calls = tx.rows(
        "SELECT id FROM calls c WHERE coalesce(closed_at_s, last_s) < ? AND head = acked"
        " AND NOT EXISTS (SELECT 1 FROM batches b WHERE b.call = c.id"
        "  AND b.state NOT IN ('settled', 'dropped')) LIMIT ?",
        before_s,
        _ERASE_CALLS,
    )
    if not calls:
        return None
    return sum(_erase_calls(tx, "id = ?", row_id) for (row_id,) in calls)


def _erase_calls(tx: Transaction, which: str, value: int | str) -> int:
    """Erase calls with all that is stored of them; return how many turns.

    Args:
        tx: The transaction.
        which: A condition on `calls`, of constants and one `?`.
        value: For the `?`.
    """
    calls = f"(SELECT id FROM calls WHERE {which})"  # noqa: S608 - constants
    turns, *_ = [
        tx.run(f"DELETE FROM {table} WHERE call IN {calls}", value)  # noqa: S608 - constants
        for table in _OF_CALLS
    ]
    tx.run(f"DELETE FROM calls WHERE {which}", value)  # noqa: S608 - constants
    return turns
