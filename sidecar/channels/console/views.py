"""The page's views of a call, its turns, its memory and the outbox, as plain JSON values.

Times are Unix seconds; the page runs on the same machine and shows ages by its own clock.
"""

from collections.abc import Sequence
from typing import Any

from sidecar.calls import Calls, LiveCall
from sidecar.journal.reports import BatchRow, Reports
from sidecar.journal.states import OPEN_STATES
from sidecar.model import Call, Turn

CALLS_SHOWN = 40
TURNS_SHOWN = 200
SETTLED_SHOWN = 8
BATCHES_SHOWN = 50


def turn_view(turn: Turn) -> dict[str, Any]:
    """Return one turn."""
    return {
        "id": turn.item_id,
        "speaker": turn.speaker,
        "text": turn.text,
        "at_s": turn.at_s,
        "interrupted": turn.interrupted,
        "metrics": dict(turn.metrics),
    }


def transcript_view(turns: Sequence[Turn]) -> dict[str, Any]:
    """Return the newest turns of a call, and how many came before them."""
    shown = turns[-TURNS_SHOWN:]
    return {"turns": [turn_view(turn) for turn in shown], "earlier": len(turns) - len(shown)}


def memory_view(live: LiveCall) -> dict[str, Any]:
    """Return the current memory of a call, also after its end."""
    view, snapshot = live.memory, live.snapshot
    return {
        "agent": live.agent_id or "",
        "blocks": [
            {
                "label": block.label,
                "value": block.value,
                "description": block.description,
                "limit_chars": block.limit_chars,
                "read_only": block.read_only,
            }
            for block in (snapshot.blocks if snapshot else ())
        ],
        "content": snapshot.version if snapshot else "",
        "text": view.text,
        "version": view.version,
        "read_at_s": view.read_at_s or None,
        "served": view.served,
    }


async def calls_view(calls: Calls, journal: Reports) -> dict[str, Any]:
    """Return the live calls of every channel, oldest first, and the newest past ones.

    Jobs that share a stored call are one: that of the job which stores it.
    """
    here: dict[str, LiveCall] = {}
    for one in calls.live:
        if one.stored or one.call.key not in here:
            here[one.call.key] = one
    live = [{**_call_view(one.call), "turns": one.turns} for one in here.values()]
    past = [
        _call_view(row.call)
        for row in await journal.calls(limit=CALLS_SHOWN + len(here))
        if row.call.key not in here
    ]
    return {"live": live, "past": past[:CALLS_SHOWN]}


async def outbox_view(journal: Reports) -> dict[str, Any]:
    """Return the state of the outbox: pending turns by lane, batches by state."""
    counts = await journal.counts()
    lanes = await journal.lanes() if counts.undelivered else []
    under_way: list[BatchRow] = []
    dead: list[BatchRow] = []
    if counts.undelivered:
        under_way = await _newest(journal, OPEN_STATES, BATCHES_SHOWN)
    if counts.dead_batches:
        dead = await _newest(journal, ("dead",), BATCHES_SHOWN)
    settled = await _newest(journal, ("settled",), SETTLED_SHOWN)
    return {
        "undelivered": counts.undelivered,
        "dead": counts.dead_batches,
        "turns": counts.turns,
        "pending": [
            {"lane": lane.lane, "turns": lane.pending, "oldest_s": lane.oldest_s}
            for lane in lanes
            if lane.pending
        ],
        "batches": [_batch_view(batch) for batch in (*under_way, *settled, *dead)],
    }


async def _newest(journal: Reports, states: Sequence[str], limit: int) -> list[BatchRow]:
    return await journal.batches(states=states, limit=limit, newest_first=True)


def _call_view(call: Call) -> dict[str, Any]:
    return {
        "call": call.key,
        "channel": call.channel,
        "lane": call.ref.lane,
        "opened_at_s": call.opened_at_s,
        "closed_at_s": call.closed_at_s,
    }


def _batch_view(batch: BatchRow) -> dict[str, Any]:
    return {
        "batch": batch.batch_id,
        "lane": batch.lane,
        "call": batch.call,
        "part": batch.part,
        "turns": batch.turns,
        "state": batch.state,
        "attempt": batch.attempt,
        "sealed_at_s": batch.sealed_at_s,
        "ended_s": batch.ended_s,
        "error": batch.error,
    }
