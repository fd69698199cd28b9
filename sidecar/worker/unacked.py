"""What the worker has not yet handed over to the sidecar, for one call. Pure.

Turns are held here from the moment they are recorded until their ack, in the order of `seq`. The
link says for each whether memory has room: turns for which it has none wait in the overflow until
they are on disk, then leave memory, and are read back when the older ones are acked. Order holds
throughout: turns in memory are older than turns that are only on disk, and those are older than
the overflow.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

import msgspec

from sidecar.model import Channel, Utterance
from sidecar.wire.bounds import (
    MAX_HINT_CHARS,
    MAX_TURN_CHARS,
    bounded_call_id,
    bounded_item_id,
    sendable,
    turn_bytes,
)
from sidecar.wire.frames import (
    MAX_METRICS,
    CallClose,
    CallOpen,
    FromWorker,
    Hints,
    SpeechStarted,
    SpoolFrame,
    TurnFrame,
)

NOBODY: Final = Hints()


@dataclass(slots=True)
class _UnackedTurn:
    """A turn that was not acked.

    Attributes:
        frame: As it goes over the link.
        since_s: Monotonic time at which it was recorded.
        on_disk: It is in the spool file.
    """

    frame: TurnFrame
    since_s: float
    on_disk: bool = False


class Unacked:
    """The unacked part of one call.

    Args:
        call_id: The id of the call.
        channel: Where it comes from.
        opened_at_s: Unix time.
        hints: Who is on the line, or None while that is not known: nothing is sent until then.
        traceparent: The span of the call, or empty.
        room: Names what other calls may hear as well, or empty.
        meanwhile: What is known of the caller until `hints` are: the call is spooled with it, and
            is sent with it if it ends before. Its consent "no" holds for the whole call.
    """

    def __init__(
        self,
        call_id: str,
        channel: Channel,
        *,
        opened_at_s: float,
        hints: Hints | None,
        traceparent: str = "",
        room: str = "",
        meanwhile: Hints = NOBODY,
    ) -> None:
        self.call_id = bounded_call_id(call_id)
        self._channel: Channel = channel
        self._opened_at_s = max(0.0, opened_at_s)
        self._hints = hints
        self._traceparent = traceparent
        self._room = bounded_call_id(room) if room else ""
        self._meanwhile = meanwhile
        self._close: CallClose | None = None
        self._close_since_s = 0.0
        self._close_on_disk = False
        self._close_acked = False
        self._opening_on_disk: CallOpen | None = None
        self._seq = 0
        self._items: set[str] = set()
        self._turns: dict[str, _UnackedTurn] = {}
        self._overflow: list[_UnackedTurn] = []
        self._disk_only = 0
        self._last_added_seq = 0
        self._bytes = 0
        # What is still to be sent on this connection.
        self._open_due = True
        self._close_due = True
        self._speech_due = False
        self._speech_traceparent = ""
        self._unsent: deque[TurnFrame] = deque()
        """Always the last part of `_turns`: a turn is sent again only with all that follow it."""
        self._paused_until_s = 0.0

    # What happens in the call

    @property
    def identified(self) -> bool:
        """Whether it is known who is on the line."""
        return self._hints is not None

    def identify(self, hints: Hints) -> None:
        """Say who is on the line; only the first answer counts: a call belongs to one caller.

        A consent "no" drops what was said before. A spool file that holds it is due to get this
        answer, and to be deleted.
        """
        if self._hints is not None:
            return
        if self.refused:
            hints = msgspec.structs.replace(hints, consent="no")
        self._hints = hints
        if self.refused:
            self._turns.clear()
            self._overflow.clear()
            self._disk_only = 0
            self._bytes = 0

    @property
    def refused(self) -> bool:
        """Whether the caller, as far as is known, did not agree that the call is kept."""
        return (self._hints or self._meanwhile).consent == "no"

    def record(self, said: Utterance, *, at_s: float, now_s: float, room: bool) -> list[TurnFrame]:
        """Take one utterance; return its frames, none when it is empty or known already.

        Returns none either if the caller did not agree that the call is kept: then no word of it
        leaves this process.

        Args:
            said: The utterance. Text that is too long for one frame becomes several turns; metrics
                that are not finite, or beyond `MAX_METRICS`, are left out.
            at_s: Unix time by the sidecar's clock, in place of the utterance's own.
            now_s: Monotonic time.
            room: Whether memory has room for it; if not, it leaves memory once it is on disk.
        """
        item = bounded_item_id(said.item_id)
        clean = sendable(said.text)
        if self.refused or not clean.strip() or item in self._items:
            return []
        self._items.add(item)
        finite = {k: float(v) for k, v in said.metrics.items() if math.isfinite(v)}
        finite = dict(islice(finite.items(), MAX_METRICS))
        frames: list[TurnFrame] = []
        for part, start in enumerate(range(0, len(clean), MAX_TURN_CHARS), start=1):
            self._seq += 1
            frame = TurnFrame(
                call=self.call_id,
                item=item if part == 1 else f"{item}#{part}",
                seq=self._seq,
                speaker=said.speaker,
                text=clean[start : start + MAX_TURN_CHARS],
                at_s=max(0.0, at_s),
                interrupted=said.interrupted,
                metrics=finite,
                traceparent=said.traceparent,
            )
            frames.append(frame)
            turn = _UnackedTurn(frame, now_s)
            self._bytes += turn_bytes(frame.text)
            if room and not self._disk_only and not self._overflow:
                self._add(turn)
            else:
                self._overflow.append(turn)
        self._name_the_ended()
        return frames

    def drop_overflow(self) -> int:
        """Drop the turns that fit neither into memory nor on disk; return how many there were."""
        dropped = len(self._overflow)
        self._bytes -= sum(turn_bytes(turn.frame.text) for turn in self._overflow)
        self._overflow.clear()
        return dropped

    def speech_started(self, *, traceparent: str = "") -> None:
        """The caller began to speak: send that once, and not again after a reconnect."""
        self._speech_due = True
        self._speech_traceparent = traceparent

    def close(self, *, at_s: float, reason: str, now_s: float) -> None:
        """End the call. Only the first close counts."""
        if self._close is None:
            self._close = CallClose(
                call=self.call_id, at_s=max(0.0, at_s), reason=sendable(reason)[:MAX_HINT_CHARS]
            )
            self._close_since_s = now_s
            self._close_due = True
            self._name_the_ended()

    def _name_the_ended(self) -> None:
        """Identify a call that ended unidentified by what is known, so that its turns go out."""
        if self._close is not None and self._hints is None and self.count:
            self.identify(self._meanwhile)

    def put_forward(self, by_s: float) -> None:
        """Move the times of what is in memory to another clock; copies on disk keep theirs."""
        self._opened_at_s = max(0.0, self._opened_at_s + by_s)
        for turn in (*self._turns.values(), *self._overflow):
            turn.frame = _put_forward(turn.frame, by_s)
        unsent = [self._turns.get(frame.item) for frame in self._unsent]
        self._unsent = deque(turn.frame for turn in unsent if turn)
        if self._close is not None:
            self._close = _put_forward(self._close, by_s)

    # What is not acked

    @property
    def closed(self) -> bool:
        """Whether the call has ended."""
        return self._close is not None

    @property
    def count(self) -> int:
        """Turns without an ack, wherever they are."""
        return len(self._turns) + self._disk_only + len(self._overflow)

    @property
    def in_memory(self) -> int:
        """Turns without an ack that are in memory."""
        return len(self._turns) + len(self._overflow)

    @property
    def overflowing(self) -> int:
        """Turns in memory that leave it as soon as they are on disk."""
        return len(self._overflow)

    @property
    def all_acked(self) -> bool:
        """Whether every turn, and the end of the call if it came, is acked."""
        return not self.count and (self._close is None or self._close_acked)

    @property
    def bytes_in_memory(self) -> int:
        """Bytes that the turns in memory take."""
        return self._bytes

    # The connection

    def rewind(self) -> None:
        """A new connection knows nothing: everything unacked is due again."""
        self._open_due = True
        self._close_due = True
        self._speech_due = False
        self._unsent = deque(turn.frame for turn in self._turns.values())
        self._paused_until_s = 0.0

    def next_frame(self, *, now_s: float) -> FromWorker | None:
        """Return the frame to send next, and count it as sent; None when nothing is due now."""
        over = self._close is not None and self.all_acked
        if self._hints is None or over or now_s < self._paused_until_s:
            return None
        if self._open_due:
            self._open_due = False
            if self._close_acked:  # opening it again undoes the close
                self._close_acked, self._close_since_s = False, now_s
            return self.opening()
        if self._speech_due:
            self._speech_due = False
            return SpeechStarted(call=self.call_id, traceparent=self._speech_traceparent)
        while self._unsent:
            frame = self._unsent.popleft()
            if frame.item in self._turns:
                return frame
        if (
            self._close is not None
            and self._close_due
            and not self._close_acked
            and not self._disk_only
            and not self._overflow
        ):
            self._close_due = False
            return self._close
        return None

    def paused_for_s(self, *, now_s: float) -> float:
        """Return the seconds until a frame that was refused for now is due again."""
        return max(0.0, self._paused_until_s - now_s)

    def acked(self, items: Iterable[str], *, closed: bool) -> int:
        """Forget what is on the sidecar's disk; return how many turns that were."""
        done = sum(self._forget(item) for item in items)
        self._close_acked = self._close_acked or (closed and self._close is not None)
        return done

    def refused_for_now(self, item: str, *, until_s: float, reopen: bool) -> None:
        """The sidecar refused a frame: everything from `item` on is due again after a while.

        Several frames of one call may be refused, in any order: the earliest is sent first.

        Args:
            item: The turn that was refused; empty for another frame of the call.
            until_s: Monotonic time before which nothing of this call is sent.
            reopen: `call.open` is sent again first.
        """
        self._paused_until_s = max(self._paused_until_s, until_s)
        self._open_due = self._open_due or reopen
        self._close_due = True
        first = self._turns.get(item)
        if first is None and reopen:
            first = next(iter(self._turns.values()), None)
        if first and not (self._unsent and self._unsent[0].seq <= first.frame.seq):
            self._unsent = deque(
                turn.frame for turn in self._turns.values() if turn.frame.seq >= first.frame.seq
            )

    def refused_for_good(self, item: str) -> bool:
        """Forget a turn that the sidecar will never take; return whether it was in memory."""
        return self._forget(item)

    # The spool file

    def due_on_disk_s(self, *, after_s: float) -> float | None:
        """Return the monotonic time by which something has to be on disk; None when nothing has.

        Args:
            after_s: A frame waits this many seconds for its ack first.
        """
        if self._overflow or self._opening_on_disk not in {None, self.opening()}:
            return 0.0
        oldest = next((k for k in self._turns.values() if not k.on_disk), None)
        since = [oldest.since_s] if oldest else []
        if self._unspooled_close():
            since.append(self._close_since_s)
        return min(since) + after_s if since else None

    @property
    def durable(self) -> bool:
        """Whether everything of the call that has to be on disk is there."""
        return self.due_on_disk_s(after_s=0.0) is None

    def unspooled(self) -> list[SpoolFrame]:
        """Return the frames that are only in memory, in order; empty when there are none.

        `call.open` is the first of them if the file does not yet say what is known of the call.
        """
        frames: list[SpoolFrame] = [
            k.frame for k in (*self._turns.values(), *self._overflow) if not k.on_disk
        ]
        if close := self._unspooled_close():
            frames.append(close)
        opening = self.opening()
        if opening != self._opening_on_disk and (frames or self._opening_on_disk):
            frames.insert(0, opening)
        return frames

    def _unspooled_close(self) -> CallClose | None:
        """Return the close if it is unacked and only in memory, and the caller is known."""
        due = self._hints is not None and not self._close_acked
        return self._close if due and not self._close_on_disk else None

    def opening(self) -> CallOpen:
        """Return the call's first frame, with what is known of the call by now."""
        return CallOpen(
            call=self.call_id,
            channel=self._channel,
            hints=self._hints or self._meanwhile,
            opened_at_s=self._opened_at_s,
            traceparent=self._traceparent,
            room=self._room,
        )

    def spooled(self, frames: Sequence[SpoolFrame]) -> None:
        """Note that these frames are on disk; those in the overflow leave memory."""
        written = {frame.item for frame in frames if isinstance(frame, TurnFrame)}
        for item in written:
            if turn := self._turns.get(item):
                turn.on_disk = True
        leaving = [k for k in self._overflow if k.frame.item in written]
        self._overflow = [k for k in self._overflow if k.frame.item not in written]
        self._disk_only += len(leaving)
        self._bytes -= sum(turn_bytes(k.frame.text) for k in leaving)
        for frame in frames:
            if isinstance(frame, CallOpen):
                self._opening_on_disk = frame
            elif isinstance(frame, CallClose):
                self._close_on_disk = True

    def unspool(self) -> None:
        """The spool file is deleted or given up: what is in memory is stored nowhere else."""
        for turn in self._turns.values():
            turn.on_disk = False
        self._close_on_disk = False
        self._opening_on_disk = None

    @property
    def disk_only(self) -> int:
        """Turns that are on disk and not in memory."""
        return self._disk_only

    def lose_disk_only(self) -> int:
        """The file no longer holds the turns that left memory; return how many those were."""
        lost, self._disk_only = self._disk_only, 0
        return lost

    @property
    def read_back_after_seq(self) -> int:
        """Turns that are only on disk have a higher `seq` than this."""
        return self._last_added_seq

    def read_back(self, frames: Sequence[TurnFrame], *, now_s: float) -> None:
        """Take turns back from disk, in order, to send next; none if the call may not be kept."""
        if self.refused:
            return
        for frame in frames:
            self._bytes += turn_bytes(frame.text)
            self._add(_UnackedTurn(frame, now_s, on_disk=True))
        self._disk_only = max(0, self._disk_only - len(frames))

    def _add(self, turn: _UnackedTurn) -> None:
        self._turns[turn.frame.item] = turn
        self._unsent.append(turn.frame)
        self._last_added_seq = turn.frame.seq

    def _forget(self, item: str) -> bool:
        turn = self._turns.pop(item, None)
        if turn is None:
            return False
        self._bytes -= turn_bytes(turn.frame.text)
        return True


_Dated = TypeVar("_Dated", TurnFrame, CallClose)


def _put_forward(frame: _Dated, by_s: float) -> _Dated:
    return msgspec.structs.replace(frame, at_s=max(0.0, frame.at_s + by_s))
