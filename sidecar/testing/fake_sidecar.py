"""A sidecar with nothing behind it: the other end of the link, for tests of workers.

It speaks docs/link-protocol.md over a real socket, keeps what it receives, and does on demand what
a real one does in bad moments: hold acks back, refuse turns, drain, hang, die.
"""

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from sidecar.bearer import RawHeaders, is_secret, token_in
from sidecar.errors import LinkError
from sidecar.wire.frames import (
    CLOSE_DRAINING,
    MAX_FRAME_BYTES,
    SUBPROTOCOL,
    Ack,
    CallClose,
    CallOpen,
    Drain,
    ErrorFrame,
    FromSidecar,
    FromWorker,
    Hello,
    Memory,
    SpeechStarted,
    TurnFrame,
    Welcome,
    decode_from_worker,
    encode,
)


def no_memory(call: str) -> Memory:
    """Return the memory frame that a sidecar sends for a call without an agent."""
    return Memory(call=call, text="", version="", read_at_s=0.0, served="none", newest=True)


def _headers_of(socket: ServerConnection) -> RawHeaders:
    raw = socket.request.headers.raw_items() if socket.request else ()
    return [(name.encode(), value.encode("ascii", "surrogateescape")) for name, value in raw]


@dataclass
class FakeSidecar:
    """The state of the fake, which outlives its restarts as a journal would.

    Attributes:
        token: Bearer token it asks for, or None.
        welcome: Its first answer.
        wall: The clock whose time is in `welcome`; None: no time, as from an older sidecar.
        memory_of: What it answers to `call.open` and `speech.started`; None: it answers nothing.
        acks: Whether it acks; while it does not, turns are not stored.
        refusals: Error frames to answer the next turns with, by item id, used up in order.
        received: Every frame, as it came, over all connections.
        stored: Turns by call and item, in the order in which they were first taken.
        closed: Calls that were closed.
        connections: How many connections there were.
    """

    token: str | None = None
    welcome: Welcome = field(
        default_factory=lambda: Welcome(
            memory_wait_s=0.15, cold_start_s=0.8, max_frame_bytes=MAX_FRAME_BYTES
        )
    )
    wall: Callable[[], float] | None = time.time
    memory_of: Callable[[str], Memory | None] = no_memory
    acks: bool = True
    refusals: dict[str, list[ErrorFrame]] = field(default_factory=dict[str, list[ErrorFrame]])
    received: list[FromWorker] = field(default_factory=list[FromWorker])
    stored: dict[str, dict[str, TurnFrame]] = field(
        default_factory=lambda: defaultdict[str, dict[str, TurnFrame]](dict)
    )
    closed: list[str] = field(default_factory=list[str])
    connections: int = 0
    _open: set[ServerConnection] = field(default_factory=set[ServerConnection])
    _changed: anyio.Event = field(default_factory=anyio.Event)

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncGenerator[str]:
        """Serve on loopback; yields the link's URL. On leaving it dies without a close frame."""
        server: Server = await serve(
            self._connection,
            "127.0.0.1",
            port,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            max_size=MAX_FRAME_BYTES,
            close_timeout=0.5,
        )
        try:
            bound = next(iter(server.sockets)).getsockname()[1]
            yield f"ws://127.0.0.1:{bound}/link"
        finally:
            self.cut()
            server.close()
            with anyio.CancelScope(shield=True):
                await server.wait_closed()

    def cut(self) -> None:
        """Cut every connection as a crash does, without a close frame."""
        for socket in list(self._open):
            socket.transport.abort()

    async def drain(self, retry_after_s: float) -> None:
        """Drain as docs/link-protocol.md describes, and close."""
        for socket in list(self._open):
            await socket.send(encode(Drain(retry_after_s=retry_after_s)))
            await socket.close(CLOSE_DRAINING, str(retry_after_s))

    async def push(self, frame: FromSidecar) -> None:
        """Send a frame to every worker."""
        for socket in list(self._open):
            await socket.send(encode(frame))

    async def ack_all(self) -> None:
        """Store and ack every turn that came, and ack from now on."""
        self.acks = True
        for frame in list(self.received):
            if isinstance(frame, TurnFrame):
                self.stored[frame.call].setdefault(frame.item, frame)
                await self.push(Ack(call=frame.call, items=[frame.item]))
            elif isinstance(frame, CallClose):
                await self.push(Ack(call=frame.call, closed=True))
        self._notify()

    async def until(self, condition: Callable[[], bool], budget_s: float = 60.0) -> None:
        """Wait until `condition` returns True; it is asked whenever this fake changes.

        Raises:
            TimeoutError: it did not in time.
        """
        with anyio.fail_after(budget_s):
            while not condition():
                await self._changed.wait()

    def texts(self, call: str) -> list[str]:
        """Return what was stored of a call, in order."""
        return [turn.text for turn in self.stored[call].values()]

    def of_type(self, kind: type[FromWorker]) -> Sequence[FromWorker]:
        """Return the frames of one type that came, in order."""
        return [frame for frame in self.received if isinstance(frame, kind)]

    async def _connection(self, socket: ServerConnection) -> None:
        if self.token and not is_secret(token_in(_headers_of(socket)), self.token.encode()):
            await socket.close(4401, "wrong token")
            return
        self._open.add(socket)
        self.connections += 1
        self._notify()
        try:
            async for raw in socket:
                await self._take(socket, raw)
        except ConnectionClosed:
            pass
        finally:
            self._open.discard(socket)
            self._notify()

    async def _take(self, socket: ServerConnection, raw: str | bytes) -> None:
        try:
            frame = decode_from_worker(raw)
        except LinkError as error:
            refusal = ErrorFrame(
                error.code, error.message, field=error.field, call=error.call, item=error.item
            )
            await self._say(socket, refusal)
            return
        if frame is None:
            return
        self.received.append(frame)
        match frame:
            case Hello():
                now_s = self.wall() if self.wall else 0.0
                await self._say(socket, msgspec.structs.replace(self.welcome, now_s=now_s))
            case CallOpen() | SpeechStarted():
                if memory := self.memory_of(frame.call):
                    await self._say(socket, memory)
            case TurnFrame():
                await self._take_turn(socket, frame)
            case CallClose():
                if self.acks:
                    self.closed.append(frame.call)
                    await self._say(socket, Ack(call=frame.call, closed=True))
        self._notify()

    async def _take_turn(self, socket: ServerConnection, frame: TurnFrame) -> None:
        if refusals := self.refusals.get(frame.item):
            await self._say(socket, refusals.pop(0))
        elif self.acks:
            self.stored[frame.call].setdefault(frame.item, frame)
            await self._say(socket, Ack(call=frame.call, items=[frame.item]))

    async def _say(self, socket: ServerConnection, frame: FromSidecar) -> None:
        await socket.send(encode(frame))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
