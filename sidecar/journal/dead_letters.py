"""Batches that were given up: shown, put back, or dropped by a person."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A batch that was given up; its turns stay in the journal until it is replayed or dropped.

    Attributes:
        batch_id: Its id.
        lane: The queue it came out of.
        call: Key of its call.
        turns: How many turns it holds.
        dead_s: Unix time at which it was given up.
        error: What the last try ended with.
    """

    batch_id: str
    lane: str
    call: str
    turns: int
    dead_s: float
    error: str


class DeadLetters(Protocol):
    """The batches that were given up, and what a person may do about them.

    Every method may raise `JournalError`; then nothing was changed.
    """

    async def dead_letters(self) -> list[DeadLetter]:
        """Return the batches that were given up, oldest first."""
        ...

    async def replay(self, batch_id: str, *, now_s: float) -> bool:
        """Put a dead letter back into its lane, to be looked up first; False: it is not one.

        From now on it has as much time as any batch before it is given up. `sealed_at_s` stays,
        because a trace of the batch at Letta may be as old as that.
        """
        ...

    async def drop(self, batch_id: str, *, now_s: float) -> bool:
        """Give a dead letter up for good: retention may erase it. False: it is not one."""
        ...
