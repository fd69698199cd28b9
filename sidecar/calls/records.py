"""Which record is stored where several calls hear the same caller: two LiveKit jobs in one room.

The call that was there first writes the record. Any other call of that room and caller gets memory
like every call, but its turns are held until the record has reached the same time, and then dropped
as duplicates. When the first call has ended or is lost, the turns that its record did not reach are
stored from the other call, which writes the record from then on. So every word is stored once,
whichever call dies.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import anyio

from sidecar.calls.call import LiveCall
from sidecar.errors import HeardElsewhere
from sidecar.model import Turn, succeeding_item

Heard: TypeAlias = tuple[str, str]
"""A tenant's room, and a caller in it."""

_ROOMS_LIMIT: Final = 1_024
"""Rooms remembered after their last call."""
_REACHES: Final = 32
"""Calls of a room whose progress is remembered for comparison."""
_LAST: Final = 8
"""Of the newest turns of a call, this many are compared by their words."""
_SAME_S: Final = 5.0
"""Two jobs complete the same utterance less than this many seconds apart."""
_CLOCKS_S: Final = 1.0
"""How far the clocks of two workers may be apart."""


@dataclass(slots=True)
class _Reach:
    """How far a call's record has come, by the times of its turns.

    Attributes:
        owner: The worker of the call.
        since_s: Unix time from which that worker has heard everything.
        until_s: Unix time until which its turns are stored.
        last: Hash and time of each of the newest turns; no words are stored here.
    """

    owner: str
    since_s: float
    until_s: float = 0.0
    last: deque[tuple[int, float]] = field(
        default_factory=lambda: deque[tuple[int, float]](maxlen=_LAST)
    )

    def covers(self, turn: Turn, *, since_s: float) -> bool:
        """Whether a turn that another worker heard is in this record.

        Args:
            turn: The turn.
            since_s: Unix time from which that other worker has heard everything.
        """
        if self.since_s <= turn.at_s <= self.until_s:
            return True
        # Only what both were there to hear can be the same utterance.
        both_s = max(since_s, self.since_s) - _CLOCKS_S
        return turn.at_s >= both_s and any(
            said == _said(turn) and at_s >= both_s and abs(turn.at_s - at_s) < _SAME_S
            for said, at_s in self.last
        )


@dataclass(slots=True)
class _Record:
    calls: list[LiveCall] = field(default_factory=list[LiveCall])
    reaches: dict[str, _Reach] = field(default_factory=dict[str, _Reach])
    news: anyio.Event = field(default_factory=anyio.Event)

    def uncovered(
        self, turns: Iterable[Turn], *, owner: str, key: str, since_s: float
    ) -> list[Turn]:
        """Return the turns that no other worker's record covers."""
        own = {key, _elsewhere(key)}  # it may have been at another sidecar before
        others = [r for k, r in self.reaches.items() if k not in own and r.owner != owner]
        return [
            turn
            for turn in turns
            if not any(reach.covers(turn, since_s=since_s) for reach in others)
        ]

    def moved(self) -> None:
        self.news.set()
        self.news = anyio.Event()


class Records:
    """The records of all rooms. A call without a room, or without a caller, writes its own."""

    def __init__(self) -> None:
        self._of: OrderedDict[Heard, _Record] = OrderedDict()

    def enter(self, live: LiveCall) -> LiveCall | None:
        """Add a live call; return the call that writes its record, if that is another worker's."""
        if live.heard is None:
            return None
        record = self._of.setdefault(live.heard, _Record())
        self._of.move_to_end(live.heard)
        record.calls.append(live)
        if len(self._of) > _ROOMS_LIMIT:
            for heard in [heard for heard, one in self._of.items() if not one.calls][:1]:
                del self._of[heard]
        writer = record.calls[0]
        return writer if writer.owner != live.owner else None

    def is_writer(self, live: LiveCall) -> bool:
        """Whether no other worker's call writes the record in place of this one."""
        record = self._of.get(live.heard) if live.heard else None
        return record is None or not record.calls or record.calls[0].owner == live.owner

    def leave(self, live: LiveCall, *, at_s: float = 0.0) -> None:
        """Remove a call that is no longer live.

        Args:
            live: The call.
            at_s: Unix time until which it heard everything; 0 where unknown, as of a lost call.
        """
        record = self._of.get(live.heard) if live.heard else None
        if record is None or live not in record.calls:
            return
        if at_s and self.is_writer(live):
            reach = self._reach(record, live)
            reach.until_s = max(reach.until_s, at_s)
        record.calls.remove(live)
        record.moved()

    def reached(self, live: LiveCall, turns: Sequence[Turn]) -> None:
        """Advance a call's record: these turns of it are stored, or must not be stored at all."""
        record = self._of.get(live.heard) if live.heard else None
        if record is None or not turns:
            return
        reach = self._reach(record, live)
        reach.until_s = max(reach.until_s, *(turn.at_s for turn in turns))
        reach.last.extend((_said(turn), turn.at_s) for turn in turns)
        record.moved()

    def reached_elsewhere(
        self, live: LiveCall, elsewhere: HeardElsewhere, stored: Sequence[Turn]
    ) -> None:
        """Note how far a job at another sidecar has come with the call of a live call's room.

        Args:
            live: The call here.
            elsewhere: The call there, and its job.
            stored: All turns of that call.
        """
        record = self._of.get(live.heard) if live.heard else None
        theirs = [turn for turn in stored if _is_of(turn, elsewhere, not_of=live.key)]
        if record is None or not theirs:
            return
        reach = record.reaches.setdefault(
            _elsewhere(elsewhere.by), _Reach("another sidecar", elsewhere.since_s)
        )
        reach.until_s = max(turn.at_s for turn in theirs)
        reach.last.extend((_said(turn), turn.at_s) for turn in theirs[-_LAST:])

    def in_room(self, heard: Heard | None) -> Sequence[LiveCall]:
        """Return the live calls of a room and caller; the first writes the record."""
        record = self._of.get(heard) if heard else None
        return tuple(record.calls) if record else ()

    async def own(self, live: LiveCall, turns: Sequence[Turn]) -> Sequence[Turn]:
        """Wait until it is known which of these turns this call must store, and return those."""
        record = self._of.get(live.heard) if live.heard else None
        if record is None:
            return turns
        while (
            left := record.uncovered(
                turns, owner=live.owner, key=live.key, since_s=live.opened_at_s
            )
        ) and not self.is_writer(live):
            await record.news.wait()
        return left

    def left_of(
        self, heard: Heard | None, key: str, turns: Sequence[Turn], *, opened_at_s: float
    ) -> list[Turn] | None:
        """Return the turns to store of a call that its worker left; None: not known yet.

        What was said before each of the room's live calls was opened, no other worker has heard.

        Args:
            heard: Its room and caller.
            key: Its key.
            turns: What its worker left, in order.
            opened_at_s: Unix time at which its worker opened it.
        """
        record = self._of.get(heard) if heard else None
        if record is None:
            return list(turns)
        left = record.uncovered(turns, owner="", key=key, since_s=opened_at_s)
        since_s = min((live.opened_at_s for live in record.calls), default=math.inf)
        return left if all(turn.at_s < since_s for turn in left) else None

    def _reach(self, record: _Record, live: LiveCall) -> _Reach:
        reach = record.reaches.setdefault(live.key, _Reach(live.owner, live.opened_at_s))
        while len(record.reaches) > _REACHES:
            del record.reaches[next(iter(record.reaches))]
        return reach


def _elsewhere(key: str) -> str:
    """Return the name of what a job has stored at another sidecar."""
    return f"{key} elsewhere"


def _is_of(turn: Turn, elsewhere: HeardElsewhere, *, not_of: str) -> bool:
    """Whether a turn of a stored call is of the job that has it elsewhere.

    The turns of the first job have no mark of their own; those of the one that asks are not meant.
    """
    if elsewhere.by != elsewhere.key:
        return turn.item_id.startswith(succeeding_item(elsewhere.by, ""))
    return not turn.item_id.startswith(succeeding_item(not_of, ""))


def _said(turn: Turn) -> int:
    return hash((turn.speaker, turn.text))
