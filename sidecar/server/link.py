"""The sidecar's end of the link (docs/link-protocol.md).

Theory of operation: the reader decodes frames and never waits for the disk; turns are recorded by
one task per call that has some, which makes all that have gathered durable in one append and acks
them in order; the writer sends. Acks are never dropped; of memory only the newest per call
is kept, so a slow worker costs a bounded amount of memory here.
"""

import hmac
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

import anyio
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect

from sidecar import telemetry
from sidecar.calls import Calls, LiveCall, MemoryView
from sidecar.channels import frames
from sidecar.channels.frames import (
    CLOSE_DENIED,
    CLOSE_DRAINING,
    CLOSE_PROTOCOL,
    MAX_FRAME_BYTES,
    SUBPROTOCOL,
    Ack,
    CallClose,
    CallOpen,
    Drain,
    ErrorFrame,
    FromSidecar,
    FromWorker,
    Guidance,
    Hello,
    Memory,
    SpeechStarted,
    TurnFrame,
    Welcome,
    hints_of,
    turn_of,
)
from sidecar.channels.peer import from_this_machine
from sidecar.errors import CallError, JournalError, LinkError
from sidecar.telemetry import Emit
from sidecar.tracing import traceparent_or_none

HELLO_S = 10.0
SEND_S = 20.0
KEEP_ENDED = 256
"""Ended calls of a connection that still take late turns."""
MAX_QUEUED = 20_000
"""Turns of one connection that wait for the disk; beyond it the reader waits."""


def tenant_of(authorization: str, tokens: Mapping[str, str]) -> str | None:
    """Return the tenant of a bearer token, or None when it is refused.

    Args:
        authorization: The header's value, empty when there is none.
        tokens: Tenant by token.
    """
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return None
    found: str | None = None
    for token, tenant in tokens.items():  # every token is compared: the time says nothing
        if hmac.compare_digest(token.encode(), given.strip().encode()):
            found = tenant
    return found


class LinkServer:
    """Accepts the connections of workers.

    Args:
        calls: Where calls live.
        tokens: Tenant by bearer token.
        default_tenant: Without tokens, the tenant of programs on this machine, which alone are
            let in; None: nobody is.
        memory_wait_s: What a worker may spend at a prompt on a read under way.
        cold_start_s: What a worker may spend at a call's first prompt.
        retry_after_s: Told to workers when the sidecar goes away.
        emit: Where events go.
    """

    def __init__(
        self,
        calls: Calls,
        *,
        tokens: Mapping[str, str],
        default_tenant: str | None,
        memory_wait_s: float,
        cold_start_s: float,
        retry_after_s: float = 1.0,
        emit: Emit,
    ) -> None:
        self._calls = calls
        self._tokens = tokens
        self._default_tenant = default_tenant
        self._welcome = Welcome(memory_wait_s, cold_start_s, MAX_FRAME_BYTES)
        self._retry_after_s = retry_after_s
        self._emit = emit
        self._connections: set[_Connection] = set()
        self._of_worker: dict[str, _Connection] = {}

    async def endpoint(self, socket: WebSocket) -> None:
        """Serve one connection until it ends."""
        why = ""
        tenant = self._tenant_of(socket)
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
        connection = _Connection(socket, tenant, self._calls, self._emit)
        self._connections.add(connection)
        try:
            await connection.serve(self._welcome, self._take_over)
        finally:
            self._connections.discard(connection)
            if self._of_worker.get(connection.owner) is connection:
                del self._of_worker[connection.owner]
                self._calls.orphan(connection.owner)

    def _tenant_of(self, socket: WebSocket) -> str | None:
        if self._tokens:
            return tenant_of(socket.headers.get("authorization", ""), self._tokens)
        client = socket.client.host if socket.client else ""
        return self._default_tenant if from_this_machine(socket.headers, client) else None

    @property
    def connections(self) -> int:
        """How many workers are connected."""
        return len(self._connections)

    def announce_drain(self) -> None:
        """Tell every worker that the sidecar goes away; live calls go on."""
        for connection in self._connections:
            connection.send(Drain(self._retry_after_s))

    async def close_all(self) -> None:
        """Close every connection with the retry hint."""
        for connection in tuple(self._connections):
            await connection.close(CLOSE_DRAINING, f"retry after {self._retry_after_s:g} s")

    def _take_over(self, connection: "_Connection") -> "_Connection | None":
        """The worker said hello on a new connection: it replaces its older one."""
        older = self._of_worker.get(connection.owner)
        self._of_worker[connection.owner] = connection
        return older


class _CallListener:
    """Sends what a call's memory and guidance are to the connection that holds the call."""

    def __init__(self, connection: "_Connection", call_id: str) -> None:
        self._connection = connection
        self._call_id = call_id

    def on_memory(self, view: MemoryView, *, settled: bool) -> None:
        self._connection.send(
            Memory(self._call_id, view.text, view.version, view.read_at_s, view.served, settled)
        )

    def on_guidance(self, text: str) -> None:
        self._connection.send(Guidance(self._call_id, text))


class _Connection:
    def __init__(self, socket: WebSocket, tenant: str, calls: Calls, emit: Emit) -> None:
        self._socket = socket
        self._tenant = tenant
        self._calls = calls
        self._emit = emit
        self._held: dict[str, LiveCall] = {}
        self._ended: OrderedDict[str, LiveCall] = OrderedDict()
        self._waiting: dict[LiveCall, deque[TurnFrame | CallClose]] = {}
        self._queued = 0
        self._recorded = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._out: deque[FromSidecar] = deque()
        self._memory: OrderedDict[str, Memory] = OrderedDict()
        self._to_send = anyio.Event()
        self._scope = anyio.CancelScope()
        self._close_with: tuple[int, str] = (1000, "")
        self.owner = ""

    async def serve(
        self,
        welcome: Welcome,
        take_over: "Callable[[_Connection], _Connection | None]",
    ) -> None:
        try:
            with anyio.fail_after(HELLO_S):
                hello = frames.decode_from_worker(await self._receive())
            if not isinstance(hello, Hello):
                raise LinkError("hello_expected", "the first frame must be hello")  # noqa: TRY301
        except (LinkError, TimeoutError):
            await self._socket.close(CLOSE_PROTOCOL, "hello expected")
            return
        except WebSocketDisconnect:
            return
        self.owner = f"{self._tenant}/{hello.worker}"
        older = take_over(self)
        if older is not None:
            await older.close(CLOSE_PROTOCOL, "replaced by a newer connection of this worker")
        self._emit(telemetry.link_opened, worker=hello.worker, tenant=self._tenant)
        self.send(welcome)
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
        """Send what waits and close."""
        self._close_with = (code, reason)
        with anyio.move_on_after(2.0, shield=True):
            await self._send_waiting()
            await self._socket.close(code, reason)
        self._scope.cancel()

    def send(self, frame: FromSidecar) -> None:
        """Queue a frame; never waits."""
        if isinstance(frame, Memory):
            waiting = self._memory.pop(frame.call, None)
            if waiting is not None and waiting.settled and not frame.settled:
                frame = Memory(
                    frame.call, frame.text, frame.version, frame.read_at_s, frame.served, True
                )
            self._memory[frame.call] = frame
        else:
            self._out.append(frame)
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
            try:
                frame = frames.decode_from_worker(raw)
                if frame is not None:
                    await self._take(frame)
            except LinkError as error:
                self._refuse(error)
            while self._queued > MAX_QUEUED:
                self._recorded = anyio.Event()
                await self._recorded.wait()

    async def _take(self, frame: FromWorker) -> None:
        match frame:
            case Hello():
                raise LinkError("bad_value", "hello came before", field="type")
            case CallOpen():
                await self._open(frame)
            case SpeechStarted():
                spoken = traceparent_or_none(frame.traceparent)
                self._live(frame.call).speech_started(traceparent=spoken)
            case TurnFrame():
                if not frame.text.strip():
                    raise LinkError("bad_value", "a turn without words", field="text")
                self._queue(self._live(frame.call), frame)
            case CallClose():
                self._queue(self._live(frame.call), frame)

    def _live(self, call_id: str) -> LiveCall:
        live = self._held.get(call_id) or self._ended.get(call_id)
        if live is None:
            raise LinkError(
                "unknown_call",
                "this connection has not opened the call",
                field="call",
                hint="send call.open first",
            )
        return live

    async def _open(self, frame: CallOpen) -> None:
        try:
            self._held[frame.call] = await self._calls.open(
                self._tenant,
                frame.call,
                channel=frame.channel,
                hints=hints_of(frame),
                opened_at_s=frame.opened_at_s,
                owner=self.owner,
                listener=_CallListener(self, frame.call),
                traceparent=traceparent_or_none(frame.traceparent),
            )
        except CallError as error:
            self._emit(
                telemetry.turn_refused, call=frame.call, code=error.code, error=error.message
            )
            self.send(
                ErrorFrame(
                    error.code, error.message, field="call", remedy=error.hint, call=frame.call
                )
            )

    def _refuse(self, error: LinkError) -> None:
        self._emit(telemetry.frame_refused, worker=self.owner, code=error.code, field=error.field)
        self.send(ErrorFrame(error.code, error.message, field=error.field, remedy=error.hint))

    def _queue(self, live: LiveCall, frame: TurnFrame | CallClose) -> None:
        """Have a frame recorded behind those of its call; calls do not wait for each other."""
        waiting = self._waiting.get(live)
        if waiting is None:
            self._waiting[live] = deque([frame])
            assert self._tasks is not None
            self._tasks.start_soon(self._record, live, self._waiting[live])
        else:
            waiting.append(frame)
        self._queued += 1

    async def _record(self, live: LiveCall, waiting: deque[TurnFrame | CallClose]) -> None:
        """Record what waits for a call, all that has gathered at a time, until nothing does.

        One append of a call at a time: were a failed one overtaken, its turns would be stored
        out of order.
        """
        while waiting:
            turns: list[TurnFrame] = []
            ending: CallClose | None = None
            while waiting and ending is None:
                frame = waiting.popleft()
                if isinstance(frame, CallClose):
                    ending = frame
                else:
                    turns.append(frame)
            if turns:
                await self._append(live, turns)
            if ending is not None:
                await self._close_call(live, ending)
            self._queued -= len(turns) + (ending is not None)
            self._recorded.set()
        del self._waiting[live]

    async def _append(self, live: LiveCall, turns: list[TurnFrame]) -> None:
        call_id = live.call.call_id
        try:
            await live.record([turn_of(self._tenant, frame) for frame in turns])
        except JournalError as error:
            for frame in turns:
                self._refuse_turn(call_id, frame.item, error)
            return
        self.send(Ack(call_id, [frame.item for frame in turns]))

    async def _close_call(self, live: LiveCall, frame: CallClose) -> None:
        try:
            await live.close(frame.reason)
        except JournalError as error:
            self._refuse_turn(frame.call, "", error)
            return
        self._ended[frame.call] = self._held.pop(frame.call, live)
        while len(self._ended) > KEEP_ENDED:
            self._ended.popitem(last=False)
        self.send(Ack(frame.call, [], closed=True))

    def _refuse_turn(self, call_id: str, item: str, error: JournalError) -> None:
        its_own_fault = isinstance(error, CallError)
        code = error.code if isinstance(error, CallError) else "journal_full"
        self._emit(telemetry.turn_refused, call=call_id, code=code, error=error.message)
        self.send(
            ErrorFrame(
                code,
                error.message,
                field="text" if code == "bad_value" else "",
                remedy=error.hint if its_own_fault else "keep the turn and send it again",
                call=call_id,
                item=item,
                retryable=not its_own_fault,
            )
        )

    async def _write(self) -> None:
        while True:
            if not self._out and not self._memory:
                self._to_send = anyio.Event()
                await self._to_send.wait()
            try:
                with anyio.fail_after(SEND_S):
                    await self._send_waiting()
            except (WebSocketDisconnect, RuntimeError, OSError, TimeoutError):
                self._scope.cancel()
                return

    async def _send_waiting(self) -> None:
        while self._out or self._memory:
            frame = self._out.popleft() if self._out else self._memory.popitem(last=False)[1]
            await self._socket.send_text(frames.encode(frame))
