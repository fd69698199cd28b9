"""Takes up what workers could not hand over: spool files whose writer is gone.

A file is deleted only when the journal holds all of it: a crash before that repeats the intake,
and the journal drops what it has already. A file that can't be read is set aside; it is deleted
together with transcripts of its age, or at once if the caller did not agree that words are stored.
A file that no worker wrote is left as it is.
"""

from pathlib import Path

import anyio
import anyio.to_thread

from sidecar import telemetry
from sidecar.calls import Calls
from sidecar.errors import CallError, JournalError
from sidecar.model import call_key
from sidecar.telemetry import Emit
from sidecar.wire.frames import CallOpen, hints_of, turn_of
from sidecar.wire.spool import SpoolFile, look_into
from sidecar.wire.spooled import Spooled

LOOK_EVERY_S = 2.0
LOOKS_APART_S = 0.1
"""Shortest time between two looks, however often one is asked for."""


class SpoolIntake:
    """Looks through the spool directory, at the start, every two seconds, and when asked to.

    Args:
        calls: Where what is found is stored.
        directory: The spool; it need not exist.
        tenant: Whose workers write there. A file carries no credential, so one tenant owns all.
        emit: Where events go.
    """

    def __init__(self, calls: Calls, directory: Path, *, tenant: str, emit: Emit) -> None:
        self._calls = calls
        self._directory = directory
        self._tenant = tenant
        self._emit = emit
        self._refused: dict[str, str] = {}
        self._asked = anyio.Event()
        self.looked = anyio.Event()
        """Set once what was there at the start is taken up."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._asked = anyio.Event()
            await self.look()
            self.looked.set()
            await anyio.sleep(LOOKS_APART_S)
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._asked.wait()

    def look_soon(self) -> None:
        """Start the next look soon: a caller may be calling back after their worker died."""
        self._asked.set()

    async def look(self) -> None:
        """Take up every file whose writer is gone; a fault in one does not hold up the others."""
        found = await anyio.to_thread.run_sync(look_into, self._directory)
        there = {*found.foreign, *(path.name for path in found.files)}
        self._refused = {name: why for name, why in self._refused.items() if name in there}
        for name, why in found.foreign.items():
            self._refuse(name, f"not a worker's file: {why}; it was left unchanged")
        for path in found.files:
            try:
                file = await anyio.to_thread.run_sync(SpoolFile.take, path)
                if file is not None:
                    try:
                        await self._take_up(file)
                    finally:
                        file.close()
            except Exception as error:  # noqa: BLE001 - emitted; this file waits for the next look
                self._refuse(path.name, getattr(error, "strerror", "") or type(error).__name__)

    def _refuse(self, name: str, why: str) -> None:
        """Emit why a file is not taken up, once for as long as the reason lasts."""
        if self._refused.get(name) != why:
            self._refused[name] = why
            self._emit(telemetry.spool_refused, file=name, error=why)

    async def _take_up(self, file: SpoolFile) -> None:
        spooled = await anyio.to_thread.run_sync(file.read)
        if spooled.damaged or (spooled.opened is None and (spooled.turns or spooled.closed)):
            self._refuse(file.path.name, "damaged: set aside")
            if spooled.opened is None:
                await anyio.to_thread.run_sync(file.set_aside)
                return
        try:
            stored = spooled.opened is None or await self._store(spooled.opened, spooled)
        except CallError as error:
            self._refuse(file.path.name, error.message)
            await anyio.to_thread.run_sync(file.set_aside)
            return
        except JournalError:
            stored = False
        agreed = spooled.opened is None or self._calls.may_store(hints_of(spooled.opened))
        if stored and spooled.damaged and agreed:
            await anyio.to_thread.run_sync(file.set_aside)
        elif stored:
            await anyio.to_thread.run_sync(file.remove)

    async def _store(self, opened: CallOpen, spooled: Spooled) -> bool:
        stored = await self._calls.restore(
            self._tenant,
            opened.call,
            channel=opened.channel,
            hints=hints_of(opened),
            opened_at_s=opened.opened_at_s,
            turns=[turn_of(self._tenant, frame) for frame in spooled.turns],
            room=opened.room,
            ended=spooled.closed is not None,
        )
        if stored:
            self._emit(
                telemetry.spool_taken,
                call=call_key(self._tenant, opened.call),
                turns=len(spooled.turns),
            )
        return stored
