"""A disk whose power can be cut: what was not synced by then is lost, in part, or torn.

It is a VFS of SQLite on top of the real one, so that a journal runs on it unchanged. `image` writes
the files as they may be after a cut at this moment: all that was synced is there, and each sector
of what was written since is there or not, whatever the order in which it was written.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import apsw
from typing_extensions import override

SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class _Write:
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class _Truncate:
    size: int


@dataclass(slots=True)
class _Kept:
    """What of a file has been synced, and what was changed since, in order."""

    synced: bytearray
    since: list[_Write | _Truncate] = field(default_factory=list[_Write | _Truncate])


class Disk(apsw.VFS):
    """The default disk of this process's SQLite until `close`.

    Args:
        syncs: False for a disk that says it has synced and has not.
        written: Called after each write, in the thread that wrote.
    """

    def __init__(self, *, syncs: bool = True, written: Callable[[], None] = lambda: None) -> None:
        super().__init__("power-cut", "unix", makedefault=True)
        self.syncs = syncs
        self.written = written
        self._lock = threading.Lock()
        self._files: dict[str, _Kept] = {}

    def close(self) -> None:
        """Give the process its own disk back."""
        self.unregister()

    @override
    def xOpen(self, name: Any, flags: list[int]) -> "_File":
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        with self._lock:
            if path and path not in self._files:
                there = Path(path)
                self._files[path] = _Kept(bytearray(there.read_bytes() if there.exists() else b""))
        return _File(self, path, name, flags)

    @override
    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        with self._lock:
            self._files.pop(filename, None)

    def changed(self, path: str, change: _Write | _Truncate) -> None:
        """Note a change that is not synced."""
        with self._lock:
            if kept := self._files.get(path):
                kept.since.append(change)
        self.written()

    def synced(self, path: str) -> None:
        """Note that all changes of a file are synced, unless this disk lies."""
        with self._lock:
            if self.syncs and (kept := self._files.get(path)):
                for change in kept.since:
                    _apply(kept.synced, change)
                kept.since.clear()

    def image(self, directory: Path, dice: random.Random) -> None:
        """Write the files as a cut at this moment may leave them."""
        with self._lock:
            for path, kept in self._files.items():
                content = bytearray(kept.synced)
                for change in kept.since:
                    for part in _sectors(change):
                        if dice.random() < 0.5:
                            _apply(content, part)
                (directory / Path(path).name).write_bytes(content)


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, path: str | None, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk
        self._path = path or ""

    @override
    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)  # pyright: ignore[reportUnknownMemberType]
        self._disk.changed(self._path, _Write(offset, bytes(data)))

    @override
    def xTruncate(self, newsize: int) -> None:
        super().xTruncate(newsize)
        self._disk.changed(self._path, _Truncate(newsize))

    @override
    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._disk.synced(self._path)


def _sectors(change: _Write | _Truncate) -> list[_Write | _Truncate]:
    if isinstance(change, _Truncate):
        return [change]
    parts: list[_Write | _Truncate] = []
    at, rest = change.offset, change.content
    while rest:
        room = SECTOR_BYTES - at % SECTOR_BYTES
        parts.append(_Write(at, rest[:room]))
        at, rest = at + room, rest[room:]
    return parts


def _apply(content: bytearray, change: _Write | _Truncate) -> None:
    if isinstance(change, _Truncate):
        del content[change.size :]
        return
    end = change.offset + len(change.content)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[change.offset : end] = change.content
