"""What a spool file holds, read line by line: no more of it is in memory than is asked for."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from sidecar.errors import LinkError
from sidecar.wire.frames import (
    MAX_FRAME_BYTES,
    CallClose,
    CallOpen,
    FromWorker,
    Hints,
    TurnFrame,
    decode_from_worker,
)

MAX_FILE_BYTES: Final = 64 << 20
"""No worker writes more into one file, and no larger one is read."""
_PIECE_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Spooled:
    """What a spool file holds.

    Attributes:
        opened: The call, or None when the file does not say (it was torn at once). Of several
            `call.open` the first that names a caller counts, with a consent "no" of any.
        turns: In the order of the file; one may occur twice.
        closed: The end of the call, if it came.
        damaged: How many lines are not frames, without a torn last line.
        torn: The last line was cut short: its writer died while it wrote it.
    """

    opened: CallOpen | None
    turns: tuple[TurnFrame, ...]
    closed: CallClose | None
    damaged: int
    torn: bool


def read_spooled(descriptor: int) -> Spooled:
    """Read a whole file."""
    opened: list[CallOpen] = []
    closed: CallClose | None = None
    turns: list[TurnFrame] = []
    damaged, torn = 0, False
    for line, ended in _lines(descriptor, 0):
        torn = not ended
        match _frame_in(line) if ended else None:
            case CallOpen() as frame:
                opened.append(frame)
            case TurnFrame() as frame:
                turns.append(frame)
            case CallClose() as frame:
                closed = closed or frame
            case _:
                damaged += ended
    return Spooled(_standing(opened), tuple(turns), closed, damaged, torn=torn)


def turns_after(descriptor: int, start: int, *, after_seq: int) -> Iterator[TurnFrame]:
    """Yield the turns of a file with a higher `seq` than `after_seq`, from byte `start` on."""
    for line, ended in _lines(descriptor, start):
        frame = _frame_in(line) if ended else None
        if isinstance(frame, TurnFrame) and frame.seq > after_seq:
            yield frame


def _frame_in(line: bytes) -> FromWorker | None:
    try:
        return decode_from_worker(line)
    except LinkError:
        return None


def _lines(descriptor: int, start: int) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines that are not empty, and whether each is complete: the last may be torn.

    A line longer than a frame may be is cut just above that limit, so that it is still too long.
    """
    line, at = b"", start
    while piece := os.pread(descriptor, min(_PIECE_BYTES, MAX_FILE_BYTES - at), at):
        at += len(piece)
        *ends, rest = piece.split(b"\n")
        for end in ends:
            if line or end:
                yield (line + end)[: MAX_FRAME_BYTES + 1], True
            line = b""
        line = (line + rest)[: MAX_FRAME_BYTES + 1]
    if line:
        yield line, False


def _standing(opened: Sequence[CallOpen]) -> CallOpen | None:
    """Return the opening that counts: see `Spooled`."""
    first = next((frame for frame in opened if _names_somebody(frame.hints)), None)
    if first is None:
        first = next(iter(opened), None)
    if first is not None and any(frame.hints.consent == "no" for frame in opened):
        hints = msgspec.structs.replace(first.hints, consent="no")
        return msgspec.structs.replace(first, hints=hints)
    return first


def _names_somebody(hints: Hints) -> bool:
    return bool(hints.caller or hints.phone or hints.identity)
