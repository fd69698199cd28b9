"""The spool: turns a worker could not hand over, one file per call, on a disk both ends see.

A file holds frames as on the wire, one per line: `call.open`, turns, and `call.close` if the call
has ended. The worker that writes it holds an exclusive `flock` for as long as it lives; a process
that finds it unlocked may take it up. All functions block: call them off the loop.

A setting names the directory, so it may hold other people's files. A file is a worker's if its
name has the form we give, it is a regular file of this user no larger than `MAX_FILE_BYTES`, and
it begins as `_begins_as_ours` says. Any other is not read further, written, renamed or erased.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

from typing_extensions import override

from sidecar.environment import default_data_dir
from sidecar.errors import LinkError
from sidecar.private import make_directory
from sidecar.wire.bounds import turn_bytes
from sidecar.wire.frames import (
    MAX_FRAME_BYTES,
    CallClose,
    CallOpen,
    SpoolFrame,
    TurnFrame,
    decode_from_worker,
    encode,
)
from sidecar.wire.spooled import MAX_FILE_BYTES, Spooled, read_spooled, turns_after

_SUFFIX = ".jsonl"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SPOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}\.jsonl")
_ASIDE_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}(\.[1-9][0-9]{0,8})?\.damaged")
_BEGINNING = b'{"type":"call.open","call":"'
_TELLING_BYTES = len(b'{"type":"c')  # so much of a torn beginning is recognised


class ForeignFile(OSError):
    """A file that no worker wrote. `why` says how we know, without the file's name."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EEXIST, why)
        self.why = why

    @override
    def __str__(self) -> str:
        return self.why


def default_spool_dir() -> Path:
    """Return the directory that both ends use by default: below the XDG state directory."""
    return default_data_dir() / "spool"


def spool_path(directory: Path, call_id: str) -> Path:
    """Return the file of a call. An id that is not a plain file name is replaced by its hash."""
    plain = _PLAIN_NAME.fullmatch(call_id)
    return directory / (f"{call_id}{_SUFFIX}" if plain else _hashed_name(call_id))


def _hashed_name(call_id: str) -> str:
    return f"{hashlib.sha256(call_id.encode()).hexdigest()[:32]}{_SUFFIX}"


def damaged_files(directory: Path) -> list[Path]:
    """Return the files of this user whose names are those of files set aside, sorted."""
    return [path for path in _named(directory, _ASIDE_NAME) if not _why_no_file_of_ours(path)]


def erase_damaged(directory: Path, *, before_s: float) -> int:
    """Delete files set aside that were last written before `before_s`; return how many. Blocking.

    A file that does not begin as a worker's file does may be anybody's, and stays.
    """
    erased = 0
    for path in damaged_files(directory):
        with contextlib.suppress(OSError):
            os.close(_opened(path))
            if path.stat().st_mtime < before_s:
                path.unlink()
                erased += 1
    return erased


@dataclass(frozen=True, slots=True)
class SpoolFiles:
    """What a spool directory holds.

    Attributes:
        files: Those that workers wrote, by when their calls were opened first.
        foreign: Each other file whose name ends as theirs do, by name: why it is not a worker's.
    """

    files: list[Path]
    foreign: dict[str, str]


def look_into(directory: Path) -> SpoolFiles:
    """Return which files of a directory workers wrote; none when it does not exist."""
    found = SpoolFiles([], {})
    opened_at_s: dict[Path, float] = {}
    for path in _named(directory, re.compile(rf".*{re.escape(_SUFFIX)}", re.DOTALL)):
        try:
            descriptor = _opened(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            found.foreign[path.name] = str(error.strerror or type(error).__name__)
            continue
        try:
            opened_at_s[path] = _opened_at_s(descriptor)
        finally:
            os.close(descriptor)
    found.files.extend(sorted(opened_at_s, key=lambda path: (opened_at_s[path], path.name)))
    return found


def spool_files(directory: Path) -> list[Path]:
    """Return the files in a directory that workers wrote; none when it does not exist."""
    return look_into(directory).files


def _named(directory: Path, name: re.Pattern[str]) -> list[Path]:
    if not os.path.isdir(directory):  # noqa: PTH112 - raises nothing
        return []
    return [
        directory / one
        for one in sorted(os.listdir(directory))  # noqa: PTH208
        if name.fullmatch(one)
    ]


def _why_no_file_of_ours(path: Path) -> str:
    """Return why a file is not a worker's, as far as that shows without opening it; else empty."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ""
    if not (_SPOOL_NAME.fullmatch(path.name) or _ASIDE_NAME.fullmatch(path.name)):
        return "it has no name that a worker gives"
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    if status.st_uid != os.geteuid():
        return "it is another user's"
    if status.st_size > MAX_FILE_BYTES:
        return f"it is larger than {MAX_FILE_BYTES >> 20} MiB"
    return ""


def _opened(path: Path, flags: int = os.O_RDWR) -> int:
    """Open a worker's file; return its descriptor. `O_CREAT` makes one that does not exist.

    Raises:
        ForeignFile: it is not a worker's.
        OSError: it can't be opened.
    """
    if why := _why_no_file_of_ours(path):
        raise ForeignFile(why)
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    if flags & os.O_CREAT:
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_EXCL, 0o600)
            os.fchmod(descriptor, 0o600)  # a umask may have taken rights of ours
            return descriptor
    descriptor = os.open(path, flags & ~os.O_CREAT)
    ours = False
    try:
        ours = _begins_as_ours(descriptor)
    finally:
        if not ours:
            os.close(descriptor)
    if not ours:
        raise ForeignFile("it does not begin as a worker's file does")
    return descriptor


def _begins_as_ours(descriptor: int) -> bool:
    """Whether a file begins with a frame, or with the beginning of a torn `call.open`.

    An empty file is of a worker that was killed before its first write, if it is as private as
    ours.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        return False
    if not status.st_size:
        return stat.S_IMODE(status.st_mode) == 0o600  # noqa: PLR2004
    head = os.pread(descriptor, MAX_FRAME_BYTES + 1, 0)
    if head.startswith(_BEGINNING):
        return True
    line, newline, _ = head.partition(b"\n")
    if not newline:
        return len(line) >= _TELLING_BYTES and _BEGINNING.startswith(line)
    try:
        return isinstance(decode_from_worker(line), CallOpen | TurnFrame | CallClose)
    except LinkError:
        return False


def _opened_at_s(descriptor: int) -> float:
    """Return when the call of a file was opened first, as its worker said; infinite if unknown."""
    with contextlib.suppress(OSError, LinkError):
        first = decode_from_worker(os.pread(descriptor, MAX_FRAME_BYTES + 1, 0).partition(b"\n")[0])
        if isinstance(first, CallOpen):
            return first.opened_at_s
    return math.inf


def spooled_in(path: Path) -> Spooled:
    """Return what a file holds without locking it: its writer may be adding to it.

    Raises:
        OSError: it can't be read, or (ForeignFile) no worker wrote it.
    """
    descriptor = _opened(path, os.O_RDONLY)
    try:
        return read_spooled(descriptor)
    finally:
        os.close(descriptor)


class SpoolFile:
    """A spool file that this process has locked; `close` and `remove` unlock it."""

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
        """Whether it held something from an earlier process when it was opened."""
        return self._own_from_bytes > 0

    @classmethod
    def create(cls, directory: Path, call_id: str) -> Self:
        """Open the file of a call for writing and lock it; a missing directory is made, mode 0700.

        If a file of that name is not a worker's, it is left alone, and the call's file is named by
        the hash of the call's id.

        Raises:
            OSError: no permission, or (BlockingIOError) another process holds the file.
        """
        make_directory(directory)
        path = spool_path(directory, call_id)
        while True:
            try:
                descriptor = _opened(path, os.O_RDWR | os.O_CREAT)
            except ForeignFile:
                if path.name == _hashed_name(call_id):
                    raise
                path = directory / _hashed_name(call_id)
                continue
            if _locked(descriptor, path):
                return cls(path, descriptor)

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """Lock a file that was left behind; None while its writer lives, or when it is gone.

        Raises:
            OSError: it can't be opened, or (ForeignFile) no worker wrote it.
        """
        try:
            descriptor = _opened(path)
        except FileNotFoundError:
            return None
        try:
            return cls(path, descriptor) if _locked(descriptor, path) else None
        except BlockingIOError:
            return None

    def append(self, frames: Sequence[SpoolFrame]) -> None:
        """Write frames to the end. On return they are on disk (fsynced).

        Raises:
            OSError: none of them was kept.
        """
        size = os.lseek(self._descriptor, 0, os.SEEK_END)
        data = "".join(f"{encode(frame)}\n" for frame in frames).encode()
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        if size + len(data) > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"the file of a call holds {MAX_FILE_BYTES >> 20} MiB")
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
        return read_spooled(self._descriptor)

    def read_own(self, *, after_seq: int, most: int, most_bytes: int) -> list[TurnFrame]:
        """Return the next turns that this process has written, not those that it found.

        Args:
            after_seq: Turns with a higher `seq` are next.
            most: Turns to return at most.
            most_bytes: Stop when the turns so far take this much memory; at least one is returned.
        """
        turns = turns_after(self._descriptor, self._own_from_bytes, after_seq=after_seq)
        read: list[TurnFrame] = []
        for turn in islice(turns, most):
            read.append(turn)
            most_bytes -= turn_bytes(turn.text)
            if most_bytes <= 0:
                break
        return read

    def remove(self) -> None:
        """Delete the file and unlock it."""
        self._path.unlink(missing_ok=True)
        self.close()

    def set_aside(self) -> Path:
        """Rename a damaged file so that it is not taken up again; return its new path.

        Files that were set aside before keep their names.
        """
        places = (self._path.with_suffix(f".{n}.damaged") for n in itertools.count(2))
        aside = self._path.with_suffix(".damaged")
        while aside.exists():
            aside = next(places)
        self._path.replace(aside)
        self.close()
        return aside

    def close(self) -> None:
        """Unlock the file, which stays. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _locked(descriptor: int, path: Path) -> bool:
    """Lock a file; return False if it was removed from its path before it was locked.

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
