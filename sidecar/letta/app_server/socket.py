"""Sockets to the Letta Code App Server: frames sent and answered, each within a deadline.

The App Server does not answer a frame that it does not know or cannot parse, so nothing may wait
here without a deadline. A socket is used by one task at a time, which reads its answers itself:
there is no reader in the background, and nothing to restart when a socket breaks.
"""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, cast
from urllib.parse import urlsplit, urlunsplit

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.protocol import State

from sidecar.errors import AgentNotFound, LettaDenied, LettaUnavailable, NotLetta
from sidecar.untrusted import MALFORMED

PROTOCOL_VERSION: Final = 1
"""The one version of the App Server's protocol that this adapter speaks."""

Frame: TypeAlias = dict[str, Any]

# What a socket raises while frames go over it.
SOCKET_ERRORS: Final = (OSError, WebSocketException, EOFError)

_DENIED: Final = frozenset({401, 403})
_FRAME_LIMIT_BYTES: Final = 64 << 20
_IDLE_LIMIT: Final = 8
# No more than the memory of one agent is asked for at once.
_UNREAD_LIMIT_FRAMES: Final = 4_096


class NoFrame(WebSocketException):
    """A message that is not JSON: the server is no App Server, or a broken one."""


class AppServerSocket:
    """One socket; made by `Sockets`.

    Attributes:
        unread: Frames that came while an answer was awaited and that answer no question,
            oldest first: events of the runtimes this socket is subscribed to.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._asked = 0
        self.unread: list[Frame] = []

    @property
    def is_open(self) -> bool:
        """Whether neither side is known to have closed it."""
        return self._connection.state is State.OPEN

    async def ask(self, kind: str, /, **fields: object) -> Frame:
        """Send one frame and return its answer, whether it says success or not.

        Raises:
            OSError, WebSocketException: the socket broke.
        """
        (answer,) = await self.ask_all([{"type": kind, **fields}])
        return answer

    async def ask_all(self, questions: Sequence[Mapping[str, object]]) -> list[Frame]:
        """Send frames at once and return their answers in the same order.

        An answer in several parts (`list_memory`) comes as one, its `entries` joined.

        Raises:
            OSError, WebSocketException: the socket broke.
        """
        places: dict[str, int] = {}
        for place, question in enumerate(questions):
            self._asked += 1
            request_id = f"q{self._asked}"
            places[request_id] = place
            await self._connection.send(json.dumps({**question, "request_id": request_id}))
        answers: list[Frame | None] = [None] * len(questions)
        while places:
            frame = await self._read()
            request_id = str(frame.get("request_id"))
            place = places.get(request_id)
            if place is None or not _is_answer(frame):
                if len(self.unread) < _UNREAD_LIMIT_FRAMES:
                    self.unread.append(frame)
                continue
            earlier = answers[place]
            if earlier is not None:
                frame["entries"] = [*earlier["entries"], *frame.get("entries", ())]
            answers[place] = frame
            if frame.get("done", True) or not frame.get("success", True):
                del places[request_id]
        return [answer for answer in answers if answer is not None]

    async def tell(self, kind: str, /, **fields: object) -> None:
        """Send a frame that has no answer.

        Raises:
            OSError, WebSocketException: the socket broke.
        """
        await self._connection.send(json.dumps({"type": kind, **fields}))

    async def next_event(self) -> Frame:
        """Return the next frame that is not an answer.

        Raises:
            OSError, WebSocketException: the socket broke.
        """
        if self.unread:
            return self.unread.pop(0)
        while True:
            frame = await self._read()
            if not _is_answer(frame):
                return frame

    def close(self) -> None:
        """Close it, without a wait for the other side's close frame. Safe to call twice."""
        self._connection.transport.abort()

    async def _read(self) -> Frame:
        raw = await self._connection.recv()
        try:
            parsed: object = json.loads(raw)
        except MALFORMED as error:
            raise NoFrame("what came is not a frame") from error
        return cast("Frame", parsed) if isinstance(parsed, dict) else {}


def _is_answer(frame: Mapping[str, object]) -> bool:
    kind = str(frame.get("type", ""))
    return kind.endswith("_response") or kind == "input_accepted"


class Sockets:
    """Opens sockets to one App Server and keeps a few idle ones.

    Args:
        url: `ws://host:port`; the path `/ws` is added.
        token: Bearer token, None where the server asks for none.
        timeout_s: Deadline of opening one, its first question included.
    """

    def __init__(self, url: str, token: str | None, *, timeout_s: float) -> None:
        parts = urlsplit(url)
        self.where = parts.netloc.rpartition("@")[2]
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        path = parts.path.rstrip("/")
        path = path if path.endswith("/ws") else f"{path}/ws"
        self._url = urlunsplit((scheme, parts.netloc, path, "", ""))
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
        self._idle: list[AppServerSocket] = []

    @asynccontextmanager
    async def lend(self) -> AsyncGenerator[AppServerSocket]:
        """Lend a socket that is subscribed to nothing; nobody else uses it meanwhile.

        Raises:
            LettaUnavailable, LettaDenied: as `open`.
        """
        while self._idle and not self._idle[-1].is_open:
            self._idle.pop()
        socket = self._idle.pop() if self._idle else await self.open()
        try:
            yield socket
        except BaseException:
            # An answer may still be on its way: it must not be taken for a later question's.
            socket.close()
            raise
        socket.unread.clear()
        if socket.is_open and len(self._idle) < _IDLE_LIMIT:
            self._idle.append(socket)
        else:
            socket.close()

    async def open(self) -> AppServerSocket:
        """Open a new socket, and refuse a server of another protocol.

        Raises:
            LettaUnavailable: no server there, none in time, or one of another protocol version.
            LettaDenied: it refused the token.
        """
        try:
            with anyio.fail_after(self._timeout_s):
                connection = await connect(
                    self._url,
                    additional_headers=self._headers,
                    compression=None,
                    max_size=_FRAME_LIMIT_BYTES,
                    # Nobody reads the second of two sockets on one turn: it must not back up.
                    max_queue=None,
                    open_timeout=None,
                    proxy=None,
                )
                socket = AppServerSocket(connection)
                try:
                    info = await socket.ask("app_server_info")
                except BaseException:
                    socket.close()
                    raise
        except InvalidStatus as error:
            status = error.response.status_code
            if status in _DENIED:
                raise LettaDenied(
                    f"the App Server refused the token ({status})",
                    hint="check LETTA_APP_SERVER_TOKEN",
                ) from error
            raise LettaUnavailable(
                f"no App Server there: it answered {status}", hint=_CHECK_URL
            ) from error
        except TimeoutError as error:
            raise LettaUnavailable(
                f"the App Server did not answer in {self._timeout_s:.1f} s"
            ) from error
        except NoFrame as error:
            raise NotLetta(
                "the server that answered is not an App Server", hint=_CHECK_URL
            ) from error
        except SOCKET_ERRORS as error:
            raise LettaUnavailable("no connection to the App Server", hint=_CHECK_URL) from error
        spoken = info.get("protocol_version")
        if spoken != PROTOCOL_VERSION:
            socket.close()
            raise LettaUnavailable(
                f"the App Server ({info.get('letta_code_version')}) speaks protocol version"
                f" {spoken}, not {PROTOCOL_VERSION}",
                hint="install the App Server release that docs/letta.md names",
            )
        return socket

    async def aclose(self) -> None:
        """Close the idle sockets. Safe to call twice."""
        while self._idle:
            self._idle.pop().close()


_CHECK_URL: Final = "check LETTA_APP_SERVER_URL and that the server runs"


@asynccontextmanager
async def asking(what: str, budget_s: float) -> AsyncGenerator[None]:
    """Bound the requests within, and turn their errors into `LettaUnavailable`.

    Args:
        what: What is asked for, for the message; no ids.
        budget_s: Deadline of all requests together.
    """
    try:
        with anyio.fail_after(budget_s):
            yield
    except TimeoutError as error:
        raise LettaUnavailable(f"{what}: no answer in {budget_s:.1f} s") from error
    except NoFrame as error:
        raise NotLetta(f"{what}: the answer is not an App Server's", hint=_CHECK_URL) from error
    except SOCKET_ERRORS as error:
        raise LettaUnavailable(f"{what}: the socket broke ({type(error).__name__})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotLetta(f"{what}: the answer is not an App Server's", hint=_CHECK_URL) from error


def is_missing(answer: Frame, noun: str) -> bool:
    """Return whether an answer says that its `Agent` or `Conversation` does not exist."""
    error = str(answer.get("error") or "")
    return not answer.get("success") and error.startswith(noun) and error.endswith("not found")


def require(answer: Frame, what: str) -> Frame:
    """Return an answer if it reports success.

    Raises:
        AgentNotFound: it says that its agent does not exist.
        LettaUnavailable: it reports another failure; its words are not repeated.
    """
    if is_missing(answer, "Agent"):
        raise AgentNotFound("the agent does not exist on this App Server")
    if not answer.get("success"):
        raise LettaUnavailable(f"{what}: the App Server failed")
    return answer
