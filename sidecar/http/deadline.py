"""uvicorn's HTTP protocol with bounds on time and number, which uvicorn itself lacks.

A client that sends headers byte by byte could hold a connection for as long as it likes, so headers
have a deadline. Connections without a request must not keep others out: above a limit the one that
has been idle longest is closed to make room for the next. When as many requests and links are
served at once, the next one is answered with 503 and told to come back, except at `/livez`, which
says that the process is alive, not that it has room. Bodies are bounded where they are read, and
cut off where nothing reads them.
"""

import asyncio
from collections import OrderedDict
from typing import ClassVar

import h11
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 10.0
ALWAYS = frozenset({"/livez"})
BUSY = PlainTextResponse("too many requests at once\n", 503, {"Retry-After": "1"})


class DeadlineProtocol(H11Protocol):
    """Closes a connection whose request headers are not complete `headers_s` after they began.

    Use `bounded` to make a subclass with its own limits.
    """

    headers_s = HEADERS_S
    limit: ClassVar[int]
    idle: ClassVar["OrderedDict[DeadlineProtocol, None]"]
    _due: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect()
        self._is_idle()

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            if self._due is None:
                self._expect()
        else:
            self._met()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            # Answered before its body was complete: the client could delay the end of the
            # connection with each further byte for as long as it likes.
            self.transport.close()
        elif self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._is_idle()

    @override
    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._met()
        super().handle_websocket_upgrade(event)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._met()
        super().connection_lost(exc)

    def _is_idle(self) -> None:
        self.idle[self] = None
        self.idle.move_to_end(self)
        # The newest idle connections stay, so that they have time to send a request.
        while len(self.idle) > max(1, self.limit // 16) and len(self.connections) > self.limit:
            longest, _ = self.idle.popitem(last=False)
            self.connections.discard(longest)
            longest.transport.abort()

    def _expect(self) -> None:
        self._due = self.loop.call_later(self.headers_s, self._too_slow)

    def _met(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self.idle.pop(self, None)

    def _too_slow(self) -> None:
        self._due = None
        self.transport.close()


def bounded(limit: int) -> type[DeadlineProtocol]:
    """Return a protocol that closes idle connections while more than `limit` are open.

    The newest idle ones, a sixteenth of `limit`, stay; those that serve are bounded by `Busy`.
    """
    return type("BoundedProtocol", (DeadlineProtocol,), {"limit": limit, "idle": OrderedDict()})


class Busy:
    """Answers 503 to a request while `limit` requests and links are served, except at `ALWAYS`.

    Args:
        app: Serves the rest.
        limit: Requests and links at once.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit
        self._serving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or link."""
        if self._serving >= self._limit and scope["path"] not in ALWAYS:
            await BUSY(scope, receive, send)
            return
        self._serving += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._serving -= 1
