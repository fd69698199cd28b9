"""A proxy that does nothing: the least that passing a stream on costs in Python.

It has the sidecar's own server (uvicorn, with its protocol and its loop) and client (aiohttp), and
between them only what a proxy needs: bytes are passed on as they come, and a client that
disconnects ends the model's stream. No key, no memory, no journal, no copy of the stream.
"""

import argparse
from typing import Any

import anyio
import uvicorn

from sidecar.channels.vapi.asgi import body_of
from sidecar.channels.vapi.upstream import Answer, HttpUpstream
from sidecar.http.deadline import bounded


class BareProxy:
    """The proxy, as a raw ASGI application."""

    def __init__(self, base_url: str) -> None:
        self._upstream = HttpUpstream(base_url, "")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        body = await body_of(scope, receive)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cancel_when_gone, receive, tasks.cancel_scope)
            reply: Answer | None = None
            try:
                reply = await self._upstream.ask(body)
                headers = [(b"content-type", b"text/event-stream")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                while piece := await reply.next():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                if reply is not None:
                    reply.close()
            tasks.cancel_scope.cancel()

    @staticmethod
    async def _cancel_when_gone(receive: Any, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model-url", required=True)
    asked = parser.parse_args()
    uvicorn.run(
        BareProxy(asked.model_url),
        port=asked.port,
        http=bounded(4_096),
        access_log=False,
        log_level="warning",
        lifespan="off",
        timeout_keep_alive=75,
    )


if __name__ == "__main__":
    main()
