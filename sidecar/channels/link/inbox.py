"""The frames of one call of a worker's connection, processed in the order in which they came.

Theory of operation: turns that wait together are made durable in one append. When an append fails
and its turns should be sent again, the first of them is awaited: until it comes again, all later
turns of the call are refused as well, whether the worker sent them before or after it got the
error. So no turn is stored before one that was said earlier. A repeat of a turn that was acked is
never awaited, because the worker may have forgotten it by now.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeAlias

import anyio

from sidecar import telemetry
from sidecar.calls import Calls, LiveCall, MemoryView
from sidecar.errors import CallError, JournalError
from sidecar.telemetry import Emit
from sidecar.tracing import traceparent_or_empty
from sidecar.wire.frames import (
    Ack,
    CallClose,
    CallOpen,
    ErrorFrame,
    FromSidecar,
    Guidance,
    HangUp,
    Memory,
    Say,
    SpeechStarted,
    TurnFrame,
    hints_of,
    turn_of,
)

CallFrame: TypeAlias = CallOpen | SpeechStarted | TurnFrame | CallClose
Send: TypeAlias = Callable[[FromSidecar], None]

MOST_AT_ONCE: Final = 500
"""Most turns in one append, so that their ack fits into a frame however long their ids are."""
UNKNOWN_CALL: Final = "this connection has not opened the call"
OPEN_FIRST: Final = "send call.open first"


class CallInbox:
    """One call of a connection. It is used by one task at a time.

    Args:
        call_id: The call, as the worker names it.
        tenant: Of the connection's credential.
        owner: The worker.
        calls: Where calls live.
        send: Queues a frame to the worker; never waits.
        emit: Where events go.

    Attributes:
        live: The call, once it is open.
        ended: It was closed, and not opened again since; it still takes late turns.
        at_work: A task is processing its frames.
    """

    def __init__(
        self, call_id: str, *, tenant: str, owner: str, calls: Calls, send: Send, emit: Emit
    ) -> None:
        self.call_id = call_id
        self.live: LiveCall | None = None
        self.ended = False
        self.at_work = False
        self._tenant = tenant
        self._owner = owner
        self._calls = calls
        self._send = send
        self._emit = emit
        self._waiting: deque[tuple[CallFrame, int]] = deque()
        self._awaited: tuple[str, JournalError] | None = None
        self._acked_seq = 0

    def put(self, frame: CallFrame, size_bytes: int) -> None:
        """Queue a frame that takes `size_bytes` (above 0) of memory; never waits."""
        self._waiting.append((frame, size_bytes))

    async def carry_out(self) -> int:
        """Process the next frame, or the next turns; return their bytes, 0 if there are none."""
        if not self._waiting:
            return 0
        frame, size_bytes = self._waiting.popleft()
        match frame:
            case CallOpen():
                await self._open(frame)
            case SpeechStarted():
                self.speech_started(frame)
            case TurnFrame():
                behind = list(islice(self._turns_behind(), MOST_AT_ONCE - 1))
                await self._record([frame, *(turn for turn, _ in behind)])
                size_bytes += sum(size for _, size in behind)
            case CallClose():
                await self._close(frame)
        return size_bytes

    def _turns_behind(self) -> Iterator[tuple[TurnFrame, int]]:
        while self._waiting and isinstance(frame := self._waiting[0][0], TurnFrame):
            yield frame, self._waiting.popleft()[1]

    def speech_started(self, frame: SpeechStarted) -> None:
        """The caller began to speak; never waits."""
        if self.live is None:
            self._refuse(_unknown_call())
        else:
            self.live.speech_started(traceparent=traceparent_or_empty(frame.traceparent))

    async def _open(self, frame: CallOpen) -> None:
        try:
            # Shielded: if the worker left meanwhile, a stored call would remain that nobody closes.
            with anyio.CancelScope(shield=True):
                self.live = await self._calls.open(
                    self._tenant,
                    self.call_id,
                    channel=frame.channel,
                    hints=hints_of(frame),
                    opened_at_s=frame.opened_at_s,
                    owner=self._owner,
                    listener=_CallListener(self.call_id, self._send),
                    traceparent=traceparent_or_empty(frame.traceparent),
                    room=frame.room,
                )
                for piece in self.live.guidance.pieces:  # an earlier connection may have lost some
                    self._send(Guidance(self.call_id, piece))
            self.ended = False
        except CallError as error:
            self._refuse(error)

    async def _close(self, frame: CallClose) -> None:
        if self.live is None or self._awaited is not None:
            self._refuse(self._awaited[1] if self._awaited else _unknown_call())
            return
        try:
            await self.live.close(frame.reason, at_s=frame.at_s)
        except JournalError as error:
            self._refuse(error)
            return
        self.ended = True
        self._send(Ack(self.call_id, [], closed=True))

    # Turns

    async def _record(self, turns: Sequence[TurnFrame]) -> None:
        turns = self._in_turn(turns)
        if not turns:
            return
        if self.live is None:
            self._refuse_turns(turns, _unknown_call())
            return
        try:
            await self.live.record([turn_of(self._tenant, frame) for frame in turns])
        except JournalError as error:
            if _for_good(error) and len(turns) > 1:  # find the one that is at fault
                for frame in turns:
                    await self._record([frame])
                return
            self._refuse_turns(turns, error)
            return
        self._acked_seq = max(self._acked_seq, *(frame.seq for frame in turns))
        self._send(Ack(self.call_id, [frame.item for frame in turns]))

    def _in_turn(self, turns: Sequence[TurnFrame]) -> Sequence[TurnFrame]:
        """Refuse the turns that come before the awaited one; return the rest."""
        if self._awaited is None:
            return turns
        item, error = self._awaited
        place = next((n for n, frame in enumerate(turns) if frame.item == item), len(turns))
        for frame in turns[:place]:
            self._refuse(error, frame.item)
        if place < len(turns):
            self._awaited = None
        return turns[place:]

    def _refuse_turns(self, turns: Sequence[TurnFrame], error: JournalError) -> None:
        for frame in turns:
            self._refuse(error, frame.item)
        first = next((frame for frame in turns if frame.seq > self._acked_seq), None)
        if first is not None and not _for_good(error):
            self._awaited = (first.item, error)

    def _refuse(self, error: JournalError, item: str = "") -> None:
        its_own_fault = isinstance(error, CallError)
        code = error.code if isinstance(error, CallError) else "journal_full"
        field = {"bad_value": "text", "unknown_call": "call", "call_claimed": "call"}.get(code, "")
        self._emit(telemetry.turn_refused, call=self.call_id, code=code, error=error.message)
        self._send(
            ErrorFrame(
                code,
                error.message,
                field=field,
                remedy=error.hint if its_own_fault else "keep the turn and send it again",
                call=self.call_id,
                item=item,
                retryable=not its_own_fault,
            )
        )


class _CallListener:
    """Sends a call's memory, guidance and commands to the connection that holds the call."""

    def __init__(self, call_id: str, send: Send) -> None:
        self._call_id = call_id
        self._send = send

    def on_memory(self, view: MemoryView, *, newest: bool) -> None:
        self._send(
            Memory(
                self._call_id,
                view.text,
                view.version,
                view.read_at_s,
                view.served,
                newest,
                view.continues,
            )
        )

    def on_guidance(self, text: str) -> None:
        self._send(Guidance(self._call_id, text))

    def on_say(self, text: str) -> None:
        self._send(Say(self._call_id, text))

    def on_hang_up(self) -> None:
        self._send(HangUp(self._call_id))


def _unknown_call() -> CallError:
    return CallError("unknown_call", UNKNOWN_CALL, hint=OPEN_FIRST)


def _for_good(error: JournalError) -> bool:
    """Whether the turn itself is at fault, so that the worker must not send it again."""
    return isinstance(error, CallError) and error.code == "bad_value"
