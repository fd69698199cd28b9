"""Remembers which signed deliveries came before, also across restarts and at other replicas.

A signature is valid for as long as its time is near ours (`door.REPLAY_WINDOW_S`), so nothing is
remembered for longer. A delivery whose answer may hold memory is written to disk before the answer
is sent: to a file of records, each the time of the delivery and a digest of its signature. Replicas
tell one another by the journal.
"""

import hashlib
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from sidecar import telemetry
from sidecar.errors import JournalError
from sidecar.private import write_whole
from sidecar.telemetry import Emit

LIMIT = 65_536
"""More than come within `door.REPLAY_WINDOW_S` at the 200 a second that are let in."""
SAVE_S = 1.0
"""The longest that an answer waits for the disk."""
ELSEWHERE_S = 0.25
"""The longest that an answer waits for the other replicas; then it may be given by each of them."""
_RECORD = struct.Struct(">d32s")
_SLACK = 1_024
"""The file is rewritten when it holds this many more records than twice those of its last write."""


class Deliveries:
    """Signed deliveries that came before.

    Args:
        window_s: How far from ours the time of a delivery may be.
        wall: Unix time as the machine has it now.
        clock: Seconds that never jump.
        path: File that keeps them over a restart; None: they are not kept.
        is_first: Takes a name, and the Unix time until which it is known; returns whether no
            replica took it before. May raise `JournalError`. None where there are no replicas.
        emit: Where events go.
    """

    def __init__(
        self,
        *,
        window_s: float,
        wall: Callable[[], float],
        clock: Callable[[], float],
        path: Path | None,
        is_first: Callable[[str, float], Awaitable[bool]] | None = None,
        emit: Emit,
    ) -> None:
        self._window_s = window_s
        self._wall = wall
        self._clock = clock
        self._path = path
        self._is_first = is_first
        self._emit = emit
        self._seen: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._saved: OrderedDict[bytes, float] = OrderedDict()
        self._waiting: list[tuple[float, bytes]] = []
        self._turn = anyio.Lock()
        self._file = threading.Lock()
        self._in_file = 0
        self._room = 2 * _SLACK
        if path is not None:
            self._load(path)

    def was_here(self, signature: bytes, stamp_s: float) -> bool:
        """Remember a delivery; return whether it came before.

        Args:
            signature: Of the delivery, already checked.
            stamp_s: The time that the delivery names, Unix seconds.
        """
        name = _name(signature)
        again = name in self._seen
        now_s = self._clock()
        self._seen[name] = (stamp_s, now_s)
        self._seen.move_to_end(name)
        while self._seen:
            oldest_stamp_s, since_s = next(iter(self._seen.values()))
            # By both clocks: one that was set forward and back must not open the window again.
            gone = now_s - since_s > 2 * self._window_s and not self._is_good(oldest_stamp_s)
            if len(self._seen) <= LIMIT and not gone:
                break
            self._seen.popitem(last=False)
        return again

    async def save(self, signature: bytes, stamp_s: float) -> bool:
        """Store a delivery, in the file and with the other replicas; report what fails.

        Waits at most `SAVE_S` and `ELSEWHERE_S`: an answer is on its way to a caller.

        Returns:
            False: it came before, at another replica.
        """
        name = _name(signature)
        error = "no answer in time"
        with anyio.move_on_after(SAVE_S):
            try:
                await self._write(name, stamp_s)
            except OSError as failure:
                error = failure.strerror or type(failure).__name__
            else:
                error = ""
        is_first = True
        if self._is_first is not None:
            until_s = max(stamp_s, self._wall()) + self._window_s
            away = "the other replicas were not asked in time"
            with anyio.move_on_after(ELSEWHERE_S):
                try:
                    is_first = await self._is_first(f"delivery/{name.hex()}", until_s)
                except JournalError as failure:
                    away = failure.message
                else:
                    away = ""
            error = error or away
        if error:
            self._emit(telemetry.deliveries_not_kept, error=error)
        return is_first

    async def _write(self, name: bytes, stamp_s: float) -> None:
        """Write a delivery to disk.

        Raises:
            OSError: it can't be written.
        """
        if self._path is None:
            return
        self._waiting.append((stamp_s, name))
        async with self._turn:  # one write takes all that came during the previous one
            records, self._waiting = self._waiting, []
            if not records:
                return
            await anyio.to_thread.run_sync(
                partial(self._append, self._path, records), abandon_on_cancel=True
            )

    def _is_good(self, stamp_s: float) -> bool:
        return self._wall() - stamp_s <= self._window_s

    def _load(self, path: Path) -> None:
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        whole = raw[: len(raw) // _RECORD.size * _RECORD.size]  # the last one may be incomplete
        now_s = self._clock()
        for stamp_s, name in list(_RECORD.iter_unpack(whole))[-LIMIT:]:
            if self._is_good(stamp_s):
                self._saved[name] = stamp_s
                self._seen[name] = (stamp_s, now_s)
        self._write_anew(path)

    def _append(self, path: Path, records: Sequence[tuple[float, bytes]]) -> None:
        with self._file:
            for stamp_s, name in records:
                self._saved[name] = stamp_s
            if self._in_file + len(records) > self._room:
                for name in [n for n, stamp_s in self._saved.items() if not self._is_good(stamp_s)]:
                    del self._saved[name]
                while len(self._saved) > LIMIT:
                    self._saved.popitem(last=False)
                self._write_anew(path)
                return
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            size = os.lseek(file, 0, os.SEEK_END)
            try:
                with os.fdopen(os.dup(file), "ab") as stream:
                    stream.write(b"".join(_RECORD.pack(*record) for record in records))
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)
                raise
            finally:
                os.close(file)
            self._in_file += len(records)

    def _write_anew(self, path: Path) -> None:
        write_whole(path, b"".join(_RECORD.pack(s, name) for name, s in self._saved.items()))
        self._in_file = len(self._saved)
        self._room = 2 * self._in_file + _SLACK


def _name(signature: bytes) -> bytes:
    return hashlib.sha256(signature).digest()
