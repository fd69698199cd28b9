"""What the journal reads, each function on the state of one commit."""

from collections.abc import Sequence
from typing import Any

import msgspec

from sidecar.journal.backlog import Backlog
from sidecar.journal.policy import GOES_ON_S
from sidecar.journal.reports import BatchRow, CallRow, JournalCounts, LaneStatus
from sidecar.journal.sql.replicas import THERE
from sidecar.journal.sql.transaction import Transaction
from sidecar.journal.states import State
from sidecar.model import (
    OTHER_CHANNEL,
    AgentRef,
    Call,
    Turn,
    is_channel,
    succeeding_item,
)

_CALLS_AT_ONCE = 50
_ALL = 2**53
_METRICS = msgspec.json.Decoder(dict[str, float])

SELECT_CALL = (
    "SELECT c.key, l.name, c.channel, c.caller_key, c.opened_at_s, c.closed_at_s,"
    " c.conversation_id, c.consent, c.final, c.room, c.epoch"
    " FROM calls c JOIN lanes l ON l.id = c.lane"
)
SELECT_CALL_ROW = SELECT_CALL.replace(" FROM ", ", c.head, c.head - c.acked FROM ", 1)
SELECT_TURN = (
    "SELECT c.key, t.item_id, t.seq, t.speaker, t.text, t.at_s, t.interrupted, t.metrics,"
    " t.traceparent"
    " FROM calls c JOIN turns t ON t.call = c.id"
)
# The row of the call that the first value names, by its own key or by that of a successor.
NAMED = (
    "coalesce((SELECT id FROM calls WHERE key = ?1), (SELECT call FROM successors WHERE key = ?1))"
)
# The key by which a call `c` was opened last: that of one of its successors, or its own.
OPENED_LAST = "coalesce(c.opened_by, c.key)"
# Of a room's calls, the one with a worker first, then the one that had one last.
NEWEST = (
    "CASE WHEN lost_s IS NULL AND closed_at_s IS NULL THEN 0 ELSE 1 END,"
    " coalesce(lost_s, 0) DESC, id DESC"
)
SELECT_TURN_SINCE = SELECT_TURN.replace("SELECT ", "SELECT t.appended_s, ", 1)
SELECT_BATCH = (
    "SELECT b.batch_id, l.name, c.key, b.part, b.hi - b.lo + 1, b.state, b.attempt, b.sealed_at_s,"
    " b.ended_s, b.error FROM batches b JOIN lanes l ON l.id = b.lane JOIN calls c ON c.id = b.call"
)
# Each of the three finds a caller's calls by its own index and takes the newest. Each call found
# holds a turn that is wanted, so the rows read do not grow with the number of calls kept.
_RECENT_CALLS = """
    SELECT * FROM (SELECT id FROM calls INDEXED BY calls_waiting
      WHERE lane = ?1 AND caller_key = ?2 AND head > acked AND key <> ?3
      ORDER BY id DESC LIMIT ?5) AS waiting
    UNION SELECT * FROM (SELECT id FROM calls INDEXED BY calls_settled
      WHERE lane = ?1 AND caller_key = ?2 AND settled_s >= ?4 AND key <> ?3
      ORDER BY settled_s DESC LIMIT ?5) AS settled
    UNION SELECT * FROM (SELECT DISTINCT d.call
      FROM batches d INDEXED BY batches_dead_of_lane CROSS JOIN calls c
      WHERE c.id = d.call AND d.state = 'dead' AND d.lane = ?1 AND c.caller_key = ?2
      AND c.key <> ?3 ORDER BY d.call DESC LIMIT ?5) AS dead
"""
_RECENT = f"""
    {SELECT_TURN} LEFT JOIN batches b ON b.hi >= t.n AND b.id =
      (SELECT id FROM batches x WHERE x.call = c.id AND x.lo <= t.n ORDER BY x.lo DESC LIMIT 1)
    WHERE c.id IN ({_RECENT_CALLS})
    AND (b.id IS NULL OR b.state NOT IN ('settled', 'dropped')
      OR (b.state = 'settled' AND b.ended_s >= ?4))
    ORDER BY t.at_s DESC, c.id DESC, t.n DESC LIMIT ?5
"""  # noqa: S608 - constants only


def call_of_row(row: tuple[Any, ...]) -> Call:
    """Return the call of a `SELECT_CALL` row; an invalid channel becomes `OTHER_CHANNEL`."""
    key, lane, channel, caller_key, opened_at_s, closed_at_s, conversation, *rest = row
    consent, final, room, epoch = rest
    return Call(
        key,
        AgentRef.of_lane(lane),
        channel if is_channel(channel) else OTHER_CHANNEL,
        caller_key,
        opened_at_s,
        closed_at_s,
        conversation,
        consent,
        final=bool(final),
        room=room,
        epoch=epoch,
    )


def turn_of_row(row: tuple[Any, ...]) -> Turn:
    """Return the turn of a `SELECT_TURN` row."""
    key, item_id, seq, speaker, text, at_s, interrupted, metrics, traceparent = row
    return Turn(
        key,
        item_id,
        seq,
        speaker,
        text,
        at_s,
        interrupted=bool(interrupted),
        metrics=_METRICS.decode(metrics) if metrics else {},
        traceparent=traceparent or "",
    )


def recent(
    tx: Transaction,
    ref: AgentRef,
    *,
    caller_key: str,
    except_call: str,
    since_s: float,
    limit: int,
) -> tuple[Turn, ...]:
    """Return a caller's newest turns in other calls which Letta had not digested at `since_s`."""
    lane = tx.row("SELECT id FROM lanes WHERE name = ?", ref.lane)
    if lane is None:
        return ()
    rows = tx.rows(_RECENT, lane[0], caller_key, except_call, since_s, limit)
    return tuple(turn_of_row(row) for row in reversed(rows))


def agent_of(tx: Transaction, ref: AgentRef) -> str | None:
    """Return the agent id learnt for a lane, or None."""
    row = tx.row("SELECT agent_id FROM lanes WHERE name = ?", ref.lane)
    return row[0] if row else None


def next_due_s(tx: Transaction) -> float | None:
    """Return the earliest due time of any lane, or None."""
    return tx.rows("SELECT min(due_s) FROM lanes WHERE due_s IS NOT NULL")[0][0]


def lanes(tx: Transaction) -> list[LaneStatus]:
    """Return every lane that holds something undelivered, the oldest first."""
    rows = tx.rows(
        "SELECT l.name, l.agent_id, coalesce(sum(c.head - c.sealed), 0), b.state, b.attempt,"
        " min((SELECT t.appended_s FROM turns t WHERE t.call = c.id AND t.n = c.acked + 1)) AS"
        "  oldest_s, b.error, b.sealed_at_s"
        " FROM lanes l LEFT JOIN calls c ON c.lane = l.id AND c.head > c.acked"
        " LEFT JOIN batches b ON b.id = l.open_batch"
        " WHERE c.id IS NOT NULL OR l.open_batch IS NOT NULL"
        " GROUP BY l.id, b.id ORDER BY oldest_s NULLS FIRST"
    )
    return [
        LaneStatus(
            lane,
            AgentRef.of_lane(lane).agent_id or agent_id,
            pending,
            state or "idle",
            attempt or 0,
            oldest_s if oldest_s is not None else sealed_at_s,
            error or "",
        )
        for lane, agent_id, pending, state, attempt, oldest_s, error, sealed_at_s in rows
    ]


def backlog(tx: Transaction) -> Backlog:
    """Return what is undelivered, from partial indexes."""
    with tx.snapshot():
        return _backlog(tx)


def _backlog(tx: Transaction) -> Backlog:
    pending, oldest_s = tx.rows(
        "SELECT coalesce(sum(head - acked), 0),"
        " min((SELECT t.appended_s FROM turns t WHERE t.call = c.id AND t.n = c.acked + 1))"
        " FROM calls c WHERE head > acked"
    )[0]
    # A replayed dead letter lies behind its call's cursor and is yet to be delivered.
    replayed = tx.rows(
        "SELECT coalesce(sum(b.hi - b.lo + 1), 0) FROM batches b JOIN calls c ON c.id = b.call"
        " WHERE b.state IN ('sealed', 'sending', 'unknown', 'retry') AND b.hi <= c.acked"
    )[0][0]
    dead = tx.rows("SELECT count(*) FROM batches WHERE state = 'dead'")[0][0]
    return Backlog(pending + replayed, dead, oldest_s)


def counts(tx: Transaction) -> JournalCounts:
    """Return totals."""
    with tx.snapshot():
        calls, live, turns = tx.rows(
            "SELECT count(*), count(*) FILTER (WHERE closed_at_s IS NULL), coalesce(sum(head), 0)"
            " FROM calls"
        )[0]
        left = _backlog(tx)
    return JournalCounts(
        left.undelivered, left.dead_batches, left.oldest_undelivered_s, calls, live, turns
    )


def batches(
    tx: Transaction, *, states: Sequence[str], limit: int, newest_first: bool = False
) -> list[BatchRow]:
    """Return the batches in one of these states, as sealed; a negative limit: all.

    Batches under way and dead ones are found by partial indexes, whose conditions must appear here
    word for word; settled ones, of which there are many, by their row from the end.
    """
    words = ", ".join(f"'{State(state).value}'" for state in states)
    among, by = (f"= {words}", "b.id") if len(states) == 1 else (f"IN ({words})", "+b.id")
    order = "DESC" if newest_first else "ASC"
    rows = tx.rows(
        f"{SELECT_BATCH} WHERE b.state {among} ORDER BY {by} {order} LIMIT ?",
        _ALL if limit < 0 else limit,
    )
    return [BatchRow(*row) for row in rows]


def batch(tx: Transaction, name: str) -> tuple[BatchRow, tuple[Turn, ...]] | None:
    """Return the one batch whose id begins with `name`, with its turns, or None."""
    with tx.snapshot():
        found = tx.rows(
            f"{SELECT_BATCH} WHERE substr(b.batch_id, 1, ?2) = ?1 LIMIT 2",
            name,
            len(name),
        )
        if len(found) != 1:
            return None
        row = BatchRow(*found[0])
        turns = tx.rows(
            f"{SELECT_TURN} JOIN batches b ON b.call = c.id AND t.n BETWEEN b.lo AND b.hi"
            " WHERE b.batch_id = ? ORDER BY t.n",
            row.batch_id,
        )
        return row, tuple(turn_of_row(turn) for turn in turns)


def calls(tx: Transaction, *, limit: int, live: bool, caller_key: str) -> list[CallRow]:
    """Return the newest calls, newest first; a negative limit: all."""
    rows = tx.rows(
        f"{SELECT_CALL_ROW} WHERE (?1 = 0 OR c.closed_at_s IS NULL)"
        " AND (?2 = '' OR c.caller_key = ?2) ORDER BY c.id DESC LIMIT ?3",
        int(live),
        caller_key,
        _ALL if limit < 0 else limit,
    )
    return [_call_row(row) for row in rows]


def call_row(tx: Transaction, key: str) -> CallRow | None:
    """Return a call with its figures, or None."""
    row = tx.row(f"{SELECT_CALL_ROW} WHERE c.id = {NAMED}", key)
    return None if row is None else _call_row(row)


def _call_row(row: tuple[Any, ...]) -> CallRow:
    *call, turns, undelivered = row
    return CallRow(call_of_row(tuple(call)), turns, undelivered)


def call_keys(tx: Transaction) -> list[str]:
    """Return the key of every call."""
    return [key for (key,) in tx.rows("SELECT key FROM calls")]


def caller_keys(tx: Transaction, beginning: str) -> list[str]:
    """Return the callers' keys that begin with these hex digits."""
    rows = tx.rows(
        "SELECT DISTINCT caller_key FROM calls"
        " WHERE caller_key >= ?1 AND caller_key < ?1 || 'g' ORDER BY caller_key",
        beginning,
    )
    return [key for (key,) in rows]


def agents_of(tx: Transaction, caller_key: str) -> list[str]:
    """Return the agents that a caller's calls went to, as far as known."""
    rows = tx.rows(
        "SELECT name, agent_id FROM lanes WHERE name LIKE '%/caller/' || ?1"
        " OR id IN (SELECT lane FROM calls WHERE caller_key = ?1)",
        caller_key,
    )
    agents = [AgentRef.of_lane(name).agent_id or agent_id for name, agent_id in rows]
    return sorted({agent for agent in agents if agent})


def call(tx: Transaction, key: str) -> Call | None:
    """Return a call as stored, or None."""
    row = tx.row(f"{SELECT_CALL} WHERE c.id = {NAMED}", key)
    return None if row is None else call_of_row(row)


def row_of(tx: Transaction, key: str) -> int | None:
    """Return the row of a call, by its own key or by that of a successor; None: it has none."""
    return tx.rows(f"SELECT {NAMED}", key)[0][0]


def free_calls(tx: Transaction) -> list[Call]:
    """Return the live calls that belong to no replica, oldest first."""
    rows = tx.rows(
        f"{SELECT_CALL} WHERE c.closed_at_s IS NULL AND c.replica NOT IN {THERE} ORDER BY c.id"
    )
    return [call_of_row(row) for row in rows]


def name_of_lane(tx: Transaction, lane: int) -> str:
    """Return the name of a lane; empty: there is none any more."""
    row = tx.row("SELECT name FROM lanes WHERE id = ?", lane)
    return "" if row is None else row[0]


def is_live_elsewhere(tx: Transaction, key: str, *, replica: str) -> bool:
    """Whether a call is live on another replica that is there, for the worker of this key."""
    row = tx.row(
        f"SELECT 1 FROM calls c WHERE id = {NAMED} AND replica <> ?2"  # noqa: S608 - constants
        f" AND closed_at_s IS NULL AND replica IN {THERE} AND {OPENED_LAST} = ?1",
        key,
        replica,
    )
    return row is not None


def in_room(tx: Transaction, room: str, caller_key: str, *, now_s: float) -> str | None:
    """Return the key of the newest call of a room and caller that may go on there, or None."""
    row = tx.row(
        "SELECT key FROM calls WHERE room = ?1 AND room <> '' AND caller_key = ?2"  # noqa: S608
        " AND (lost_s > ?3 OR (lost_s IS NULL AND closed_at_s IS NULL))"
        f" ORDER BY {NEWEST} LIMIT 1",
        room,
        caller_key,
        now_s - GOES_ON_S,
    )
    return None if row is None else row[0]


def so_far(tx: Transaction, key: str, *, except_by: str, limit: int) -> tuple[Turn, ...]:
    """Return the newest turns of a call without those of one of its successors, in order."""
    theirs = succeeding_item(except_by, "")
    rows = tx.rows(
        f"{SELECT_TURN} WHERE c.id = {NAMED} AND substr(t.item_id, 1, ?2) <> ?3"
        " ORDER BY t.n DESC LIMIT ?4",
        key,
        len(theirs),
        theirs,
        limit,
    )
    return tuple(turn_of_row(row) for row in reversed(rows))


def turns(tx: Transaction, key: str) -> tuple[Turn, ...]:
    """Return all turns of a call, in order."""
    rows = tx.rows(f"{SELECT_TURN} WHERE c.id = {NAMED} ORDER BY t.n", key)
    return tuple(turn_of_row(row) for row in rows)


def turns_since(tx: Transaction, appended_s: float) -> list[tuple[float, Turn]]:
    """Return the turns stored at or after a Unix time, each with the time it was stored."""
    rows = tx.rows(
        f"{SELECT_TURN_SINCE} WHERE t.appended_s >= ? ORDER BY t.appended_s, c.id, t.n", appended_s
    )
    return [(row[0], turn_of_row(row[1:])) for row in rows]


def said_of(
    tx: Transaction, pieces: Sequence[bytes], *, after: int
) -> tuple[int | None, set[bytes]]:
    """Search the next calls for pieces; return the last of these calls, and the pieces found.

    None in place of a call: there are no more calls.

    Args:
        tx: Of the reader.
        pieces: Pieces of UTF-8 text.
        after: Row of the last call that was searched.
    """
    (last,) = tx.rows(
        "SELECT max(id) FROM (SELECT id FROM calls WHERE id > ? ORDER BY id LIMIT ?) AS next",
        after,
        _CALLS_AT_ONCE,
    )[0]
    if last is None:
        return None, set()
    found = {
        piece
        for piece in pieces
        if tx.row(
            "SELECT 1 FROM turns WHERE call > ? AND call <= ?"
            " AND instr(CAST(text AS BLOB), ?) > 0 LIMIT 1",
            after,
            last,
            piece,
        )
    }
    return last, found
