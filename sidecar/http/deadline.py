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

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_S = 10.0
MAX_HEADERS_BYTES = 1 << 16
ALWAYS = frozenset({"/livez"})
BUSY = PlainTextResponse("too many requests at once\n", 503, {"Retry-After": "1"})


class DeadlineProtocol(HttpToolsProtocol):
    """Closes a connection whose request headers are not complete `headers_s` after they began.

    Use `bounded` to make a subclass with its own limits.
    """

    headers_s = HEADERS_S
    limit: ClassVar[int]
    idle: ClassVar["OrderedDict[DeadlineProtocol, None]"]
    _due: asyncio.TimerHandle | None = None
    _headers_complete = False  # of the request that is read or answered
    _headers_bytes = 0

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect()
        self._is_idle()

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        served = bool(self.cycle) and not self.cycle.response_complete
        if served or self._headers_complete or self.transport.is_closing():
            self._met()
        elif self._due is None:
            self._expect()
        if not self._headers_complete:  # of the next request, where one is being served
            self._headers_bytes += len(data)
            if self._headers_bytes > MAX_HEADERS_BYTES:
                self._met()
                self.transport.close() if served else self.send_400_response("headers too long")

    @override
    def on_message_begin(self) -> None:
        self._headers_complete = False
        super().on_message_begin()

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headers_complete:  # else it is a trailer, and its request is being served
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        self._headers_complete = True
        self._headers_bytes = 0
        super().on_headers_complete()

    @override
    def on_response_complete(self) -> None:
        answered = None if self.pipeline else self.cycle
        super().on_response_complete()
        if answered is None or self.transport.is_closing():
            return
        if answered.more_body:
            # Answered before its body was complete: the client could delay the end of the
            # connection with each further byte for as long as it likes.
            self.transport.close()
            return
        if not self._headers_complete:  # those of the next request have begun
            self._expect()
        self._headers_complete = False
        self._is_idle()

    @override
    def handle_websocket_upgrade(self) -> None:
        self._met()
        super().handle_websocket_upgrade()

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
