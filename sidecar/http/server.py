"""The server that carries every route.

uvicorn closes every WebSocket the moment it sees a signal, but workers drain for minutes. So the
sidecar handles the process's signals (`sidecar/app/sidecar.py`), and uvicorn stops after everything
else has.
"""

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import AsyncGenerator, Generator, Mapping

import anyio
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from sidecar.errors import ConfigError
from sidecar.http.deadline import Busy, bounded
from sidecar.wire.frames import MAX_FRAME_BYTES

MAX_CONNECTIONS = 4_000
"""Most client connections, and most requests at once: more than the calls of one machine need."""
_MIN_CONNECTIONS = 64
_OTHER_FILES = 256
"""Open files besides clients' connections and the connection to a model that goes with each."""
CUT_SHORT_S = 2.0
"""How long a request may take to end that was cancelled when the server stopped."""


class Direct:
    """Serves POSTs to some paths without Starlette, and passes all other requests to it.

    Starlette's layers cost about 60 microseconds of CPU for each request, and some for each chunk
    of a stream.

    Args:
        app: All routes.
        posts: The applications that serve a POST, by path; the same that `app` would find.
    """

    def __init__(self, app: ASGIApp, posts: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            app = self._posts.get(scope["path"], app)
        await app(scope, receive, send)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = anyio.Event()

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def lift_file_limit() -> None:
    """Let this process open as many files as it may: 1,024, a usual limit, allows 500 streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_limit() -> int:
    """Return how many client connections the file limit of this process allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(_MIN_CONNECTIONS, min(MAX_CONNECTIONS, (soft - _OTHER_FILES) // 2))


_NO_ADDRESS = ("SIDECAR_HOST", "name an address of this machine")
_NOT_BOUND = {
    errno.EADDRINUSE: (
        "SIDECAR_PORT",
        "another program has it: stop that, or choose another port",
    ),
    errno.EACCES: ("SIDECAR_PORT", "choose a port from 1024 on: this user may not take that one"),
}


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; port 0 takes a free one.

    Raises:
        ConfigError: the address is taken or can't be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With the protocol named, asyncio turns Nagle's algorithm off on accepted connections;
        # with Nagle small answers would wait for the peer's delayed ACK, up to 40 ms.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, port))
        except OSError:
            bound.close()
            raise
    except OSError as error:
        remedy = _NOT_BOUND.get(error.errno or 0, _NO_ADDRESS)
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise ConfigError(
            f"can't listen on {where}: {error.strerror or type(error).__name__}",
            fields=(remedy,),
        ) from None
    return bound


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp, bound: socket.socket, *, limit: int | None = None
) -> AsyncGenerator[None]:
    """Serve `app` on a bound socket while the context is open.

    Args:
        app: All routes.
        bound: As from `listen`.
        limit: Connections, and requests at once; by default `connections_limit`.
    """
    limit = limit or connections_limit()
    config = uvicorn.Config(
        Busy(app, limit),
        http=bounded(limit),
        ws="websockets-sansio",
        # Larger than a frame may be: the link answers with an error that names the limit.
        ws_max_size=4 * MAX_FRAME_BYTES,
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        # This many may be accepted at once, before idle ones can be closed to make room.
        backlog=min(1_024, limit // 2),
        timeout_graceful_shutdown=2,
        timeout_keep_alive=75,
    )
    server = _Server(config)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_serve_on, server, bound)
        await server.listening.wait()
        try:
            yield
        finally:
            server.should_exit = True


async def _serve_on(server: uvicorn.Server, bound: socket.socket) -> None:
    await server.serve(sockets=[bound])
    if cut_short := set(server.server_state.tasks):
        # They were cancelled, and must end before the parts that they use are closed.
        await asyncio.wait(cut_short, timeout=CUT_SHORT_S)
