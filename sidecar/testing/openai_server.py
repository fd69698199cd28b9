"""An OpenAI-compatible server around the demo model, with faults to switch on.

Run it as ``python -m sidecar.testing.openai_server --port N``; ``--say TEXT`` answers only that.
Routes:

* ``GET /v1/models``, ``POST /v1/embeddings``, ``POST /v1/chat/completions`` (streamed or not,
  with tool calls), as OpenAI's clients and a classic Letta server speak them.
* ``GET /_log?tail=N``: the newest requests, oldest first, at most `LOG_LIMIT` are kept.
* ``POST /_ctl``: any fields of `ModelFaults`, and ``"clear": true`` to forget the log; answers with
  the faults in force.
"""

import argparse
import base64
import hashlib
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import anyio
import msgspec
from aiohttp import web
from typing_extensions import override

from sidecar.demo.model import DemoModel
from sidecar.llm.port import Llm, Reply
from sidecar.llm.served import (
    MADE_UP_USAGE,
    MAX_BODY_BYTES,
    json_object,
    usage_for,
    writer_for,
)
from sidecar.llm.writer import DONE

LOG_LIMIT = 1_000
_MODELS = ("demo", "gpt-4o-mini", "gpt-4.1-mini", "text-embedding-3-small")
_LARGE_DIMENSIONS = 3072
_SMALL_DIMENSIONS = 1536


class ModelFaults(msgspec.Struct, forbid_unknown_fields=True):
    """What goes wrong with chat completions.

    Attributes:
        delay_s: Wait before anything is answered.
        first_token_delay_s: A stream's wait between its headers and its first piece.
        token_delay_s: A stream's wait before each further piece.
        fail: This many of the next requests are answered with 500; counts down.
        fail_mid_stream: This many of the next streams break off after one piece; counts down.
        hang: Requests get no answer while this holds.
    """

    delay_s: float = 0.0
    first_token_delay_s: float = 0.0
    token_delay_s: float = 0.0
    fail: int = 0
    fail_mid_stream: int = 0
    hang: bool = False


class _Control(ModelFaults, forbid_unknown_fields=True):
    clear: bool = False


class Parrot(Llm):
    """Always answers the same, at no cost: for measuring what surrounds a model."""

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    @override
    def name(self) -> str:
        return "parrot"

    @override
    async def stream(self, messages: Sequence[Mapping[str, Any]]) -> AsyncIterator[str]:
        yield self._text

    @override
    async def complete(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Reply:
        return Reply(self._text)

    @override
    async def aclose(self) -> None:
        pass


class OpenAiServer:
    """The routes and their state.

    Args:
        llm: The model that answers; by default the demo model.
    """

    def __init__(self, llm: Llm | None = None) -> None:
        self.llm: Llm = llm if llm is not None else DemoModel()
        self.faults = ModelFaults()
        self._unhung = anyio.Event()
        self.log: deque[dict[str, Any]] = deque(maxlen=LOG_LIMIT)

    def app(self) -> web.Application:
        """Return the application, to be run or mounted once."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/v1/models", self._models),
                web.post("/v1/embeddings", self._embeddings),
                web.post("/v1/chat/completions", self._chat),
                web.get("/_log", self._read_log),
                web.post("/_ctl", self._control),
            ]
        )
        return app

    async def _models(self, request: web.Request) -> web.Response:
        listed = [{"id": m, "object": "model", "created": 0, "owned_by": "demo"} for m in _MODELS]
        return web.json_response({"object": "list", "data": listed})

    async def _embeddings(self, request: web.Request) -> web.Response:
        body = await json_object(request)
        self._note("embeddings", body)
        model = str(body.get("model", ""))
        wanted: object = body.get("input", "")
        texts = cast("list[object]", wanted) if isinstance(wanted, list) else [wanted]
        size = int(body.get("dimensions") or 0)
        size = size or (_LARGE_DIMENSIONS if "large" in model else _SMALL_DIMENSIONS)
        as_text = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": i, "embedding": _vector(str(t), size, as_text=as_text)}
            for i, t in enumerate(texts)
        ]
        listed = {"object": "list", "data": data, "model": model}
        return web.json_response({**listed, "usage": MADE_UP_USAGE})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await json_object(request)
        self._note("chat", body, traceparent=request.headers.get("traceparent", ""))
        faults = self.faults
        if faults.hang:
            await self._unhung.wait()
        await anyio.sleep(faults.delay_s)
        if faults.fail > 0:
            faults.fail -= 1
            broken = {"message": "a fault was asked for", "type": "server_error"}
            return web.json_response({"error": broken}, status=500)
        messages = cast("Sequence[Mapping[str, Any]]", body.get("messages") or ())
        tools = cast("Sequence[Mapping[str, Any]]", body.get("tools") or ())
        reply = await self.llm.complete(messages, tools=tools)
        writer = writer_for(body, model=str(body.get("model", "demo")))
        if not body.get("stream"):
            whole = writer.whole(reply, usage=MADE_UP_USAGE)
            return web.Response(body=whole, content_type="application/json")
        return await self._stream(request, writer.events(reply, usage=usage_for(body)))

    async def _stream(self, request: web.Request, events: Sequence[bytes]) -> web.StreamResponse:
        faults = self.faults
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await anyio.sleep(faults.first_token_delay_s)
        for number, event in enumerate(events):
            if number > 1:
                await anyio.sleep(faults.token_delay_s)
                if faults.fail_mid_stream > 0:
                    faults.fail_mid_stream -= 1
                    if request.transport is not None:
                        request.transport.abort()
                    return response
            await response.write(event)
        await response.write(DONE)
        return response

    async def _read_log(self, request: web.Request) -> web.Response:
        tail = int(request.query.get("tail", LOG_LIMIT))
        return web.json_response(list(self.log)[-tail:] if tail > 0 else [])

    async def _control(self, request: web.Request) -> web.Response:
        asked = await json_object(request)
        try:
            merged = msgspec.convert(msgspec.to_builtins(self.faults) | asked, _Control)
        except msgspec.ValidationError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        if merged.clear:
            self.log.clear()
        fields = msgspec.structs.asdict(merged)
        fields.pop("clear")
        self.faults = ModelFaults(**fields)
        if not self.faults.hang:
            self._unhung.set()
            self._unhung = anyio.Event()
        return web.json_response(msgspec.to_builtins(self.faults))

    def _note(self, path: str, body: Mapping[str, Any], *, traceparent: str = "") -> None:
        self.log.append(
            {"at_s": time.time(), "path": path, "body": body, "traceparent": traceparent}
        )


def _vector(text: str, size: int, *, as_text: bool) -> list[float] | str:
    """Return a vector that depends on the text alone, its parts in [-0.5, 0.5]."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    parts = [(digest[i % len(digest)] ^ (i & 0xFF)) / 255 - 0.5 for i in range(size)]
    if as_text:
        return base64.b64encode(struct.pack(f"<{size}f", *parts)).decode()
    return parts


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--say", help="answer this and nothing else")
    asked = parser.parse_args()
    llm = Parrot(asked.say) if asked.say else None
    web.run_app(
        OpenAiServer(llm).app(), host=asked.host, port=asked.port, print=None, access_log=None
    )


if __name__ == "__main__":
    main()
