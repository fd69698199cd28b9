"""Callers who said that nothing may be stored: of which rooms, and since when."""

import math
from collections.abc import Callable, Sequence

from sidecar.calls.call import LiveCall
from sidecar.calls.records import Heard, Records
from sidecar.calls.storing import Storing
from sidecar.journal.policy import GOES_ON_S


class Refusals:
    """What is not stored since its caller said no, whichever call hears the room.

    Args:
        records: The live calls of each room.
        storing: Marks stored calls as refused.
        clock: Unix time in seconds.
    """

    def __init__(self, records: Records, storing: Storing, *, clock: Callable[[], float]) -> None:
        self._records = records
        self._storing = storing
        self._clock = clock
        self._lost: dict[Heard, tuple[float, float]] = {}
        """When a call was lost whose caller had said no, and since when nothing is stored."""

    def since_s(self, heard: Heard | None) -> float:
        """Return when the first call of a room was opened in which its caller said no.

        Of those that are live, or were lost lately; infinite: in none.
        """
        _, lost_s = self._lost.get(heard, (0.0, math.inf)) if heard else (0.0, math.inf)
        return min([lost_s, *(one.refused_s for one in self._records.in_room(heard))])

    async def refuse(self, live: LiveCall) -> None:
        """Store nothing more of a live call, and mark the stored call as refused."""
        if live.may_be_stored:
            await self._refuse([live])

    async def refuse_room(self, live: LiveCall) -> None:
        """The caller said no: store nothing more of the room, whichever call hears it."""
        others = [one for one in self._records.in_room(live.heard) if one is not live]
        for one in others:
            one.refused_s = min(one.refused_s, live.refused_s)
        await self._refuse([live, *others])

    async def _refuse(self, calls: Sequence[LiveCall]) -> None:
        for one in calls:
            one.may_be_stored = False
        # One that is not stored may have been, before its worker was lost.
        keys = [key for one in calls for key in (one.call.key, one.key, one.before) if key]
        await self._storing.refuse(keys)

    def lost(self, live: LiveCall) -> None:
        """The worker of a call is lost: the next one of its room obeys its caller's refusal."""
        if live.heard and live.refused_s < math.inf:
            self._lost[live.heard] = self._clock(), live.refused_s

    def ended(self, live: LiveCall) -> None:
        """A call has ended: another one in its room is asked anew."""
        if live.heard:
            self._lost.pop(live.heard, None)

    def forget_old(self) -> None:
        """Forget the rooms that nobody can go on with any more."""
        now_s = self._clock()
        for heard, (lost_s, _) in list(self._lost.items()):
            if now_s - lost_s >= GOES_ON_S:
                del self._lost[heard]
