"""What a dead worker left of a call, into the journal."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from sidecar import telemetry
from sidecar.calls.call import call_claimed
from sidecar.calls.orphans import Orphans
from sidecar.errors import CallError, HeardElsewhere, TakenOver
from sidecar.journal.record import Record
from sidecar.model import Call, Turn
from sidecar.telemetry import Emit


class Restoring:
    """Stores what workers left in a spool, in a call that ends or that another one goes on with.

    Args:
        journal: Where it goes.
        orphans: A call that is closed here is none any more.
        is_live: Whether a channel holds a stored call.
        emit: Where events go.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        journal: Record,
        orphans: Orphans,
        *,
        is_live: Callable[[str], bool],
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._orphans = orphans
        self._is_live = is_live
        self._emit = emit
        self._clock = clock

    async def restore(self, call: Call, turns: Sequence[Turn], *, ended: bool) -> bool:
        """Store a call's turns, and close it unless a worker goes on with it.

        Args:
            call: As its worker opened it.
            turns: What no other call has stored, in order.
            ended: Its worker had ended it.

        Returns:
            False when it can't be known yet where they belong: try again later.

        Raises:
            CallError: the call is stored for another caller.
            JournalError: nothing of it was stored; try again.
        """
        try:
            return await self._restore(call, turns, ended=ended)
        except CallError as error:
            if error.code != "erased":
                raise
            self._emit(telemetry.erased_call_refused, call=call.key)
            return True

    async def _restore(self, call: Call, turns: Sequence[Turn], *, ended: bool) -> bool:
        lived_s = max([call.opened_at_s, *(turn.at_s for turn in turns)])
        before = await self._journal.call(call.key)
        if before is not None and before.caller_key not in {"", call.caller_key}:
            raise call_claimed("the call is another caller's")
        if before is not None and self._is_live(before.key):
            await self._add(before, turns)
            return True
        try:
            stored = await self._journal.open_call(call, lost_s=lived_s)
        except HeardElsewhere:
            if before is not None:
                await self._add(before, turns)
            return before is not None
        await self._add(stored, turns)
        if not self._is_live(call.key) and not self._is_live(stored.key):  # else its worker closes
            with suppress(TakenOver):
                await self._journal.close_call(
                    call.key, at_s=self._clock(), epoch=stored.epoch, ended=ended, if_lost=True
                )
            self._orphans.remove(stored.key)
        return True

    async def _add(self, stored: Call, turns: Sequence[Turn]) -> None:
        """Store turns that a dead worker left, unless the caller has said no."""
        try:
            await self._journal.append(turns, left=True)
        except CallError as error:
            if error.code != "refused":
                raise
            self._emit(telemetry.turns_not_kept, call=stored.key, turns=len(turns))
