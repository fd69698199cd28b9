"""A language model of ours behind an OpenAI-compatible endpoint, for a program on this machine.

A Letta App Server that the sidecar starts gets its model from here, so no provider's key is ever
written into the server's files, and its agents keep their model when the key changes. The endpoint
listens only on 127.0.0.1 and demands its own key.
"""

import hashlib
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

from aiohttp import web

from sidecar.bearer import is_secret, token_in
from sidecar.errors import LlmError, PromptTooLong
from sidecar.llm.port import Llm
from sidecar.llm.writer import DONE, ChatWriter

MODEL: Final = "sidecar"
"""The one model the endpoint lists, whichever model answers behind it."""

MAX_BODY_BYTES: Final = 64 << 20
MADE_UP_USAGE: Final[Mapping[str, int]] = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
}
"""Clients want some token counts, and nobody here counts."""


@asynccontextmanager
async def served(llm: Llm, *, key: str) -> AsyncGenerator[str]:
    """Serve a model while the context is open; yields the base URL, `http://127.0.0.1:PORT/v1`.

    Args:
        llm: The model that answers; it is not closed here.
        key: Bearer token that every request has to carry.
    """
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    routes = _Routes(llm, key)
    app.add_routes(
        [web.get("/v1/models", routes.models), web.post("/v1/chat/completions", routes.chat)]
    )
    runner = web.AppRunner(app, handle_signals=False, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        bound = cast("tuple[str, int]", runner.addresses[0])
        yield f"http://127.0.0.1:{bound[1]}/v1"
    finally:
        await runner.cleanup()


class _Routes:
    def __init__(self, llm: Llm, key: str) -> None:
        self._llm = llm
        self._key = key.encode()

    async def models(self, request: web.Request) -> web.Response:
        self._admit(request)
        listed = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "sidecar"}]
        return web.json_response({"object": "list", "data": listed})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self._admit(request)
        body = await json_object(request)
        messages = cast("Sequence[Mapping[str, Any]]", body.get("messages") or ())
        tools = cast("Sequence[Mapping[str, Any]]", body.get("tools") or ())
        try:
            reply = await self._llm.complete(messages, tools=tools)
        except PromptTooLong as error:
            # In words from which every client knows that the same request would fail again.
            failed = {
                "message": f"context length exceeded: {error.message}",
                "type": "invalid_request_error",
                "code": "context_length_exceeded",
            }
            return web.json_response({"error": failed}, status=400)
        except LlmError as error:
            failed = {"message": error.message, "type": "server_error"}
            return web.json_response({"error": failed}, status=502)
        writer = writer_for(body, model=MODEL)
        if not body.get("stream"):
            whole = writer.whole(reply, usage=MADE_UP_USAGE)
            return web.Response(body=whole, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in writer.events(reply, usage=usage_for(body)):
            await response.write(event)
        await response.write(DONE)
        return response

    def _admit(self, request: web.Request) -> None:
        if not is_secret(token_in(request.raw_headers), self._key):
            raise web.HTTPUnauthorized(text="this endpoint needs its key")


def writer_for(body: Mapping[str, Any], *, model: str) -> ChatWriter:
    """Return what writes the answer to a request; the answer's id follows from the request."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return ChatWriter(model, created_s=time.time(), answer_id=f"chatcmpl-{digest[:24]}")


def usage_for(body: Mapping[str, Any]) -> Mapping[str, int] | None:
    """Return the usage that ends the stream of a request; None where the request wants none."""
    options = cast("Mapping[str, Any]", body.get("stream_options") or {})
    return MADE_UP_USAGE if options.get("include_usage", True) else None


async def json_object(request: web.Request) -> dict[str, Any]:
    """Return a request's body; anything but a JSON object is answered with 400."""
    try:
        body: object = await request.json()
    except ValueError as error:
        raise web.HTTPBadRequest(text="the body is not JSON") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return cast("dict[str, Any]", body)
