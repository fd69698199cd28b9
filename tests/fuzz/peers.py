"""The senders of the inputs: an HTTP client, a worker of the link and an open page.

Each returns why an answer is a fault, or an empty text. A fault is a status of 5xx, an answer that
does not come, a socket closed by an error of the sidecar, or a line of its log that reports one.
"""

import contextlib
import http.client
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from sidecar.wire.frames import SUBPROTOCOL
from tests.fuzz.inputs import text_of
from tests.sidecar_process import SidecarProcess

ANSWER_S = 10.0
_FAULTS = ("Traceback", "Exception in ASGI", '"part_failed"', '"log_failed"')
_OUR_FAULT = {1006, 1011}


class Peer(Protocol):
    """Sends one input and says what was wrong with the answer."""

    def send(self, raw: bytes) -> str:
        """Return why the answer is a fault; empty when it is none."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


@dataclass
class Log:
    """The faults in the sidecar's log since the last look.

    A line may come a moment after the answer; its fault is then returned with the next input.
    """

    process: SidecarProcess
    _seen: int = 0

    def fault(self) -> str:
        lines = self.process.log[self._seen :]
        self._seen += len(lines)
        faults = [line for line in lines if any(word in line for word in _FAULTS)]
        return "".join(lines[-40:])[-3_000:] if faults else ""


@dataclass
class Route:
    """One HTTP route, over a connection that is kept open."""

    process: SidecarProcess
    path: str
    headers: Mapping[str, str]
    method: str = "POST"
    _connection: http.client.HTTPConnection | None = None

    def send(self, raw: bytes) -> str:
        for again in (True, False):
            connection = self._connection or http.client.HTTPConnection(
                "127.0.0.1", self.process.port, timeout=ANSWER_S
            )
            fresh = self._connection is None
            self._connection = connection
            try:
                connection.request(self.method, self.path, raw, dict(self.headers))
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if again and not fresh:
                    continue  # the server may close a connection that is kept open
                return f"no answer: {type(error).__name__}: {error}"
            return f"status {answer.status}" if answer.status >= 500 else ""
        return ""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass
class Frames:
    """Frames over one WebSocket, opened anew when the sidecar has closed it.

    Args:
        url: The address of the socket.
        barrier: A frame that is answered with an error at once. Its answer shows that the frames
            sent before it have been processed.
        answered: A text that this error holds and hardly any other.
        greetings: Sent at the start of each connection.
        first: The input is the first frame of a connection, which is answered or refused.
        origin: The Origin header of a browser.
        protocols: The subprotocols that are offered.
        bearer: The token that opens the socket; empty for none.
    """

    url: str
    barrier: str
    answered: str
    greetings: tuple[str, ...] = ()
    first: bool = False
    origin: str = ""
    protocols: tuple[str, ...] = ()
    bearer: str = ""
    _socket: ClientConnection | None = None
    _leaving: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def send(self, raw: bytes) -> str:
        try:
            socket = self._opened()
            self._read_what_waits(socket)
            socket.send(raw.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode())
            if self.first:
                socket.recv(timeout=ANSWER_S)
            else:
                socket.send(self.barrier)
                while self.answered not in str(socket.recv(timeout=ANSWER_S)):
                    pass
        except ConnectionClosed as closed:
            self.close()
            code = closed.rcvd.code if closed.rcvd else 1006
            return f"closed with {code}" if code in _OUR_FAULT else ""
        except (OSError, TimeoutError, InvalidHandshake) as error:
            self.close()
            return f"no answer: {type(error).__name__}: {error}"
        if self.first:
            self.close()
        return ""

    @staticmethod
    def _read_what_waits(socket: ClientConnection) -> None:
        """Read all answers that wait, as the sidecar drops a peer that does not read."""
        with contextlib.suppress(TimeoutError):
            while True:
                socket.recv(timeout=0)

    def _opened(self) -> ClientConnection:
        if self._socket is None:
            opened = connect(
                self.url,
                subprotocols=[Subprotocol(one) for one in self.protocols] or None,
                origin=Origin(self.origin) if self.origin else None,
                additional_headers={"Authorization": f"Bearer {self.bearer}"}
                if self.bearer
                else None,
                open_timeout=ANSWER_S,
                close_timeout=0.2,
                max_size=None,
                compression=None,
            )
            self._socket = self._leaving.enter_context(opened)
            for text in self.greetings:
                self._socket.send(text.replace("{n}", str(next(self._numbers))))
        return self._socket

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._leaving.close()
        self._socket = None


def link(process: SidecarProcess, *, first: bool, bearer: str) -> Frames:
    """A worker; the input is its first frame, or any frame after a valid start."""
    return Frames(
        process.link_url,
        '{"type":"turn","call":"the barrier"}',
        '"call":"the barrier"',
        () if first else ('{"type":"hello","worker":"w{n}"}',),
        first=first,
        protocols=(SUBPROTOCOL,),
        bearer=bearer,
    )


PAGE_CALL = "console-0aa0a3c4-6b1e-4aa2-9d0e-3f5b8a1c2d44"


def page(process: SidecarProcess, *, first: bool) -> Frames:
    """A page; the input is its first frame, or any frame after a valid start."""
    hello = json.dumps({"type": "hello", "token": process.token})
    start = json.dumps({"type": "call.start", "call": PAGE_CALL, "caller": "Ada"})
    return Frames(
        f"ws://127.0.0.1:{process.port}/console/ws",
        '{"type":"outbox.drop","batch":"none"}',
        "that batch is no longer a dead letter",
        () if first else (hello, start),
        first=first,
        origin=process.url,
    )


def raw_of(document: object) -> bytes:
    """Return a document as it goes over the wire."""
    return text_of(document).encode("utf-8", "surrogatepass")
