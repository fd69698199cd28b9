"""The console's routes: the page, its files, and its WebSocket; for this machine's browser alone.

The page is reached by a link whose fragment carries a token made at each start; a browser never
sends a fragment to a server, so the token comes as the first frame of the WebSocket. Host and
Origin must be exactly this server's own: a name that resolves to loopback (DNS rebinding) and a
foreign page are both refused.
"""

import hmac
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from sidecar.calls import Calls
from sidecar.channels.console.session import ConsoleSession
from sidecar.llm.port import Llm
from sidecar.prompt_wait import Waits
from sidecar.transcript.journal import Journal

_STATIC = Path(__file__).parent / "static"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/console.css": ("console.css", "text/css; charset=utf-8"),
    "/console.js": ("console.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Console:
    """The local page and its calls.

    Args:
        calls: Where its calls live.
        journal: Asked how much is undelivered.
        llm: Who replies.
        waits: What a prompt may wait for memory.
        tenant: Whose callers they are.
        summary: What is real and what is demo, by part, for the page to show.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        calls: Calls,
        journal: Journal,
        llm: Llm,
        *,
        waits: Waits,
        tenant: str,
        summary: Mapping[str, str],
        clock: Callable[[], float],
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self._calls = calls
        self._journal = journal
        self._llm = llm
        self._waits = waits
        self._tenant = tenant
        self._summary = summary
        self._clock = clock
        self._sessions: set[ConsoleSession] = set()

    def routes(self, host: str, port: int) -> list[BaseRoute]:
        """Return the routes of a server bound to `host` and `port`."""
        names = {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}
        names.add(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        hosts = frozenset(names)

        def file(path: str) -> Route:
            name, media_type = _FILES[path]

            async def serve(request: Request) -> Response:
                if not _from_here(request, hosts):
                    return PlainTextResponse("this page is for this machine alone\n", 403)
                return FileResponse(_STATIC / name, media_type=media_type, headers=_HEADERS)

            return Route(path, serve)

        async def socket(websocket: WebSocket) -> None:
            if not _from_here(websocket, hosts) or "origin" not in websocket.headers:
                await websocket.close(4401)
                return
            await websocket.accept()
            session = ConsoleSession(
                websocket,
                self._calls,
                self._journal,
                self._llm,
                waits=self._waits,
                tenant=self._tenant,
                summary=self._summary,
                admits=self.admits,
                clock=self._clock,
            )
            self._sessions.add(session)
            try:
                await session.serve()
            finally:
                self._sessions.discard(session)

        return [*(file(path) for path in _FILES), WebSocketRoute("/console/ws", socket)]

    def admits(self, token: str) -> bool:
        """Whether a browser's token is this start's own."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    async def close_all(self) -> None:
        """End the calls of every open page: the sidecar goes away."""
        async with anyio.create_task_group() as closing:
            for session in tuple(self._sessions):
                closing.start_soon(session.close)


def _from_here(connection: HTTPConnection, hosts: frozenset[str]) -> bool:
    """Whether Host, and Origin where there is one, are exactly this server's."""
    if connection.headers.get("host", "") not in hosts:
        return False
    origin = connection.headers.get("origin")
    return origin is None or origin in {f"http://{host}" for host in hosts}
