"""Erases what was kept long enough: turns that are delivered, and spool files set aside."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from sidecar import telemetry
from sidecar.journal.erasure import Erasure
from sidecar.telemetry import Emit
from sidecar.wire.spool import erase_damaged

EVERY_S: Final = 3_600.0


class Retention:
    """Erases at the start, and every hour.

    Args:
        journal: The journal in which calls are erased.
        spool: The directory of the spool.
        retention_s: How long a call is kept after it ended, and a file after it was written.
        emit: Where events go.
        clock: Unix time that never jumps.
    """

    def __init__(
        self,
        journal: Erasure,
        spool: Path,
        *,
        retention_s: float,
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._spool = spool
        self._retention_s = retention_s
        self._emit = emit
        self._clock = clock

    async def run(self) -> None:
        """Erase until cancelled.

        Raises:
            JournalError: the journal failed; run this again.
        """
        while True:
            wall_s = time.time()
            # Nothing is erased early because a clock ran ahead, at the start or just now.
            before_s = min(self._clock(), wall_s) - self._retention_s
            erased = await self._journal.erase_settled(before_s=before_s)
            if erased:
                self._emit(telemetry.turns_erased, turns=erased)
            erase = partial(erase_damaged, self._spool, before_s=wall_s - self._retention_s)
            await anyio.to_thread.run_sync(erase)
            await anyio.sleep(EVERY_S)
