"""uvicorn's HTTP protocol with a deadline on the headers of a request; uvicorn itself has none.

A client that sends headers byte by byte would hold a connection for as long as it likes. Bodies
are bounded where they are read, and cut off where nobody reads them; an idle connection between two
requests by uvicorn's keep-alive.
"""

import asyncio

import h11
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 10.0


class DeadlineProtocol(H11Protocol):
    """Closes a connection whose request headers are not whole `headers_s` after they began."""

    headers_s = HEADERS_S
    _due: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect()

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
            # Answered before its body was whole: each further byte would put the end of the
            # connection off for as long as its client likes.
            self.transport.close()

    @override
    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._met()
        super().handle_websocket_upgrade(event)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._met()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._due = self.loop.call_later(self.headers_s, self._too_slow)

    def _met(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _too_slow(self) -> None:
        self._due = None
        self.transport.close()
