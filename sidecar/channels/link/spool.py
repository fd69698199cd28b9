"""The spool: turns a worker could not hand over, one file per call, on a disk both ends see.

A file holds frames as on the wire, one per line: `call.open`, turns, and `call.close` if the call
has ended. The worker that writes it holds an exclusive `flock` for as long as it lives; whoever
finds it unlocked may take it up. All functions block: call them off the loop.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from sidecar.channels.link.frames import (
    CallClose,
    CallOpen,
    Hints,
    TurnFrame,
    decode_from_worker,
    encode,
)
from sidecar.channels.link.outbox import SpoolFrame
from sidecar.errors import LinkError
from sidecar.private import make_directory

_SUFFIX = ".jsonl"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


def default_spool_dir() -> Path:
    """Where both ends look when nothing else is said: below the XDG state directory."""
    root = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(root) / "letta-sidecar" / "spool"


def spool_path(directory: Path, call: str) -> Path:
    """Return the file of a call. An id that is no plain file name is replaced by its hash."""
    name = call if _PLAIN_NAME.fullmatch(call) else hashlib.sha256(call.encode()).hexdigest()[:32]
    return directory / f"{name}{_SUFFIX}"


def damaged_files(directory: Path) -> list[Path]:
    """Return the files that were set aside."""
    return sorted(directory.glob("*.damaged")) if directory.is_dir() else []


def erase_damaged(directory: Path, *, before_s: float) -> int:
    """Delete the files set aside that were last written before; return how many. Blocking."""
    old = [path for path in damaged_files(directory) if path.stat().st_mtime < before_s]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def spool_files(directory: Path) -> list[Path]:
    """Return the spool files in a directory, sorted; none when it does not exist."""
    return sorted(directory.glob(f"*{_SUFFIX}")) if directory.is_dir() else []


@dataclass(frozen=True, slots=True)
class Spooled:
    """What a spool file holds.

    Attributes:
        opened: The call, or None when the file does not say (it was torn at once). It may be told
            several times: the first that names a caller stands, and a consent "no" of any.
        turns: In the order of the file; one may occur twice.
        closed: The end of the call, if it came.
        damaged: Lines that are no frames, a torn last line not among them.
        torn: The last line was cut short: its writer died in it.
    """

    opened: CallOpen | None
    turns: tuple[TurnFrame, ...]
    closed: CallClose | None
    damaged: int
    torn: bool


def spooled_in(path: Path) -> Spooled:
    """Return what a file holds without its lock: its writer may be adding to it.

    Raises:
        OSError: it can't be read.
    """
    return _parsed(path.read_bytes())


class SpoolFile:
    """A spool file that this process has locked. Close it, or remove it, to let go."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._own_from_bytes = os.fstat(descriptor).st_size

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    @property
    def inherited(self) -> bool:
        """Whether it held something of an earlier process when it was opened."""
        return self._own_from_bytes > 0

    @classmethod
    def create(cls, directory: Path, call: str) -> Self:
        """Open the file of a call for writing and lock it; the directory is made, mode 0700.

        Raises:
            OSError: no right, or (BlockingIOError) another process holds it.
        """
        make_directory(directory)
        path = spool_path(directory, call)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if _locked(descriptor, path):
                return cls(path, descriptor)

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Lock a file somebody left behind; None while its writer lives, or when it is gone.

        Raises:
            OSError: it can't be opened.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return cls(path, descriptor) if _locked(descriptor, path) else None
        except BlockingIOError:
            return None

    def append(self, frames: Sequence[SpoolFrame]) -> None:
        """Write frames to the end. On return they are on disk (fsynced).

        Raises:
            OSError: nothing of them was kept.
        """
        size = os.lseek(self._descriptor, 0, os.SEEK_END)
        data = "".join(f"{encode(frame)}\n" for frame in frames).encode()
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise
        if not size:
            _sync_directory(self._path.parent)

    def read(self) -> Spooled:
        """Return all that it holds."""
        return _parsed(self._bytes_from(0))

    def read_own(self) -> Spooled:
        """Return what this process has written, not what it found."""
        return _parsed(self._bytes_from(self._own_from_bytes))

    def remove(self) -> None:
        """Delete the file and let go of it."""
        self._path.unlink(missing_ok=True)
        self.close()

    def set_aside(self) -> Path:
        """Rename a damaged file so that it is not taken up again; returns its new place.

        One that was set aside before keeps its place.
        """
        places = (self._path.with_suffix(f".{n}.damaged") for n in itertools.count(2))
        aside = self._path.with_suffix(".damaged")
        while aside.exists():
            aside = next(places)
        self._path.replace(aside)
        self.close()
        return aside

    def _bytes_from(self, start: int) -> bytes:
        size = os.fstat(self._descriptor).st_size
        raw = b""
        while start + len(raw) < size and (
            piece := os.pread(self._descriptor, size - start - len(raw), start + len(raw))
        ):
            raw += piece
        return raw

    def close(self) -> None:
        """Let go of the file, which stays. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _parsed(raw: bytes) -> Spooled:
    *lines, last = raw.split(b"\n")
    opened: list[CallOpen] = []
    closed: CallClose | None = None
    turns: list[TurnFrame] = []
    damaged = 0
    for line in filter(None, lines):
        try:
            frame = decode_from_worker(line)
        except LinkError:
            damaged += 1
            continue
        match frame:
            case CallOpen():
                opened.append(frame)
            case TurnFrame():
                turns.append(frame)
            case CallClose():
                closed = closed or frame
            case _:
                damaged += 1
    return Spooled(_standing(opened), tuple(turns), closed, damaged, torn=bool(last))


def _standing(opened: Sequence[CallOpen]) -> CallOpen | None:
    """Return the opening that stands: see `Spooled`."""
    first = next((frame for frame in opened if _names_somebody(frame.hints)), None)
    if first is None:
        first = next(iter(opened), None)
    if first is not None and any(frame.hints.consent == "no" for frame in opened):
        hints = msgspec.structs.replace(first.hints, consent="no")
        return msgspec.structs.replace(first, hints=hints)
    return first


def _names_somebody(hints: Hints) -> bool:
    return bool(hints.caller or hints.phone or hints.identity)


def _locked(descriptor: int, path: Path) -> bool:
    """Lock a file; False when it was removed from its path before the lock was had.

    The descriptor is closed unless the answer is True.

    Raises:
        BlockingIOError: another process holds it.
    """
    in_place = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            in_place = os.path.samestat(os.fstat(descriptor), path.stat())
    finally:
        if not in_place:
            os.close(descriptor)
    return in_place


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
