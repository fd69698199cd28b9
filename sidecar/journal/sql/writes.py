"""What the journal writes about calls and turns, each function one operation inside a transaction.

Invariants, kept by every operation here and in `batches.py`:

* A lane's `due_s` is NULL while its open batch is being sent. Otherwise it is the time of the open
  batch's next try, or, without an open batch, the earliest `due_s` of its calls and of what was
  replayed, but not before `hold_s`.
* A call's `due_s` is NULL exactly when nothing of it is pending (`sealed = head`).
* `open_batch` names the one batch of a lane that may be under way.
"""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from sidecar.errors import CallError
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sql.reads import SELECT_CALL, call_of_row, row_of
from sidecar.journal.sql.replicas import THERE, require_call
from sidecar.journal.sql.taking import going_on, is_last, require_not_elsewhere, taken_by
from sidecar.journal.sql.tombstones import erased_s, is_buried, seal_of, seal_of_caller
from sidecar.journal.sql.transaction import Transaction
from sidecar.model import AgentRef, Call, Turn, joined_consent, succeeding_item

_SUCCEEDED = "(SELECT call FROM successors WHERE key = ?)"
_SELECT_LOG = (
    "SELECT id, lane, deliver, closed_at_s, head, sealed, due_s, consent, replica, room FROM calls"
)
_FREE_OR_OWN = f"(replica = ?2 OR replica NOT IN {THERE})"


# Calls and turns


def open_call(
    tx: Transaction,
    call: Call,
    *,
    replica: str,
    secret: bytes,
    now_s: float,
    policy: PostPolicy,
    continues: str = "",
    lost_s: float | None = None,
) -> Call:
    """Store a call, reopen the stored one, or go on with another; take it, and return it as stored.

    Raises:
        CallError: it was erased with its caller (`erased`), or belongs to another caller.
        HeardElsewhere: another replica has the call that it would go on with.
    """
    row_id = row_of(tx, call.key)
    goes_on = row_id is None
    if row_id is None:
        if is_buried(tx, seal_of(secret, call.key)):
            raise _erased()
        if lost_s is not None and lost_s < erased_s(tx, seal_of_caller(secret, call.caller_key)):
            raise _erased()
        row_id = going_on(
            tx, call, continues=continues, lost=lost_s is not None, replica=replica, now_s=now_s
        )
        if row_id is None:
            return _new_call(tx, call, lost_s=lost_s, replica=replica, now_s=now_s)
        tx.run(
            "INSERT INTO successors(key, call, opened_at_s) VALUES (?, ?, ?)",
            call.key,
            row_id,
            call.opened_at_s,
        )
    else:
        require_not_elsewhere(tx, row_id, call.key, replica=replica)
    stored = call_of_row(tx.rows(f"{SELECT_CALL} WHERE c.id = ?", row_id)[0])
    if stored.caller_key not in {"", call.caller_key}:
        raise CallError("call_claimed", "the call is stored as another caller's")
    if stored.closed_at_s is not None:
        tx.run("UPDATE calls SET closed_at_s = NULL WHERE id = ?", row_id)
        reschedule_call(tx, row_id, now_s=now_s, policy=policy)
    consent = joined_consent(stored.consent, call.consent)
    if consent != stored.consent:
        tx.run("UPDATE calls SET consent = ? WHERE id = ?", consent, row_id)
    room = call.room if lost_s is None else stored.room
    if lost_s is not None:
        lived_s = min(lost_s, now_s)
        tx.run(
            "UPDATE calls SET lost_s = max(coalesce(lost_s, ?1), ?1) WHERE id = ?2", lived_s, row_id
        )
    else:
        tx.run(
            "UPDATE calls SET room = ?1, lost_s = NULL"
            " WHERE id = ?2 AND (room <> ?1 OR lost_s IS NOT NULL)",
            room,
            row_id,
        )
    if goes_on or lost_s is None:
        tx.run(
            "UPDATE calls SET opened_by = nullif(?1, key)"
            " WHERE id = ?2 AND coalesce(opened_by, key) <> ?1",
            call.key,
            row_id,
        )
    epoch = taken_by(tx, stored.key, replica=replica)
    return replace(stored, closed_at_s=None, consent=consent, room=room, epoch=epoch)


def _new_call(
    tx: Transaction, call: Call, *, lost_s: float | None, replica: str, now_s: float
) -> Call:
    tx.run(
        "INSERT INTO calls(key, lane, deliver, channel, caller_key, opened_at_s,"
        " closed_at_s, conversation_id, consent, last_s, room, lost_s, replica, epoch)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
        call.key,
        _lane_id(tx, call.ref),
        int(call.ref.known),
        call.channel,
        call.caller_key,
        call.opened_at_s,
        call.closed_at_s,
        call.conversation_id,
        call.consent,
        now_s,
        call.room,
        None if lost_s is None else min(lost_s, now_s),
        replica,
    )
    if call.caller_key:
        _hasten_earlier(tx, call, now_s=now_s)
    return replace(call, epoch=1)


def _hasten_earlier(tx: Transaction, call: Call, *, now_s: float) -> None:
    """Make what is pending of the caller's other calls in this lane due now."""
    lane = _lane_id(tx, call.ref)
    if tx.run(
        "UPDATE calls SET due_s = ?1 WHERE lane = ?2 AND due_s > ?1 AND caller_key || '' = ?3",
        now_s,
        lane,
        call.caller_key,
    ):
        hasten_lane(tx, lane, now_s)


def identify(
    tx: Transaction, call: Call, *, secret: bytes, now_s: float, policy: PostPolicy
) -> Call:
    """Give a call its caller, and its agent if it had none; then its turns become pending.

    Raises:
        CallError: it was erased with its caller (`erased`), or never opened.
    """
    row = tx.row(f"{SELECT_CALL} WHERE c.key = ?", call.key)
    if row is None:
        raise _erased() if is_buried(tx, seal_of(secret, call.key)) else _unknown_call()
    stored = call_of_row(row)
    if stored.caller_key or (stored.ref.known and stored.ref != call.ref):
        return stored
    row_id = _row_id(tx, call.key)
    tx.run("UPDATE calls SET caller_key = ? WHERE id = ?", call.caller_key, row_id)
    if call.ref.known and not stored.ref.known:
        tx.run(
            "UPDATE calls SET lane = ?, deliver = 1, sealed = 0, acked = 0, due_s = NULL"
            " WHERE id = ?",
            _lane_id(tx, call.ref),
            row_id,
        )
        reschedule_call(tx, row_id, now_s=now_s, policy=policy)
    if call.caller_key:
        _hasten_earlier(tx, call, now_s=now_s)
    return replace(stored, ref=call.ref, caller_key=call.caller_key)


def append(
    tx: Transaction,
    turns: Sequence[Turn],
    *,
    replica: str | None,
    now_s: float,
    policy: PostPolicy,
) -> None:
    """Store turns in order; those stored before are dropped.

    Args:
        tx: The transaction.
        turns: Of any calls.
        replica: Whose workers say them; None: they are of dead workers, whoever has the call now.
        now_s: Unix time.
        policy: When they are due.

    Raises:
        CallError: a call was never opened (`unknown_call`), or its caller said no (`refused`).
        HeardElsewhere: another job has the call of its room at another replica.
    """
    by_call: dict[str, list[Turn]] = {}
    for turn in turns:
        by_call.setdefault(turn.call, []).append(turn)
    for key, of_call in by_call.items():
        _append_to_call(tx, key, of_call, replica=replica, now_s=now_s, policy=policy)


def _append_to_call(
    tx: Transaction,
    key: str,
    turns: Sequence[Turn],
    *,
    replica: str | None,
    now_s: float,
    policy: PostPolicy,
) -> None:
    row = tx.row(f"{_SELECT_LOG} WHERE key = ?", key)
    succeeds = row is None
    if row is None:
        row = tx.row(f"{_SELECT_LOG} WHERE id = {_SUCCEEDED}", key)
    if row is None:
        raise _unknown_call()
    row_id, lane, deliver, closed_at_s, first_head, sealed, due_s, consent, whose, room = row
    if replica is not None and room and whose != replica:
        require_not_elsewhere(tx, row_id, key, replica=replica)
    if consent == "no":
        raise CallError("refused", "the caller of this call has said no")
    head = first_head
    for turn in turns:
        head += tx.run(
            "INSERT INTO turns(call, n, item_id, seq, speaker, text, chars, at_s,"
            " appended_s, interrupted, metrics, traceparent)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            row_id,
            head + 1,
            succeeding_item(key, turn.item_id) if succeeds else turn.item_id,
            turn.seq,
            turn.speaker,
            turn.text,
            len(turn.text),
            turn.at_s,
            now_s,
            int(turn.interrupted),
            msgspec.json.encode(turn.metrics).decode() if turn.metrics else None,
            turn.traceparent or None,
        )
    if head == first_head:
        return
    if not deliver:
        tx.run(
            "UPDATE calls SET head = ?1, sealed = ?1, acked = ?1, last_s = ?2 WHERE id = ?3",
            head,
            now_s,
            row_id,
        )
        return
    # The oldest pending turn was appended now, or `due_s` already counts from an older one.
    due = policy.due_s(
        pending=head - sealed, oldest_s=now_s, closed=closed_at_s is not None, now_s=now_s
    )
    if due is None or (due_s is not None and due_s <= due):
        due = None
    tx.run(
        "UPDATE calls SET head = ?, due_s = ?, last_s = ? WHERE id = ?",
        head,
        due_s if due is None else due,
        now_s,
        row_id,
    )
    if due is not None:
        hasten_lane(tx, lane, due)


def rewrite(
    tx: Transaction,
    key: str,
    turns: Sequence[Turn],
    *,
    unchanged: int,
    replica: str,
    epoch: int,
    now_s: float,
    policy: PostPolicy,
) -> int:
    """Replace the turns of a call after the first `unchanged`; return how many are in batches.

    The new turns wait no longer for their post than the replaced ones would have.

    Raises:
        TakenOver: the call was opened by another replica since.
    """
    row = tx.row("SELECT id, deliver, sealed FROM calls WHERE key = ?", key)
    if row is None:
        raise _unknown_call()
    row_id, deliver, sealed = row
    require_call(tx, row_id, replica=replica, epoch=epoch)
    if deliver and sealed > unchanged:
        return sealed
    (oldest_s,) = tx.rows(
        "SELECT min(appended_s) FROM turns WHERE call = ? AND n > ?", row_id, unchanged
    )[0]
    tx.run("DELETE FROM turns WHERE call = ? AND n > ?", row_id, unchanged)
    (head,) = tx.rows("SELECT count(*) FROM turns WHERE call = ?", row_id)[0]
    tx.run("UPDATE calls SET head = ?, due_s = NULL WHERE id = ?", head, row_id)
    if not deliver:
        tx.run("UPDATE calls SET sealed = ?1, acked = ?1 WHERE id = ?2", head, row_id)
    _append_to_call(tx, key, turns, replica=replica, now_s=now_s, policy=policy)
    if oldest_s is not None:
        tx.run(
            "UPDATE turns SET appended_s = ? WHERE call = ? AND n = ?", oldest_s, row_id, head + 1
        )
    reschedule_call(tx, row_id, now_s=now_s, policy=policy)
    return sealed if deliver else 0


def close_call(
    tx: Transaction,
    key: str,
    *,
    at_s: float,
    replica: str,
    epoch: int | None,
    now_s: float,
    policy: PostPolicy,
    final: bool = False,
    ended: bool = True,
    if_lost: bool = False,
) -> None:
    """Mark a call as closed; what is pending of it becomes due.

    Raises:
        TakenOver: the call was opened by another replica since.
    """
    row_id = _row_id(tx, key)
    opened_last = is_last(tx, row_id, key)
    if epoch is not None:
        require_call(tx, row_id, replica=replica, epoch=epoch)
    elif not opened_last:
        return  # another worker goes on with it
    if if_lost and tx.row("SELECT 1 FROM calls WHERE id = ? AND lost_s IS NULL", row_id):
        return
    if ended and opened_last:
        tx.run("UPDATE calls SET room = '' WHERE id = ? AND room <> ''", row_id)
    if final:
        tx.run("UPDATE calls SET final = 1 WHERE id = ? AND final = 0", row_id)
    if tx.run(
        "UPDATE calls SET closed_at_s = ? WHERE id = ? AND closed_at_s IS NULL", at_s, row_id
    ):
        tx.run("DELETE FROM commands WHERE call = ?", row_id)
        reschedule_call(tx, row_id, now_s=now_s, policy=policy)


def hurry(tx: Transaction, *, replica: str, now_s: float) -> None:
    """Make due now what is pending of a replica's calls, and of those that nobody has."""
    tx.run(
        f"UPDATE calls SET due_s = ?1 WHERE due_s > ?1 AND {_FREE_OR_OWN}",  # noqa: S608
        now_s,
        replica,
    )
    tx.run(
        "UPDATE lanes SET due_s = max(?1, hold_s)"
        " WHERE open_batch IS NULL AND due_s > max(?1, hold_s)"
        " AND EXISTS (SELECT 1 FROM calls c WHERE c.lane = lanes.id AND c.due_s <= ?1)",
        now_s,
    )
    tx.wakes = True


# What was learnt from Letta


def learn_agent(tx: Transaction, ref: AgentRef, agent_id: str, *, instead_of: str) -> str:
    """Store the agent of a lane that has none, or has another one; return the one it has."""
    lane = _lane_id(tx, ref)
    (before,) = tx.rows("SELECT agent_id FROM lanes WHERE id = ?", lane)[0]
    if before not in {None, instead_of}:
        return before
    _change_agent(tx, lane, before, agent_id)
    return agent_id


def forget_agent(tx: Transaction, ref: AgentRef, agent_id: str) -> None:
    """Forget the agent of a lane, if it is this one."""
    lane = _lane_id(tx, ref)
    (before,) = tx.rows("SELECT agent_id FROM lanes WHERE id = ?", lane)[0]
    if before == agent_id:
        _change_agent(tx, lane, before, None)


def _change_agent(tx: Transaction, lane: int, before: str | None, agent_id: str | None) -> None:
    if before != agent_id:
        tx.run("UPDATE lanes SET agent_id = ? WHERE id = ?", agent_id, lane)
        if before is not None:
            tx.run("UPDATE calls SET conversation_id = NULL WHERE lane = ?", lane)


def learn_conversation(
    tx: Transaction, key: str, conversation_id: str, *, agent_id: str, instead_of: str
) -> str:
    """Store the conversation of a call that has none, or has another; return the one it has.

    Nothing is stored where the call's lane has learnt another agent than the conversation's.
    """
    if tx.run(
        "UPDATE calls SET conversation_id = ?1 WHERE key = ?2"
        " AND (conversation_id IS NULL OR conversation_id = ?3)"
        " AND NOT EXISTS (SELECT 1 FROM lanes WHERE id = calls.lane AND agent_id <> ?4)",
        conversation_id,
        key,
        instead_of,
        agent_id,
    ):
        return conversation_id
    row = tx.row("SELECT coalesce(conversation_id, '') FROM calls WHERE key = ?", key)
    return conversation_id if row is None else row[0]


# When things are due


def reschedule_call(tx: Transaction, row_id: int, *, now_s: float, policy: PostPolicy) -> None:
    """Compute a call's due time again, and make its lane due no later."""
    lane, closed_at_s, pending, oldest_s, deliver = tx.rows(
        "SELECT lane, closed_at_s, head - sealed,"
        " (SELECT appended_s FROM turns t WHERE t.call = c.id AND t.n = c.sealed + 1), deliver"
        " FROM calls c WHERE id = ?",
        row_id,
    )[0]
    if not deliver:
        return
    due_s = policy.due_s(
        pending=pending, oldest_s=oldest_s or now_s, closed=closed_at_s is not None, now_s=now_s
    )
    tx.run("UPDATE calls SET due_s = ? WHERE id = ?", due_s, row_id)
    if due_s is not None:
        hasten_lane(tx, lane, due_s)


def hasten_lane(tx: Transaction, lane: int, due_s: float) -> None:
    """Make an idle lane due at `due_s`, or when its hold ends, unless it is due earlier."""
    if tx.run(
        "UPDATE lanes SET due_s = max(?1, hold_s) WHERE id = ?2 AND open_batch IS NULL"
        " AND (due_s IS NULL OR due_s > max(?1, hold_s))",
        due_s,
        lane,
    ):
        tx.wakes = True


# Rows


def _lane_id(tx: Transaction, ref: AgentRef) -> int:
    row = tx.row("SELECT id FROM lanes WHERE name = ?", ref.lane)
    if row is None:
        (row,) = tx.rows("INSERT INTO lanes(name) VALUES (?) RETURNING id", ref.lane)
    return row[0]


def _row_id(tx: Transaction, key: str) -> int:
    row_id = row_of(tx, key)
    if row_id is None:
        raise _unknown_call()
    return row_id


def _unknown_call() -> CallError:
    return CallError("unknown_call", "no such call was opened", hint="send call.open first")


def _erased() -> CallError:
    return CallError("erased", "the call was erased with its caller")
