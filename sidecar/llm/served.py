"""A language model of ours behind an OpenAI-compatible endpoint, for a program on this machine.

A Letta App Server that the sidecar starts has its model from here, so no provider's key is ever
written into the server's files, and its agents keep their model when the key changes. Listens on
127.0.0.1 alone and wants its own key.
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
from sidecar.llm.port import Llm, Reply, ToolCall

MODEL: Final = "sidecar"
"""The one model the endpoint lists, whichever answers behind it."""

MAX_BODY_BYTES: Final = 64 << 20


@asynccontextmanager
async def served(llm: Llm, *, key: str) -> AsyncGenerator[str]:
    """Serve a model while the context is open; yields the base URL, `http://127.0.0.1:PORT/v1`.

    Args:
        llm: Who answers; stays the caller's to close.
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
            # In the words by which every client knows that the same request fails again.
            failed = {
                "message": f"context length exceeded: {error.message}",
                "type": "invalid_request_error",
                "code": "context_length_exceeded",
            }
            return web.json_response({"error": failed}, status=400)
        except LlmError as error:
            failed = {"message": error.message, "type": "server_error"}
            return web.json_response({"error": failed}, status=502)
        completion = Completion(MODEL, body, reply)
        if not body.get("stream"):
            return web.json_response(completion.whole())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in completion.chunks():
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _admit(self, request: web.Request) -> None:
        if not is_secret(token_in(request.raw_headers), self._key):
            raise web.HTTPUnauthorized(text="the key of this endpoint is wanted")


class Completion:
    """One reply in OpenAI's shapes.

    Args:
        model: Its name as the client knows it.
        body: The request: the completion's id follows from it.
        reply: What the model said.
    """

    def __init__(self, model: str, body: Mapping[str, Any], reply: Reply) -> None:
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self._id = f"chatcmpl-{digest[:24]}"
        self._model = model
        self._reply = reply
        options = cast("Mapping[str, Any]", body.get("stream_options") or {})
        self._with_usage = bool(options.get("include_usage", True))
        self._finish = "tool_calls" if reply.tool_calls else "stop"

    def whole(self) -> dict[str, Any]:
        """Return the answer to a request that does not stream."""
        message: dict[str, Any] = {"role": "assistant", "content": self._reply.text or None}
        if self._reply.tool_calls:
            message["tool_calls"] = [_call_shape(call) for call in self._reply.tool_calls]
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        return self._frame("chat.completion", [choice]) | {"usage": usage()}

    def chunks(self) -> list[dict[str, Any]]:
        """Return the stream's chunks: the role, the pieces, the finish, the usage."""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        words = self._reply.text.split(" ")
        deltas += [{"content": w if i == 0 else f" {w}"} for i, w in enumerate(words) if w]
        deltas += [
            {"tool_calls": [{"index": i} | _call_shape(call)]}
            for i, call in enumerate(self._reply.tool_calls)
        ]
        chunks = [self._chunk(delta, None) for delta in deltas]
        chunks.append(self._chunk({}, self._finish))
        if self._with_usage:
            chunks.append(self._frame("chat.completion.chunk", []) | {"usage": usage()})
        return chunks

    def _chunk(self, delta: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return self._frame("chat.completion.chunk", [choice])

    def _frame(self, kind: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": int(time.time()),
            "model": self._model,
            "choices": choices,
        }


def _call_shape(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}


def usage() -> dict[str, int]:
    """Return token counts: made up, since clients want some and nobody here counts."""
    return {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


async def json_object(request: web.Request) -> dict[str, Any]:
    """Return a request's body; anything but a JSON object is answered with 400."""
    try:
        body: object = await request.json()
    except ValueError as error:
        raise web.HTTPBadRequest(text="the body is no JSON") from error
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="the body is no JSON object")
    return cast("dict[str, Any]", body)
