"""The console's routes: the page, its files, and its WebSocket; only for a browser on this machine.

The page is reached by a link whose fragment carries a token made at each start; a browser never
sends a fragment to a server, so the token comes as the first frame of the WebSocket. Host and
Origin must be exactly this server's: a name that resolves to loopback (DNS rebinding) and a foreign
page are both refused.
"""

import secrets
from pathlib import Path

import anyio
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from sidecar.bearer import is_secret
from sidecar.channels.console.session import ConsoleSession, Parts

PAGES_LIMIT = 64
"""Open pages, including those that have sent no token yet, for which they have ten seconds."""
_STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


def _files() -> dict[str, tuple[Path, str]]:
    """Return the page's files by path, with media types: no other file can be requested."""
    files = {
        f"/{file.relative_to(_STATIC).as_posix()}": (file, f"{_TYPES[file.suffix]}; charset=utf-8")
        for file in sorted(_STATIC.rglob("*"))
        if file.suffix in _TYPES
    }
    return files | {"/": files.pop("/index.html")}


_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Console:
    """The local page and its calls.

    Args:
        parts: What every page shares.
        token: Admits a page; empty makes one. A parent that restarts the sidecar passes the same
            token again, so that an open page can reconnect.
    """

    def __init__(self, parts: Parts, *, token: str = "") -> None:
        self.token = token or secrets.token_urlsafe(24)
        self._parts = parts
        self._sessions: set[ConsoleSession] = set()

    def routes(self, host: str, port: int) -> list[BaseRoute]:
        """Return the routes of a server bound to `host` and `port`."""
        names = {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}
        names.add(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        hosts = frozenset(names)

        def route(path: str, file: Path, media_type: str) -> Route:
            async def serve(request: Request) -> Response:
                if not _from_here(request, hosts):
                    return PlainTextResponse("this page is for this machine alone\n", 403)
                return FileResponse(file, media_type=media_type, headers=_HEADERS)

            return Route(path, serve)

        async def socket(websocket: WebSocket) -> None:
            if not _from_here(websocket, hosts) or "origin" not in websocket.headers:
                await websocket.close(4401)
                return
            if len(self._sessions) >= PAGES_LIMIT:
                await websocket.close(1013)
                return
            await websocket.accept()
            session = ConsoleSession(websocket, self._parts, admits=self.admits)
            self._sessions.add(session)
            try:
                await session.serve()
            finally:
                self._sessions.discard(session)
                if not self._sessions:  # no page is left that could restore it
                    self._parts.plug.restore()

        files = (route(path, *found) for path, found in _files().items())
        return [*files, WebSocketRoute("/console/ws", socket)]

    def admits(self, token: str) -> bool:
        """Whether a browser's token is the token of this start."""
        return is_secret(token.encode("utf-8", "surrogatepass"), self.token.encode())

    async def close_all(self) -> None:
        """End the calls of every open page, because the sidecar stops."""
        async with anyio.create_task_group() as closing:
            for session in tuple(self._sessions):
                closing.start_soon(session.close)


def _from_here(connection: HTTPConnection, hosts: frozenset[str]) -> bool:
    """Whether Host, and Origin where there is one, are exactly this server's."""
    if connection.headers.get("host", "") not in hosts:
        return False
    origin = connection.headers.get("origin")
    return origin is None or origin in {f"http://{host}" for host in hosts}
