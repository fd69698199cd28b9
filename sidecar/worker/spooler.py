"""Keeps a spool file for each call whose turns wait too long for their ack."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from sidecar import telemetry
from sidecar.telemetry import Emit
from sidecar.wire.frames import TurnFrame
from sidecar.wire.spool import SpoolFile
from sidecar.worker.call import LinkedCall
from sidecar.worker.unacked import Unacked

SPOOL_AFTER_S: Final = 0.5
DISK_PAUSE_S: Final = 1.0  # before a failed write is tried again
LEAVE_S: Final = 5.0  # for beginning the last writes; one of them may take longer


class Spooler:
    """The files of a link's calls. One task does all of its disk work, off the loop.

    Args:
        calls: The link's live calls, by id.
        directory: Where the files go; made when first needed.
        emit: Events.
        max_in_memory: Turns of a call that may be in memory.
        max_bytes_in_memory: Bytes that they may take there.
        away: Whether the sidecar is known to be out of reach: turns then go to disk at once.
        moved: Called when turns went to disk or came back.
        reclaimed: Called when a call's file is gone because all of it was acked.
    """

    def __init__(
        self,
        calls: Mapping[str, LinkedCall],
        directory: Path,
        *,
        emit: Emit,
        max_in_memory: int,
        max_bytes_in_memory: int,
        away: Callable[[], bool],
        moved: Callable[[], None],
        reclaimed: Callable[[LinkedCall], None],
    ) -> None:
        self._calls = calls
        self._directory = directory
        self._emit = emit
        self._max_in_memory = max_in_memory
        self._max_bytes_in_memory = max_bytes_in_memory
        self._away = away
        self._moved = moved
        self._reclaimed = reclaimed
        self._wake = anyio.Event()

    def wake(self) -> None:
        """Let `run` check the files again."""
        self._wake.set()

    async def leave(self) -> None:
        """Write everything unacked to disk and close the files, even when cancelled."""
        with anyio.move_on_after(LEAVE_S, shield=True):
            for call in list(self._calls.values()):
                await self._put_on_disk(call)
                file, call.spool = call.spool, None
                if file:
                    await anyio.to_thread.run_sync(file.close)
                    call.unacked.unspool()

    async def run(self) -> None:
        """Maintain the files until cancelled."""
        while True:
            self._wake = anyio.Event()
            wait_s = await self._spool_due()
            with anyio.move_on_after(wait_s):
                await self._wake.wait()

    async def _spool_due(self) -> float | None:
        """Do what is due on all files; return the seconds until more is, None for the next wake."""
        waits: list[float] = []
        for call in list(self._calls.values()):
            due_s = None
            with anyio.CancelScope(shield=True):  # else a file could be written and not noted
                due_s = await self._tend(call)
            if due_s is not None:
                waits.append(max(0.0, due_s - anyio.current_time()))
        return min(waits, default=None)

    async def _tend(self, call: LinkedCall) -> float | None:
        """Do what is due on a call's file; return when more is, None for the next wake."""
        unacked = call.unacked
        if call.spool and unacked.all_acked:
            await self._reclaim(call)
            return None
        if unacked.disk_only and not unacked.overflowing and self._has_room(unacked):
            await self._read_back(call)
        due_s = unacked.due_on_disk_s(after_s=0.0 if self._away() else SPOOL_AFTER_S)
        if due_s is not None and due_s <= anyio.current_time():
            return None if await self._put_on_disk(call) else anyio.current_time() + DISK_PAUSE_S
        return due_s

    def _has_room(self, unacked: Unacked) -> bool:
        return (
            unacked.in_memory <= self._max_in_memory // 2
            and unacked.bytes_in_memory <= self._max_bytes_in_memory // 2
        )

    async def _put_on_disk(self, call: LinkedCall) -> bool:
        """Append what is only in memory to the call's file; return False when the write fails."""
        frames = call.unacked.unspooled()
        if not frames:
            return True

        def write() -> SpoolFile:
            if call.spool:
                call.spool.append(frames)
                return call.spool
            file = SpoolFile.create(self._directory, call.call_id)
            try:
                file.append(frames)
            except OSError:
                file.close()
                raise
            return file

        try:
            call.spool = await anyio.to_thread.run_sync(write)
        except OSError as error:
            self._emit(
                telemetry.part_failed,
                part="spool",
                error=type(error).__name__,
                hint=f"make {self._directory} writable and give it room",
            )
            return False
        call.unacked.spooled(frames)
        turns = sum(isinstance(frame, TurnFrame) for frame in frames)
        self._emit(telemetry.turns_spooled, call=call.call_id, turns=turns)
        call.changed()
        self._moved()
        if call.unacked.all_acked:  # acked meanwhile, so that the link may have forgotten the call
            await self._reclaim(call)
        return True

    async def _read_back(self, call: LinkedCall) -> None:
        """Read turns that are only on disk back into memory, as many as there is room for."""
        file, after_seq = call.spool, call.unacked.read_back_after_seq
        if file is None:
            return
        read = partial(
            file.read_own,
            after_seq=after_seq,
            most=max(1, self._max_in_memory - call.unacked.in_memory),
            most_bytes=self._max_bytes_in_memory - call.unacked.bytes_in_memory,
        )
        turns = await anyio.to_thread.run_sync(read)
        if not turns:
            self._emit(
                telemetry.turns_dropped,
                call=call.call_id,
                turns=call.unacked.lose_disk_only(),
                why="the spool file lost them",
            )
        call.unacked.read_back(turns, now_s=anyio.current_time())
        self._moved()

    async def _reclaim(self, call: LinkedCall) -> None:
        """Delete a file whose turns are all acked, unless an earlier process wrote in it.

        If the caller did not agree that the call is kept, the file is deleted in any case.
        """
        file, call.spool = call.spool, None
        if file is not None:
            stays = file.inherited and not call.unacked.refused
            await anyio.to_thread.run_sync(file.close if stays else file.remove)
        call.unacked.unspool()
        self._reclaimed(call)
        self._moved()
