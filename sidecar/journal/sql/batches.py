"""What the journal writes about batches: cut, claimed, sent again, given back, ended.

The invariants are those of `writes.py`. A batch is under way while its state is `sending`. An
operation that ends or releases any other batch changes nothing, so it may be repeated until it is
known to be stored.
"""

import uuid
from dataclasses import dataclass

from sidecar.errors import TakenOver
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sql.reads import SELECT_CALL, SELECT_TURN, call_of_row, turn_of_row
from sidecar.journal.sql.replicas import THERE, enter_alone, require_lane
from sidecar.journal.sql.transaction import Transaction
from sidecar.journal.sql.writes import reschedule_call
from sidecar.journal.states import BatchEvent, State, after
from sidecar.model import Batch

_ERROR_CHARS = 500


def claim(
    tx: Transaction,
    limit: int,
    *,
    replica: str,
    now_s: float,
    post_timeout_s: float,
    policy: PostPolicy,
) -> list[Batch]:
    """Take due lanes, cut a batch where none is open, and mark each as being sent."""
    batches: list[Batch] = []
    for lane, open_batch in tx.rows(
        "SELECT id, open_batch FROM lanes WHERE due_s <= ? ORDER BY due_s LIMIT ?", now_s, limit
    ):
        batch = open_batch if open_batch is not None else _next_batch(tx, lane, now_s, policy)
        if batch is None:
            free_lane(tx, lane, now_s=now_s, hold_until_s=0.0)
        else:
            tx.run("UPDATE lanes SET replica = ?, epoch = epoch + 1 WHERE id = ?", replica, lane)
            batches.append(_take(tx, lane, batch, now_s=now_s, post_timeout_s=post_timeout_s))
    return batches


def take_back(
    tx: Transaction,
    *,
    replica: str,
    now_s: float,
    wait_s: float,
    horizon_s: float,
    policy: PostPolicy,
) -> None:
    """Treat what this replica has under way as in doubt; limit the times another clock stored."""
    _draw_in(tx, now_s=now_s, wait_s=wait_s, horizon_s=horizon_s, policy=policy)
    tx.run("UPDATE lanes SET replica = '' WHERE replica = ?", replica)
    doubt(tx, now_s=now_s)


def begin(tx: Transaction, *, replica: str, now_s: float) -> None:
    """Enter the only replica; what an earlier one had under way is in doubt."""
    enter_alone(tx, replica, now_s=now_s)
    doubt(tx, now_s=now_s)


def doubt(tx: Transaction, *, now_s: float) -> None:
    """Treat what no replica has under way any more as in doubt, due now."""
    free = f"replica NOT IN {THERE}"
    tx.run(
        "UPDATE batches SET state = ? WHERE state = ?"  # noqa: S608 - constants only
        f" AND lane IN (SELECT id FROM lanes WHERE {free})",
        after(State.SENDING, BatchEvent.CRASHED),
        State.SENDING,
    )
    if tx.run(
        "UPDATE lanes SET due_s = ?, replica = ''"  # noqa: S608 - constants only
        f" WHERE due_s IS NULL AND open_batch IS NOT NULL AND {free}",
        now_s,
    ):
        tx.wakes = True


def _draw_in(
    tx: Transaction, *, now_s: float, wait_s: float, horizon_s: float, policy: PostPolicy
) -> None:
    tx.run(
        "UPDATE batches SET horizon_s = min(horizon_s, ?1 + ?2),"
        " sealed_at_s = min(sealed_at_s, ?1), replayed_s = min(replayed_s, ?1)"
        " WHERE state IN ('sealed', 'sending', 'unknown', 'retry')"
        " AND (horizon_s > ?1 + ?2 OR sealed_at_s > ?1 OR replayed_s > ?1)",
        now_s,
        horizon_s,
    )
    # Memory that is read from now on holds every settled batch, whatever its stored time.
    tx.run("UPDATE batches SET ended_s = ?1 WHERE state = 'settled' AND ended_s > ?1", now_s)
    tx.run("UPDATE calls SET settled_s = ?1 WHERE settled_s > ?1", now_s)
    tx.run("UPDATE calls SET due_s = ?1 WHERE due_s > ?1", now_s + policy.max_age_s)
    tx.run("UPDATE lanes SET hold_s = ?1 WHERE hold_s > ?1", now_s + horizon_s)
    tx.run(
        "UPDATE lanes SET due_s = min(due_s, ?1 + CASE WHEN open_batch IS NULL THEN ?2 ELSE ?3 END)"
        " WHERE due_s > ?1",
        now_s,
        max(policy.max_age_s, horizon_s),
        wait_s,
    )


def _next_batch(tx: Transaction, lane: int, now_s: float, policy: PostPolicy) -> int | None:
    """Return a replayed or split batch of the lane, or a newly cut one; None: nothing is due."""
    sealed_before = tx.row(
        "SELECT id FROM batches WHERE lane = ?"
        " AND state IN ('sealed', 'sending', 'unknown', 'retry')"
        " ORDER BY sealed_at_s, call, lo LIMIT 1",
        lane,
    )
    if sealed_before is not None:
        return sealed_before[0]
    due = tx.row(
        "SELECT caller_key, id FROM calls WHERE lane = ? AND due_s <= ? ORDER BY due_s, id LIMIT 1",
        lane,
        now_s,
    )
    if due is None:
        return None
    caller_key, row_id = due
    if caller_key:
        # Searches what is pending in the lane, not all calls of the caller in the journal.
        ((row_id,),) = tx.rows(
            "SELECT c.id FROM calls c JOIN turns t ON t.call = c.id AND t.n = c.sealed + 1"
            " WHERE c.lane = ? AND c.due_s IS NOT NULL AND c.caller_key || '' = ?"
            # A channel's clock may be wrong: no turn was said before its call, or after it came.
            " ORDER BY min(max(t.at_s, c.opened_at_s), t.appended_s), c.id LIMIT 1",
            lane,
            caller_key,
        )
    ((closed_at_s, head, sealed, parts),) = tx.rows(
        "SELECT closed_at_s, head, sealed, parts FROM calls WHERE id = ?", row_id
    )
    lengths = tx.rows(
        "SELECT chars FROM turns WHERE call = ? AND n > ? ORDER BY n LIMIT ?",
        row_id,
        sealed,
        policy.batch_turns,
    )
    hi = sealed + policy.cut([chars for (chars,) in lengths])
    ((batch,),) = tx.rows(
        "INSERT INTO batches(batch_id, lane, call, part, lo, hi, last_part, state, sealed_at_s)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        str(uuid.uuid4()),
        lane,
        row_id,
        parts + 1,
        sealed + 1,
        hi,
        int(closed_at_s is not None and hi == head),
        after(State.PENDING, BatchEvent.CUT),
        now_s,
    )
    tx.run("UPDATE lanes SET open_batch = ? WHERE id = ?", batch, lane)
    tx.run("UPDATE calls SET sealed = ?, parts = parts + 1 WHERE id = ?", hi, row_id)
    reschedule_call(tx, row_id, now_s=now_s, policy=policy)
    return batch


def _take(tx: Transaction, lane: int, batch: int, *, now_s: float, post_timeout_s: float) -> Batch:
    """Mark a batch as being sent. A try is counted, unless an earlier one is still in doubt."""
    ((state, attempt),) = tx.rows("SELECT state, attempt FROM batches WHERE id = ?", batch)
    in_doubt = state == State.UNKNOWN
    if in_doubt:
        tx.run("UPDATE batches SET state = ? WHERE id = ?", State.SENDING, batch)
    else:
        tx.run(
            "UPDATE batches SET state = ?, attempt = attempt + 1, horizon_s = ? WHERE id = ?",
            after(State(state), BatchEvent.SENT),
            now_s + post_timeout_s,
            batch,
        )
    tx.run("UPDATE lanes SET open_batch = ?, due_s = NULL WHERE id = ?", batch, lane)
    return _load(tx, batch, attempt=attempt, in_doubt=in_doubt)


def _load(tx: Transaction, batch: int, *, attempt: int, in_doubt: bool) -> Batch:
    (row,) = tx.rows(
        "SELECT b.batch_id, l.name, l.agent_id, b.call, b.part, b.lo, b.hi, b.horizon_s,"
        " b.sealed_at_s, b.replayed_s, b.last_part, l.epoch"
        " FROM batches b JOIN lanes l ON l.id = b.lane WHERE b.id = ?",
        batch,
    )
    batch_id, lane, agent_id, row_id, part, lo, hi, horizon_s, sealed_at_s, *rest = row
    replayed_s, last, epoch = rest
    (row,) = tx.rows(f"{SELECT_CALL} WHERE c.id = ?", row_id)
    call = call_of_row(row)
    turns = tx.rows(
        f"{SELECT_TURN} WHERE c.id = ? AND t.n BETWEEN ? AND ? ORDER BY t.n", row_id, lo, hi
    )
    return Batch(
        batch_id=batch_id,
        lane=lane,
        call=call,
        agent_id=call.ref.agent_id or agent_id,
        part=part,
        turns=tuple(turn_of_row(row) for row in turns),
        attempt=attempt,
        in_doubt=in_doubt,
        horizon_s=horizon_s,
        sealed_at_s=sealed_at_s,
        tried_since_s=sealed_at_s if replayed_s is None else replayed_s,
        last_part=bool(last),
        epoch=epoch,
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch as a replica claimed it; each end of it is checked against that.

    Attributes:
        batch_id: Of the batch.
        replica: Who claimed its lane.
        epoch: Of the lane, since.
    """

    batch_id: str
    replica: str
    epoch: int


def resend(tx: Transaction, claimed: Claim, *, now_s: float, post_timeout_s: float) -> Batch:
    """Record another try of a batch under way.

    Raises:
        TakenOver: another claim has its lane, or has split it, or it was erased.
    """
    row = tx.row("SELECT id, lane, attempt FROM batches WHERE batch_id = ?", claimed.batch_id)
    if row is None:
        raise TakenOver("another replica has ended this batch since")
    batch, lane, attempt = row
    require_lane(tx, lane, replica=claimed.replica, epoch=claimed.epoch)
    tx.run(
        "UPDATE batches SET attempt = attempt + 1, horizon_s = ? WHERE id = ? AND state = ?",
        now_s + post_timeout_s,
        batch,
        State.SENDING,
    )
    return _load(tx, batch, attempt=attempt, in_doubt=False)


def _under_way(tx: Transaction, claimed: Claim) -> int | None:
    """Return the lane of a batch under way; None: it has ended or was given back.

    Raises:
        TakenOver: it is under way, and another claim has its lane.
    """
    row = tx.row("SELECT lane, state FROM batches WHERE batch_id = ?", claimed.batch_id)
    if row is None or row[1] != State.SENDING:
        return None
    require_lane(tx, row[0], replica=claimed.replica, epoch=claimed.epoch)
    return row[0]


def settle(tx: Transaction, claimed: Claim, *, now_s: float) -> None:
    """Mark a batch as digested by Letta; its call's cursor moves past it.

    Raises:
        TakenOver: another claim has its lane.
    """
    _end(tx, claimed, BatchEvent.DIGESTED, error="", now_s=now_s, hold_until_s=0.0)


def retire(
    tx: Transaction, claimed: Claim, *, error: str, now_s: float, hold_until_s: float
) -> None:
    """Make a batch a dead letter; its call's cursor moves past it.

    Raises:
        TakenOver: another claim has its lane.
    """
    _end(
        tx,
        claimed,
        BatchEvent.REJECTED_FOR_GOOD,
        error=error,
        now_s=now_s,
        hold_until_s=hold_until_s,
    )


def _end(
    tx: Transaction,
    claimed: Claim,
    event: BatchEvent,
    *,
    error: str,
    now_s: float,
    hold_until_s: float,
) -> None:
    lane = _under_way(tx, claimed)
    if lane is None:
        return
    state = after(State.SENDING, event)
    tx.run(
        "UPDATE batches SET state = ?, ended_s = ?, error = ? WHERE batch_id = ?",
        state,
        now_s,
        error[:_ERROR_CHARS],
        claimed.batch_id,
    )
    ((row_id, hi),) = tx.rows("SELECT call, hi FROM batches WHERE batch_id = ?", claimed.batch_id)
    if state is State.SETTLED:
        tx.digested.append(lane)
    tx.run(
        "UPDATE calls SET acked = max(acked, ?1),"
        " settled_s = CASE WHEN ?2 = 1 THEN ?3 ELSE settled_s END WHERE id = ?4",
        hi,
        int(state is State.SETTLED),
        now_s,
        row_id,
    )
    free_lane(tx, lane, now_s=now_s, hold_until_s=hold_until_s)


def free_lane(tx: Transaction, lane: int, *, now_s: float, hold_until_s: float) -> None:
    """Close a lane's open batch; the next one is due after the lanes that already wait."""
    ((waiting, due_s),) = tx.rows(
        "SELECT EXISTS (SELECT 1 FROM batches WHERE lane = ?1"
        "  AND state IN ('sealed', 'sending', 'unknown', 'retry')),"
        " (SELECT min(due_s) FROM calls WHERE lane = ?1 AND due_s IS NOT NULL)",
        lane,
    )
    if waiting:
        due_s = now_s
    tx.run(
        "UPDATE lanes SET open_batch = NULL, replica = '', hold_s = ?, due_s = ? WHERE id = ?",
        hold_until_s,
        None if due_s is None else max(now_s, hold_until_s, due_s),
        lane,
    )
    tx.wakes = True


def release(
    tx: Transaction,
    claimed: Claim,
    *,
    due_s: float,
    unknown: bool,
    over: bool,
    error: str,
    now_s: float,
) -> None:
    """Give a batch back until `due_s`.

    Raises:
        TakenOver: another claim has its lane.
    """
    lane = _under_way(tx, claimed)
    if lane is None:
        return
    tx.run(
        "UPDATE batches SET state = ?1,"
        " horizon_s = CASE WHEN ?2 = 1 AND horizon_s > ?3 THEN ?3 ELSE horizon_s END, error = ?4"
        " WHERE batch_id = ?5",
        State.UNKNOWN if unknown else State.RETRY,
        int(over),
        now_s,
        error[:_ERROR_CHARS],
        claimed.batch_id,
    )
    tx.run("UPDATE lanes SET due_s = ?, replica = '' WHERE id = ?", due_s, lane)
    tx.wakes = True


def split(tx: Transaction, claimed: Claim, *, now_s: float) -> None:
    """Replace a batch under way by two halves of it.

    Raises:
        TakenOver: another claim has its lane.
    """
    if _under_way(tx, claimed) is None:
        return
    row = tx.row(
        "SELECT id, lane, call, part, lo, hi, last_part, sealed_at_s, replayed_s FROM batches"
        " WHERE batch_id = ? AND hi > lo",
        claimed.batch_id,
    )
    if row is None:
        return
    batch, lane, row_id, part, lo, hi, last_part, sealed_at_s, replayed_s = row
    tx.run("UPDATE lanes SET open_batch = NULL WHERE id = ?", lane)
    tx.run("DELETE FROM batches WHERE id = ?", batch)
    tx.run("UPDATE calls SET parts = parts + 1 WHERE id = ?", row_id)
    ((parts,),) = tx.rows("SELECT parts FROM calls WHERE id = ?", row_id)
    middle = (lo + hi) // 2
    for number, first, last, ends in ((part, lo, middle, 0), (parts, middle + 1, hi, last_part)):
        tx.run(
            "INSERT INTO batches(batch_id, lane, call, part, lo, hi, last_part, state, sealed_at_s,"
            " replayed_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            str(uuid.uuid4()),
            lane,
            row_id,
            number,
            first,
            last,
            ends,
            State.SEALED,
            sealed_at_s,
            replayed_s,
        )
    free_lane(tx, lane, now_s=now_s, hold_until_s=0.0)


def replay(tx: Transaction, batch_id: str, *, now_s: float) -> bool:
    """Put a dead letter back into its lane, in doubt: its last try is looked up first."""
    if not tx.run(
        "UPDATE batches SET state = ?, horizon_s = 0, replayed_s = ?, ended_s = NULL"
        " WHERE batch_id = ? AND state = ?",
        after(State.DEAD, BatchEvent.REPLAYED),
        now_s,
        batch_id,
        State.DEAD,
    ):
        return False
    tx.run(
        "UPDATE lanes SET due_s = max(?1, hold_s) WHERE open_batch IS NULL"
        " AND id = (SELECT lane FROM batches WHERE batch_id = ?2)",
        now_s,
        batch_id,
    )
    tx.wakes = True
    return True


def drop(tx: Transaction, batch_id: str, *, now_s: float) -> bool:
    """Give a dead letter up for good."""
    return bool(
        tx.run(
            "UPDATE batches SET state = ?, ended_s = ? WHERE batch_id = ? AND state = ?",
            after(State.DEAD, BatchEvent.DROPPED),
            now_s,
            batch_id,
            State.DEAD,
        )
    )
