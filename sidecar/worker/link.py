"""The worker's end of the link: it reports calls to the sidecar and holds memory for prompts.

Nothing here makes a voice wait. Recording is a plain function call; memory is an attribute that
frames from the sidecar replace; both keep working while the link is down. One task group
(`Link.run`) holds the connection and the spool; docs/link-protocol.md is the contract.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from sidecar import telemetry
from sidecar.breaker import backoff_s
from sidecar.errors import LinkError
from sidecar.model import CHANNEL_RULE, Channel, Utterance, is_channel
from sidecar.prompt_wait import Waits
from sidecar.telemetry import Emit
from sidecar.wire.bounds import bounded_hints
from sidecar.wire.frames import (
    CLOSE_DENIED,
    CLOSE_DRAINING,
    MAX_FRAME_BYTES,
    OPEN_AGAIN,
    SUBPROTOCOL,
    Ack,
    Drain,
    ErrorFrame,
    FromSidecar,
    Guidance,
    HangUp,
    Hello,
    Hints,
    Memory,
    Say,
    Welcome,
    decode_from_sidecar,
    encode,
)
from sidecar.worker.call import LinkedCall
from sidecar.worker.sidecar_clock import SidecarClock
from sidecar.worker.spooler import Spooler
from sidecar.worker.unacked import NOBODY, Unacked

CONNECT_S: Final = 5.0  # for the handshake and the welcome, each
SEND_S: Final = 10.0  # a frame that the socket does not take in this time means a lost link
PING_S: Final = 5.0  # a half-open connection is noticed within twice this time
RETRY_BASE_S: Final = 0.1
RETRY_CAP_S: Final = 5.0
REFUSED_PAUSE_S: Final = 1.0  # before a frame that was refused for now is sent again
STEADY_S: Final = 5.0  # after a link that lasted less than this, the next wait is longer
CLAIMED_PAUSE_S: Final = 5.0  # another live worker has the call: its connection has to end first
RETRY_AFTER_CAP_S: Final = 60.0


class Link:
    """A worker process's connection to its sidecar.

    Args:
        url: `ws://HOST:PORT/link`, or `wss://`.
        token: Bearer token, None for none, or a function that returns the token. The function is
            called at each connect, in a thread, and raises OSError or ValueError when it can't.
        worker: Names this process; new with each start.
        spool_dir: Directory for turns that can't be delivered.
        emit: Events.
        clock: Unix time.
        dice: In [0, 1), for the jitter.
        max_unacked: Turns in memory; more go to disk.
        max_unacked_bytes: Bytes of turns in memory; more go to disk.
        version: What this worker runs, for people to read.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str] | None = None,
        *,
        worker: str,
        spool_dir: Path,
        emit: Emit,
        clock: Callable[[], float],
        dice: Callable[[], float],
        max_unacked: int = 10_000,
        max_unacked_bytes: int = 32 << 20,
        version: str = "",
    ) -> None:
        self._clock = clock
        self._sidecar_clock = SidecarClock()
        self.waits = Waits()
        self._url = url
        self._token = token
        self._token_failure_reported = False
        self._hello = Hello(worker=worker, version=version)
        self._emit = emit
        self._dice = dice
        self._max_unacked = max_unacked
        self._max_unacked_bytes = max_unacked_bytes
        self._calls: dict[str, LinkedCall] = {}
        self._connected = False
        self._away = False
        self._retry_after_s: float | None = None
        self._lost_at_s: float | None = None
        self._wake_send = anyio.Event()
        self._spooler = Spooler(
            self._calls,
            spool_dir,
            emit=emit,
            max_in_memory=max_unacked,
            max_bytes_in_memory=max_unacked_bytes,
            away=lambda: self._away,
            moved=self.wake,
            reclaimed=self._retire,
        )

    @property
    def connected(self) -> bool:
        """Whether the sidecar has welcomed this connection."""
        return self._connected

    @property
    def away(self) -> bool:
        """Whether the sidecar is known to be out of reach: no ack comes until it is back."""
        return self._away

    def clock(self) -> float:
        """Unix time by the sidecar's clock, or by the worker's own until that is known."""
        return self._clock() + self._ahead_s()

    def _ahead_s(self) -> float:
        """Return how far the sidecar's clock is ahead of the worker's own."""
        return self._sidecar_clock.ahead_s(unix_s=self._clock(), now_s=anyio.current_time())

    @property
    def unacked(self) -> int:
        """Turns of all calls without an ack."""
        return sum(call.unacked.count for call in self._calls.values())

    def open_call(
        self,
        call_id: str,
        channel: Channel,
        hints: Hints | None,
        *,
        opened_at_s: float,
        traceparent: str = "",
        room: str = "",
        meanwhile: Hints = NOBODY,
    ) -> LinkedCall:
        """Start a call. Never waits; a call that is live already returns the same object.

        Args:
            call_id: The channel's own id, unique among its calls.
            channel: Where it comes from, as an id (`sidecar.model.is_channel`).
            hints: Who is on the line; None when that is known later (`identify`).
            opened_at_s: Unix time, by the worker's own clock.
            traceparent: The span of the call (W3C Trace Context), or empty.
            room: Names what calls of other workers may hear as well (a LiveKit room's `sid`): of
                several calls of one room and caller, one is stored. Empty: they hear nothing of it.
            meanwhile: What is known of the caller until `hints` are; the call is sent with it if
                it ends before that.

        Raises:
            LinkError: `channel` is not a valid id of a channel (`bad_value`).
        """
        if not is_channel(channel):
            raise LinkError(
                "bad_value", f"a channel is {CHANNEL_RULE}", field="channel", hint="name it so"
            )
        unacked = Unacked(
            call_id,
            channel,
            opened_at_s=opened_at_s + self._ahead_s(),
            hints=bounded_hints(hints) if hints else None,
            traceparent=traceparent,
            room=room,
            meanwhile=bounded_hints(meanwhile),
        )
        call = LinkedCall(self, unacked)
        call = self._calls.setdefault(unacked.call_id, call)
        self.wake()
        return call

    def take(self, call: LinkedCall, said: Utterance) -> None:
        """Queue one utterance of a call: in memory while there is room, else for the disk.

        A call that was forgotten, since it had ended and was acked, is held again.
        """
        unacked = self._calls.get(call.call_id, call).unacked
        in_memory = sum(call.unacked.in_memory for call in self._calls.values())
        bytes_in_memory = sum(call.unacked.bytes_in_memory for call in self._calls.values())
        frames = unacked.record(
            said,
            at_s=(self._clock() if said.at_s is None else said.at_s) + self._ahead_s(),
            now_s=anyio.current_time(),
            room=in_memory < self._max_unacked and bytes_in_memory < self._max_unacked_bytes,
        )
        if frames:
            self._calls.setdefault(call.call_id, call)
        for frame in frames:
            self._emit(
                telemetry.turn_recorded,
                call=unacked.call_id,
                speaker=said.speaker,
                chars=len(frame.text),
                pii_text=frame.text,
            )
        # The disk is full or far too slow: what waits for it fills the memory limit once more.
        over = (
            unacked.overflowing > self._max_unacked or bytes_in_memory > 2 * self._max_unacked_bytes
        )
        if over and (dropped := unacked.drop_overflow()):
            self._emit(
                telemetry.turns_dropped, call=unacked.call_id, turns=dropped, why="no room on disk"
            )
        self.wake()

    def wake(self) -> None:
        """Wake the tasks that send frames and write to disk."""
        self._wake_send.set()
        self._spooler.wake()

    async def run(self) -> None:
        """Keep the link up until cancelled; then leave everything unacked in the spool."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._stay_connected)
                tasks.start_soon(self._spooler.run)
        finally:
            await self._spooler.leave()

    # The connection

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            self._retry_after_s = None
            started_s = anyio.current_time()
            why = await self._connection()
            steady = anyio.current_time() - started_s >= STEADY_S
            failures = 1 if steady else failures + 1
            wait_s = backoff_s(failures, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, dice=self._dice())
            if self._retry_after_s is not None:
                wait_s = min(self._retry_after_s, RETRY_AFTER_CAP_S)
            if self._lost_at_s is None:
                self._lost_at_s = anyio.current_time()
                self._emit(telemetry.link_lost, error=why, retry_in_s=wait_s, unacked=self.unacked)
            await anyio.sleep(wait_s)

    async def _connection(self) -> str:
        """Connect and serve until the link is lost; return why it ended."""
        token = await self._read_token()
        try:
            with anyio.fail_after(CONNECT_S):
                socket = await connect(
                    self._url,
                    subprotocols=[Subprotocol(SUBPROTOCOL)],
                    additional_headers={"Authorization": f"Bearer {token}"} if token else None,
                    compression=None,
                    proxy=None,
                    max_size=MAX_FRAME_BYTES,
                    open_timeout=None,
                    ping_interval=PING_S,
                    ping_timeout=PING_S,
                    close_timeout=1,
                )
        except (OSError, InvalidHandshake, InvalidURI) as error:
            self._lost()
            return _reason(error)
        try:
            if await self._welcomed(socket):
                await self._serve(socket)
        finally:
            self._lost()
            with anyio.move_on_after(2, shield=True):
                await socket.close()
        return f"closed {socket.close_code}"

    def _lost(self) -> None:
        """Mark the sidecar as away: no ack comes now, so what is unacked goes to disk at once."""
        self._connected = False
        self._away = True
        for call in self._calls.values():
            call.link_lost()
        self._spooler.wake()

    async def _read_token(self) -> str | None:
        """Return the current token; a failure to read it is reported once per outage."""
        if self._token is None or isinstance(self._token, str):
            return self._token
        try:
            token = await anyio.to_thread.run_sync(self._token)
        except (OSError, ValueError) as error:
            if not self._token_failure_reported:
                self._token_failure_reported = True
                self._emit(
                    telemetry.link_token_unread,
                    file=str(getattr(error, "filename", None) or ""),
                    error=getattr(error, "strerror", None) or str(error),
                    hint="start the sidecar as this user and on the same SIDECAR_DATA_DIR, or set"
                    " SIDECAR_LINK_TOKEN at both ends",
                )
            return None
        self._token_failure_reported = False
        return token

    async def _welcomed(self, socket: ClientConnection) -> bool:
        try:
            with anyio.fail_after(CONNECT_S):
                asked_s = anyio.current_time()
                await socket.send(encode(self._hello))
                while True:
                    frame = self._read(await socket.recv())
                    if isinstance(frame, Welcome):
                        break
        except (ConnectionClosed, TimeoutError):
            return False
        self.waits = Waits(frame.memory_wait_s, frame.cold_start_s)
        if frame.now_s:
            self._take_clock(frame.now_s, asked_s=asked_s)
        return True

    def _take_clock(self, now_s: float, *, asked_s: float) -> None:
        """Take the sidecar's clock, and correct the times of what was recorded before the first."""
        known = self._sidecar_clock.known
        self._sidecar_clock.set(now_s, asked_s=asked_s, answered_s=anyio.current_time())
        if not known and (ahead_s := self._ahead_s()):
            for call in self._calls.values():
                call.unacked.put_forward(ahead_s)

    async def _serve(self, socket: ClientConnection) -> None:
        now_s = anyio.current_time()
        self._connected = True
        self._away = False
        for call in self._calls.values():
            call.unacked.rewind()
        if self._lost_at_s is not None:
            self._emit(
                telemetry.link_restored, unacked=self.unacked, down_s=now_s - self._lost_at_s
            )
            self._lost_at_s = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send, socket)
            await self._receive(socket)
            tasks.cancel_scope.cancel()

    async def _send(self, socket: ClientConnection) -> None:
        """Send what is due, call by call and in order, until the link is lost."""
        try:
            while True:
                self._wake_send = anyio.Event()
                due_in_s = await self._send_due(socket)
                with anyio.move_on_after(due_in_s):
                    await self._wake_send.wait()
        except ConnectionClosed:
            return
        except TimeoutError:
            # The peer reads no more; without this the receiver would wait for the ping to fail.
            socket.transport.abort()

    async def _send_due(self, socket: ClientConnection) -> float | None:
        """Send all due frames; return the seconds until one of a paused call is due, or None."""
        due_in_s: float | None = None
        for call in list(self._calls.values()):
            while frame := call.unacked.next_frame(now_s=anyio.current_time()):
                with anyio.fail_after(SEND_S):
                    await socket.send(encode(frame))
            if wait_s := call.unacked.paused_for_s(now_s=anyio.current_time()):
                due_in_s = min(due_in_s or wait_s, wait_s)
        return due_in_s

    async def _receive(self, socket: ClientConnection) -> None:
        try:
            async for raw in socket:
                frame = self._read(raw)
                if frame is not None:
                    self._take_frame(frame)
        except ConnectionClosed:
            pass
        closed = socket.close_code
        if closed == CLOSE_DRAINING and self._retry_after_s is None:
            self._retry_after_s = _seconds(socket.close_reason)
        elif closed == CLOSE_DENIED:
            self._retry_after_s = RETRY_CAP_S

    def _read(self, raw: str | bytes) -> FromSidecar | None:
        """Decode a frame; one that breaks the protocol is counted and skipped."""
        try:
            return decode_from_sidecar(raw)
        except LinkError as error:
            self._emit(
                telemetry.frame_refused,
                worker=self._hello.worker,
                code=error.code,
                field=error.field,
            )
            return None

    def _take_frame(self, frame: FromSidecar) -> None:
        if isinstance(frame, Welcome):
            self.waits = Waits(frame.memory_wait_s, frame.cold_start_s)
            return
        if isinstance(frame, Drain):
            self._retry_after_s = frame.retry_after_s
            return
        call = self._calls.get(frame.call)
        match frame:
            case Memory() if call:
                call.take_memory(frame)
            case Ack() if call:
                call.unacked.acked(frame.items, closed=frame.closed)
                self._spooler.wake()
                call.changed()
                self._retire(call)
            case Guidance() if call and call.guidance:
                self._do("guidance", call.guidance, frame.text)
            case Say() if call and call.say:
                self._do("say", call.say, frame.text)
            case HangUp() if call and call.hang_up:
                self._do("hang_up", call.hang_up)
            case ErrorFrame():
                self._take_error(frame, call)
            case _:
                pass

    def _do(self, what: str, command: Callable[..., None], *text: str) -> None:
        try:
            command(*text)
        except Exception as error:  # noqa: BLE001 - the channel's code must not end the link
            self._emit(telemetry.part_failed, part=what, error=type(error).__name__, hint="")

    def _take_error(self, error: ErrorFrame, call: LinkedCall | None) -> None:
        self._emit(
            telemetry.frame_refused,
            worker=self._hello.worker,
            code=error.code,
            field=error.field,
        )
        pause_s = CLAIMED_PAUSE_S if error.code == "call_claimed" else REFUSED_PAUSE_S
        until_s = anyio.current_time() + pause_s
        if call is None:
            if error.retryable:
                for each in self._calls.values():
                    each.unacked.refused_for_now("", until_s=until_s, reopen=False)
            return
        if error.code in OPEN_AGAIN:
            call.unacked.refused_for_now(error.item, until_s=until_s, reopen=True)
        elif error.retryable:
            call.unacked.refused_for_now(error.item, until_s=until_s, reopen=False)
        elif call.unacked.refused_for_good(error.item):
            self._emit(telemetry.turns_dropped, call=call.call_id, turns=1, why=error.code)
            call.changed()
        self._wake_send.set()

    def _retire(self, call: LinkedCall) -> None:
        """Forget a call that has ended and is acked, once its spool file is gone."""
        if call.unacked.closed and call.unacked.all_acked and call.spool is None:
            self._calls.pop(call.call_id, None)


def _reason(error: Exception) -> str:
    """Return why a connection failed, without the error's text, which may hold an address."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"{type(error).__name__} {status}" if status else type(error).__name__


def _seconds(text: str | None) -> float | None:
    """Return the seconds that the reason of a drain close names, or None."""
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None
