"""Shapes of the stand-in Letta server's answers, and what it reads from requests."""

import json
from collections.abc import Mapping
from typing import Any, cast

from aiohttp import web

from sidecar.model import Block
from sidecar.testing.letta_state import Json, Run, RunStatus, StoredAgent, iso

_PAGE = 100
_STOP_REASONS: Mapping[RunStatus, str | None] = {
    "running": None,
    "completed": "end_turn",
    "failed": "llm_api_error",
}
DONE = b"data: [DONE]\n\n"
BUSY = (
    "Cannot send a new message: Another request is currently being processed for this"
    " conversation. Please wait for the current request to complete."
)


def frame(**fields: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text_of(content: object) -> str:
    """Return a message's text, given as text or as parts."""
    if isinstance(content, list):
        parts = cast("list[Json]", content)
        return "\n".join(str(part.get("text", "")) for part in parts)
    return str(content or "")


def included(request: web.Request) -> set[str]:
    """Return what a request asks to have included."""
    return set(request.query.getall("include", []))


def page_of(request: web.Request, ids: list[str]) -> slice:
    """Return the slice of a sorted list that `after` and `limit` ask for."""
    after = request.query.get("after", "")
    start = ids.index(after) + 1 if after in ids else 0
    return slice(start, start + limited(request).stop)


def between(request: web.Request, ids: list[str]) -> slice:
    """Return the slice of messages, oldest first, that `before` and `after` ask for.

    Unlike in other lists, both are points in time here, in either order.
    """
    before, after = request.query.get("before", ""), request.query.get("after", "")
    start = ids.index(after) + 1 if after in ids else 0
    return slice(start, ids.index(before) if before in ids else None)


def limited(request: web.Request) -> slice:
    """Return the slice that `limit` asks for."""
    return slice(0, int(request.query.get("limit", _PAGE)))


def agent_json(agent: StoredAgent, include: set[str]) -> Json:
    """Return an agent as the server shows it."""
    blocks = [block_json(agent.agent_id, block) for block in agent.blocks.values()]
    shown = blocks if "agent.blocks" in include else []
    return {
        "id": agent.agent_id,
        "name": agent.name,
        "system": agent.system,
        "agent_type": "letta_v1_agent",
        "created_at": iso(agent.created_at_s),
        "tags": agent.tags if "agent.tags" in include else [],
        "blocks": shown,
        "memory": {"blocks": shown},
        "metadata": {},
        "tools": [],
        "sources": [],
        "llm_config": {"model": "stand-in", "model_endpoint_type": "openai", "context_window": 1},
    }


def block_json(agent_id: str, block: Block) -> Json:
    """Return a block as the server shows it."""
    return {
        "id": f"block-{agent_id.removeprefix('agent-')}-{block.label}",
        "label": block.label,
        "value": block.value,
        "description": block.description,
        "limit": block.limit_chars,
        "read_only": block.read_only,
        "metadata": {},
    }


def block_of(body: Json) -> Block:
    """Return the block that a request describes."""
    limit = body.get("limit")
    return Block(
        str(body.get("label") or ""),
        str(body.get("value") or ""),
        str(body.get("description") or ""),
        int(limit) if limit is not None else None,
        bool(body.get("read_only")),
    )


def run_json(run: Run) -> Json:
    """Return a run as the server shows it."""
    return {
        "id": run.run_id,
        "agent_id": run.agent_id,
        "conversation_id": run.conversation_id,
        "status": run.status,
        "stop_reason": _STOP_REASONS[run.status],
        "background": run.background,
        "created_at": iso(run.created_at_s),
    }


def error_answer(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: str
) -> web.Response:
    """Return an error in the server's shape."""
    return web.json_response({"detail": detail, **more}, status=status, headers=headers)


def missing(detail: str) -> web.HTTPNotFound:
    """Return a 404 in the server's shape, to be raised."""
    return web.HTTPNotFound(text=json.dumps({"detail": detail}), content_type="application/json")


def cut(request: web.Request) -> web.Response:
    """Cut the client's connection; the client never gets the response that is returned."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def json_object(request: web.Request) -> Json:
    """Return a request's body.

    Raises:
        HTTPBadRequest: it is not a JSON object.
    """
    raw = await request.read()
    try:
        body: object = json.loads(raw or b"{}")
    except ValueError as error:
        raise web.HTTPBadRequest(text="the body is not JSON") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return cast("Json", body)
