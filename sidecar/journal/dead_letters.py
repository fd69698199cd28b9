"""Batches that were given up: shown, put back, or dropped by a person."""

from typing import Protocol


class DeadLetters(Protocol):
    """What a person may do about batches that were given up; `Reports.batches` lists them.

    Every method may raise `JournalError`; then nothing was changed.
    """

    async def replay(self, batch_id: str, *, now_s: float) -> bool:
        """Put a dead letter back into its lane, to be looked up first; False: it is not one.

        From now on it has as much time as any batch before it is given up. `sealed_at_s` stays,
        because a trace of the batch at Letta may be as old as that.
        """
        ...

    async def drop(self, batch_id: str, *, now_s: float) -> bool:
        """Give a dead letter up for good: retention may erase it. False: it is not one."""
        ...
