"""Erases the last good copies of agents that were erased at another replica."""

from collections.abc import Callable
from typing import Final, Protocol

import anyio

from sidecar import telemetry
from sidecar.journal.erasure import Erasure
from sidecar.telemetry import Emit

EVERY_S: Final = 10.0
_LATE_S: Final = 120.0
"""Longest that an erasure takes to be seen, and a read under way to bring a copy back."""


class AgentCopies(Protocol):
    """The copies of agents' memory that this replica has."""

    async def agent_ids(self) -> set[str]:
        """Return the ids of their agents."""
        ...

    async def forget(self, agent_id: str) -> None:
        """Erase every copy of an agent's memory.

        Raises:
            OSError: it could not be erased.
        """
        ...


class ErasedCopies:
    """Looks for erased agents at the start, and every `EVERY_S`.

    Args:
        journal: Of all replicas.
        copies: Of this one.
        emit: Where events go.
        clock: Unix time that never jumps.
    """

    def __init__(
        self, journal: Erasure, copies: AgentCopies, *, emit: Emit, clock: Callable[[], float]
    ) -> None:
        self._journal = journal
        self._copies = copies
        self._emit = emit
        self._clock = clock
        self._since_s = 0.0

    async def run(self) -> None:
        """Erase until cancelled.

        Raises:
            JournalError: the journal failed; run this again.
        """
        while True:
            now_s = self._clock()
            if await self.erase(since_s=self._since_s):
                self._since_s = now_s - _LATE_S
            await anyio.sleep(EVERY_S)

    async def erase(self, *, since_s: float) -> bool:
        """Erase the copies of agents that were erased since a Unix time.

        Returns:
            False: one could not be erased; ask again for the same time.

        Raises:
            JournalError: the journal failed.
        """
        if not await self._journal.is_any_erased(since_s=since_s):
            return True
        erased = True
        agent_ids = await self._copies.agent_ids()
        for agent_id in await self._journal.erased_agents(agent_ids, since_s=since_s):
            try:
                await self._copies.forget(agent_id)
            except OSError as error:
                why = error.strerror or type(error).__name__
                self._emit(telemetry.copy_not_erased, agent=agent_id, error=why)
                erased = False
            else:
                self._emit(telemetry.copy_erased, agent=agent_id)
        return erased
