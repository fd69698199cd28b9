"""The sidecar's end of the link (docs/link-protocol.md).

Theory of operation: the reader decodes frames and never waits for the disk; one task per call
processes its frames in order (`inbox`); the writer sends. Acks are never dropped; of memory only
the newest per call is kept. When more bytes wait for the disk, or for the worker to read them, than
a bound allows, nothing more is read from that worker: its frames wait at its own end.
"""

import contextlib
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

import anyio
import msgspec
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect

from sidecar import telemetry
from sidecar.access.bearer import BearerTokens
from sidecar.bearer import token_in
from sidecar.calls import Calls
from sidecar.channels.link.allowance import Allowance
from sidecar.channels.link.inbox import OPEN_FIRST, UNKNOWN_CALL, CallFrame, CallInbox
from sidecar.errors import LinkError
from sidecar.telemetry import Emit
from sidecar.wire import frames
from sidecar.wire.frames import (
    CLOSE_DENIED,
    CLOSE_DRAINING,
    CLOSE_PROTOCOL,
    MAX_FRAME_BYTES,
    SUBPROTOCOL,
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
)

HELLO_S = 10.0
SEND_S = 20.0
CLOSE_S = 2.0
MAX_ENDED = 256
"""Ended calls of a connection that still take late turns."""
MAX_CALLS = 1_000
"""Live calls of a connection."""
MAX_UNSTORED_BYTES = 8 << 20
"""One connection's frames that wait for the disk; beyond it, its reader pauses."""
MAX_UNSTORED_OF_ALL_BYTES = 64 << 20
"""The same for all connections; beyond it, readers with waiting frames pause."""
MAX_UNSENT_BYTES = 1 << 20
"""Acks and errors that a worker does not read; beyond it nothing is read from that worker."""
_FRAME_BYTES = 1 << 10
"""Memory that a frame takes in addition to its text."""
_GONE = (WebSocketDisconnect, RuntimeError, OSError)
"""What sending raises if the peer has left, or if the connection was closed before."""


class LinkServer:
    """Accepts the connections of workers.

    Args:
        calls: Where calls live.
        tokens: Tenant by bearer token; without any, every connection is refused.
        memory_wait_s: How long a worker may wait at a prompt for a read that is under way.
        cold_start_s: How long a worker may wait at a call's first prompt.
        retry_after_s: Sent to workers when the sidecar drains.
        emit: Where events go.
        wall: Unix time, sent to workers, which date their frames by it.
    """

    def __init__(
        self,
        calls: Calls,
        *,
        tokens: Mapping[str, str],
        memory_wait_s: float,
        cold_start_s: float,
        retry_after_s: float = 1.0,
        emit: Emit,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._calls = calls
        self._wall = wall
        self._tokens = BearerTokens((tenant, token.encode()) for token, tenant in tokens.items())
        self._waits_s = memory_wait_s, cold_start_s
        self._retry_after_s = retry_after_s
        self._emit = emit
        self._connections: set[_Connection] = set()
        self._of_worker: dict[str, _Connection] = {}
        self.unstored = Allowance(MAX_UNSTORED_OF_ALL_BYTES)
        """The frames of all connections that wait for the disk."""

    async def endpoint(self, socket: WebSocket) -> None:
        """Serve one connection until it ends."""
        why = ""
        tenant = self._tokens.of(token_in(socket.headers.raw))
        if socket.headers.get("origin") is not None:
            why = "a browser's request"
        elif SUBPROTOCOL not in socket.scope.get("subprotocols", []):
            why = f"subprotocol {SUBPROTOCOL} not offered"
        elif tenant is None:
            why = "wrong or missing token"
        if why or tenant is None:
            self._emit(telemetry.link_refused, why=why)
            await socket.close(CLOSE_DENIED)  # before accept: answered with HTTP 403
            return
        await socket.accept(subprotocol=SUBPROTOCOL)
        connection = _Connection(
            socket,
            tenant,
            self._calls,
            emit=self._emit,
            unstored=Allowance(MAX_UNSTORED_BYTES, self.unstored),
        )
        self._connections.add(connection)
        try:
            await connection.serve(self._welcome, self._take_over)
        finally:
            self._connections.discard(connection)
            connection.unstored.give_back()
            if self._of_worker.get(connection.owner) is connection:
                del self._of_worker[connection.owner]
                self._calls.orphan(connection.owner)

    def _welcome(self) -> Welcome:
        return Welcome(*self._waits_s, MAX_FRAME_BYTES, self._wall())

    @property
    def connections(self) -> int:
        """How many workers are connected."""
        return len(self._connections)

    def announce_drain(self) -> None:
        """Tell every worker that the sidecar is draining; live calls go on."""
        for connection in self._connections:
            connection.send(Drain(self._retry_after_s))

    async def close_all(self) -> None:
        """Close every connection with the retry hint; takes `CLOSE_S` seconds at most."""
        reason = f"retry after {self._retry_after_s:g} s"
        async with anyio.create_task_group() as tasks:
            for connection in tuple(self._connections):
                tasks.start_soon(connection.close, CLOSE_DRAINING, reason)

    def _take_over(self, connection: "_Connection") -> "_Connection | None":
        """The worker said hello on a new connection: it replaces its older one."""
        older = self._of_worker.get(connection.owner)
        self._of_worker[connection.owner] = connection
        return older


class _Connection:
    def __init__(
        self, socket: WebSocket, tenant: str, calls: Calls, *, emit: Emit, unstored: Allowance
    ) -> None:
        self._socket = socket
        self._tenant = tenant
        self._calls = calls
        self._emit = emit
        self._inboxes: dict[str, CallInbox] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self.unstored = unstored
        self.unsent = Allowance(MAX_UNSENT_BYTES)
        self._tasks: TaskGroup | None = None
        self._out: deque[str] = deque()
        self._memory: OrderedDict[str, Memory] = OrderedDict()
        self._to_send = anyio.Event()
        self._scope = anyio.CancelScope()
        self._close_with: tuple[int, str] = (1000, "")
        self.owner = ""

    async def serve(
        self,
        welcome: Callable[[], Welcome],
        take_over: "Callable[[_Connection], _Connection | None]",
    ) -> None:
        try:
            with anyio.fail_after(HELLO_S):
                hello = frames.decode_from_worker(await self._receive())
            if not isinstance(hello, Hello):
                raise LinkError("hello_expected", "the first frame must be hello")  # noqa: TRY301
        except (LinkError, TimeoutError):
            with contextlib.suppress(*_GONE):
                await self._socket.close(CLOSE_PROTOCOL, "hello expected")
            return
        except WebSocketDisconnect:
            return
        self.owner = f"{self._tenant}/{hello.worker}"
        older = take_over(self)
        if older is not None:
            await older.close(CLOSE_PROTOCOL, "replaced by a newer connection of this worker")
        self._emit(telemetry.link_opened, worker=hello.worker, tenant=self._tenant)
        self.send(welcome())
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    self._tasks = tasks
                    tasks.start_soon(self._write)
                    await self._read()
                    tasks.cancel_scope.cancel()
        finally:
            self._emit(telemetry.link_closed, worker=hello.worker, code=self._close_with[0])

    async def close(self, code: int, reason: str) -> None:
        """Send the queued frames and close. May be repeated, also after the peer has left."""
        self._close_with = (code, reason)
        with anyio.move_on_after(CLOSE_S, shield=True), contextlib.suppress(*_GONE):
            await self._send_waiting()
            await self._socket.close(code, reason)
        self._scope.cancel()

    def send(self, frame: FromSidecar) -> None:
        """Queue a frame; never waits."""
        if isinstance(frame, Memory):
            waiting = self._memory.pop(frame.call, None)
            if waiting is not None and waiting.newest and not frame.newest:
                frame = msgspec.structs.replace(frame, newest=True)
            self._memory[frame.call] = frame
        else:
            self._out.append(text := frames.encode(frame))
            self.unsent.take(len(text))
        self._to_send.set()

    async def _receive(self) -> str | bytes:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005)
        text = message.get("text")
        return text if text is not None else message.get("bytes") or b""

    async def _read(self) -> None:
        while True:
            try:
                raw = await self._receive()
            except WebSocketDisconnect as gone:
                self._close_with = (gone.code, "")
                return
            self._take_raw(raw)
            del raw  # else it would be held until the next frame comes
            await self.unstored.room()
            await self.unsent.room()

    def _take_raw(self, raw: str | bytes) -> None:
        try:
            frame = frames.decode_from_worker(raw)
            if frame is not None:
                self._take(frame, sys.getsizeof(raw) + _FRAME_BYTES)
        except LinkError as error:
            self._refuse(error)

    def _take(self, frame: FromWorker, size_bytes: int) -> None:
        match frame:
            case Hello():
                raise LinkError("bad_value", "hello came before", field="type")
            case CallOpen():
                inbox = self._inboxes.get(frame.call) or self._new_inbox(frame.call)
                self._queue(inbox, frame, size_bytes)
            case SpeechStarted():
                inbox = self._inbox(frame.call)
                if inbox.live is None:
                    self._queue(inbox, frame, size_bytes)  # behind its call.open
                else:
                    inbox.speech_started(frame)  # not behind turns that wait for the disk
            case TurnFrame():
                if not frame.text.strip():
                    raise LinkError(
                        "bad_value",
                        "a turn without words",
                        field="text",
                        hint="send turns that have words",
                        call=frame.call,
                        item=frame.item,
                    )
                self._queue(self._inbox(frame.call, frame.item), frame, size_bytes)
            case CallClose():
                self._queue(self._inbox(frame.call), frame, size_bytes)

    def _inbox(self, call_id: str, item: str = "") -> CallInbox:
        inbox = self._inboxes.get(call_id)
        if inbox is None:
            raise LinkError(
                "unknown_call", UNKNOWN_CALL, field="call", hint=OPEN_FIRST, call=call_id, item=item
            )
        return inbox

    def _new_inbox(self, call_id: str) -> CallInbox:
        if len(self._inboxes) - len(self._ended) >= MAX_CALLS:
            raise LinkError(
                "too_many_calls",
                f"this connection holds {MAX_CALLS} live calls",
                field="call",
                hint="close calls that have ended, or open some on another connection",
                call=call_id,
            )
        inbox = self._inboxes[call_id] = CallInbox(
            call_id,
            tenant=self._tenant,
            owner=self.owner,
            calls=self._calls,
            send=self.send,
            emit=self._emit,
        )
        return inbox

    def _refuse(self, error: LinkError) -> None:
        self._emit(telemetry.frame_refused, worker=self.owner, code=error.code, field=error.field)
        self.send(
            ErrorFrame(
                error.code,
                error.message,
                field=error.field,
                remedy=error.hint,
                call=error.call,
                item=error.item,
            )
        )

    def _queue(self, inbox: CallInbox, frame: CallFrame, size_bytes: int) -> None:
        """Queue a frame behind the others of its call; calls do not wait for each other."""
        inbox.put(frame, size_bytes)
        self.unstored.take(size_bytes)
        if not inbox.at_work:
            inbox.at_work = True
            self._ended.pop(inbox.call_id, None)
            assert self._tasks is not None
            self._tasks.start_soon(self._work_off, inbox)

    async def _work_off(self, inbox: CallInbox) -> None:
        while done_bytes := await inbox.carry_out():
            self.unstored.give_back(done_bytes)
        inbox.at_work = False
        if inbox.live is None:  # it could not be opened
            del self._inboxes[inbox.call_id]
        elif inbox.ended:
            self._ended[inbox.call_id] = None
            while len(self._ended) > MAX_ENDED:
                del self._inboxes[self._ended.popitem(last=False)[0]]

    async def _write(self) -> None:
        while True:
            if not self._out and not self._memory:
                self._to_send = anyio.Event()
                await self._to_send.wait()
            try:
                with anyio.fail_after(SEND_S):
                    await self._send_waiting()
            except (*_GONE, TimeoutError):
                self._scope.cancel()
                return

    async def _send_waiting(self) -> None:
        while self._out or self._memory:
            if not self._out:
                await self._socket.send_text(frames.encode(self._memory.popitem(last=False)[1]))
                continue
            text = self._out.popleft()
            await self._socket.send_text(text)
            self.unsent.give_back(len(text))
