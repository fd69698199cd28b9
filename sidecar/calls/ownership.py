"""Which stored calls this replica has: its own, and those of replicas that are gone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from sidecar.calls.call import LiveCall
from sidecar.calls.orphans import Orphans
from sidecar.calls.storing import Storing
from sidecar.errors import CallError, HeardElsewhere, JournalError
from sidecar.journal.record import Record


class Ownership:
    """Takes over what other replicas have lost, and takes again what counted as lost.

    Args:
        journal: Where the owner of each call is written.
        orphans: The calls that nobody holds.
        storing: Stores live calls.
        live: The live calls of this replica.
        is_live: Whether a channel holds a stored call here, by whatever key.
    """

    def __init__(
        self,
        journal: Record,
        orphans: Orphans,
        storing: Storing,
        *,
        live: Callable[[], Sequence[LiveCall]],
        is_live: Callable[[str], bool],
    ) -> None:
        self._journal = journal
        self._orphans = orphans
        self._storing = storing
        self._live = live
        self._is_live = is_live
        self._replica = journal.replica

    async def look(self) -> None:
        """Take over, take again and close what it is time for; report a fault of the journal."""
        await self._go_on_all()
        await self._orphans.close_old()
        await self._retake_all()  # first: else its own calls would count as lost
        try:
            await self.take_over()
        except JournalError as error:
            self._storing.failed(error)

    async def take_over(self, *, first: bool = False) -> None:
        """Make orphans of the live calls whose replica is gone, unless they are live here.

        Args:
            first: This process has just started: all calls of its machine's last run are lost.

        Raises:
            JournalError: may be repeated.
        """
        taken = await self._journal.take_over(first=first)
        for call in taken:
            if not self._is_live(call.key):
                # Only the journal knows for how long those have been lost that an earlier run left.
                in_room = call.room and call.caller_key and not first
                heard = (call.room, call.caller_key) if in_room else None
                self._orphans.take(call.key, call.epoch, heard)
        keys = {call.key for call in taken}
        for live in self._live():
            if live.stored and live.call.key in keys:
                await self._take_again(live)

    async def _take_again(self, live: LiveCall) -> None:
        """Take a stored live call that counted as lost, unless another job has it by now."""
        epoch = await self._journal.retake(live.key)
        if epoch is not None:
            live.call = replace(live.call, epoch=epoch)
            if live.closed and live.call.key in self._orphans:  # lost meanwhile
                self._orphans.add(live.call.key, epoch, live.heard)
        elif not live.closed:  # its next turn opens it again, when the other job lets it
            live.stored, live.elsewhere_until_lost = False, live.heard is not None

    async def _go_on_all(self) -> None:
        """Let live calls that have joined another go on with it, where its worker is lost now."""
        for live in self._live():
            lost = live.before in self._orphans or live.key in self._orphans
            if live.stored or not (lost or live.elsewhere_until_lost):
                continue
            try:
                await self._storing.store_call(live)
            except HeardElsewhere:
                continue
            except CallError:
                continue  # another caller's, which its worker is told when it records
            except JournalError as error:
                self._storing.failed(error)
                return

    async def _retake_all(self) -> None:
        """Take the live calls again, once this replica was taken for gone."""
        name = self._journal.replica
        if name == self._replica:
            return
        for live in self._live():
            if not live.stored:
                continue
            try:
                await self._take_again(live)
            except JournalError as error:
                self._storing.failed(error)
                return
        self._replica = name
