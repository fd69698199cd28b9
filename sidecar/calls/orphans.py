"""The calls whose holder was lost: until they are opened again, gone on with, or closed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sidecar import telemetry
from sidecar.calls.records import Heard
from sidecar.errors import CallError, JournalError, TakenOver
from sidecar.journal.policy import GOES_ON_S
from sidecar.journal.record import Record
from sidecar.telemetry import Emit


@dataclass(frozen=True, slots=True)
class Orphan:
    """A call whose holder was lost.

    Attributes:
        since_s: Unix time.
        epoch: At which this replica has it.
        heard: The room in which it may go on, and its caller.
    """

    since_s: float
    epoch: int
    heard: Heard | None = None


class Orphans:
    """The orphans of this replica, by the keys of the stored calls.

    Args:
        journal: What knows of their loss, and where they are closed.
        orphan_s: Seconds after which they are closed.
        is_live: Whether a channel holds a stored call.
        failed: Called when the journal could not be written.
        emit: Where events go.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        journal: Record,
        *,
        orphan_s: float,
        is_live: Callable[[str], bool],
        failed: Callable[[JournalError], None],
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._orphan_s = orphan_s
        self._is_live = is_live
        self._failed = failed
        self._emit = emit
        self._clock = clock
        self._of: dict[str, Orphan] = {}
        self._unwritten: set[str] = set()
        """Those of which the journal does not know that they are."""

    def __contains__(self, key: object) -> bool:
        return key in self._of

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def get(self, key: str) -> Orphan | None:
        """Return an orphan by the key of its call."""
        return self._of.get(key)

    def add(self, key: str, epoch: int, heard: Heard | None) -> None:
        """Its holder was lost just now; `write` tells the journal, if it may go on in a room."""
        self.take(key, epoch, heard)
        if heard:
            self._unwritten.add(key)

    def take(self, key: str, epoch: int, heard: Heard | None) -> None:
        """It was taken over from a replica that is gone; the journal knows of its loss."""
        self._of[key] = Orphan(self._clock(), epoch, heard)

    def remove(self, key: str) -> None:
        """It is none any more, if it was one."""
        self._of.pop(key, None)

    def lost_in(self, heard: Heard | None) -> str | None:
        """Return the key of the call of a room and caller that was lost there within the minute."""
        if heard is None:
            return None
        lost = [
            (orphan.since_s, key)
            for key, orphan in self._of.items()
            if orphan.heard == heard and self._clock() - orphan.since_s < GOES_ON_S
        ]
        return max(lost)[1] if lost else None

    @property
    def unwritten(self) -> bool:
        """Whether `write` has something to do."""
        return bool(self._unwritten)

    async def write(self) -> None:
        """Let the journal know of calls that are lost: their room may be at another replica."""
        keys = [key for key in self._unwritten if key in self._of and not self._is_live(key)]
        self._unwritten.clear()
        lost = [(key, self._of[key]) for key in keys]
        if not lost:
            return
        try:
            await self._journal.lose(
                [(key, orphan.epoch) for key, orphan in lost],
                at_s=max(orphan.since_s for _, orphan in lost),
            )
        except JournalError as error:
            self._unwritten.update(keys)
            self._failed(error)

    async def close_old(self) -> None:
        """Close those that were lost `orphan_s` ago, so that their last words are posted."""
        now_s = self._clock()
        for key, orphan in list(self._of.items()):
            # While one is closed, any of the others may be reopened or lost again.
            if (
                now_s - orphan.since_s < self._orphan_s
                or self._of.get(key) != orphan
                or self._is_live(key)
            ):
                continue
            try:
                await self._journal.close_call(key, at_s=now_s, epoch=orphan.epoch, ended=False)
            except CallError:
                self._of.pop(key, None)  # erased meanwhile
                continue
            except TakenOver:
                self._of.pop(key, None)
                self._emit(telemetry.call_taken_over, call=key)
                continue
            except JournalError as error:
                self._failed(error)
                continue
            if self._of.get(key) == orphan and not self._is_live(key):
                del self._of[key]
            self._emit(telemetry.call_closed, call=key, reason="lost", turns=0)
