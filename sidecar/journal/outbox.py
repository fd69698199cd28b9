"""What delivery needs of the journal: batches, taken when they are due and given back when tried.

Calls of one agent share a *lane*, and one batch at a time goes out of a lane (Letta loses edits
when two conversations change one block at once). The states of a batch: `sidecar.journal.states`.
"""

import math
from typing import Protocol

from sidecar.journal.backlog import Undelivered
from sidecar.journal.directory import Addresses
from sidecar.model import Batch


class Outbox(Addresses, Undelivered, Protocol):
    """The queue to Letta. Only one relay of a replica at a time claims from it.

    A claim is over when its lane belongs to another one: then every method that takes a batch
    raises `TakenOver` and stores nothing, unless that batch has ended already.

    Writes take effect in the order in which the methods are called. Every method may raise
    `JournalError`; then nothing was stored.
    """

    async def take_back(
        self, *, now_s: float, wait_s: float = math.inf, horizon_s: float = math.inf
    ) -> None:
        """Treat as in doubt, due now, what this replica or one that is gone was sending.

        To be called before the first claim, when this replica has nothing under way. Times that an
        earlier process stored by another clock are limited to what is possible by this one: no
        batch was sealed later than now, no try lands after `now_s + horizon_s`, no lane waits for
        its batch longer than `wait_s`, nor for turns longer than `PostPolicy.max_age_s` or
        `horizon_s`, whichever is longer.

        Args:
            now_s: Unix time.
            wait_s: Longest wait between two tries.
            horizon_s: Longest time in which a try may land.
        """
        ...

    async def claim(self, limit: int, *, now_s: float, post_timeout_s: float) -> list[Batch]:
        """Take up to `limit` due lanes and return the batch each has to deliver.

        For a lane with no open batch, one is sealed first: from the call that is due, or from
        another call of the same caller if its pending turns were said earlier, due or not.

        Promises: before a batch is returned it is durable, and marked `sending` with
        `horizon_s = now_s + post_timeout_s`; no other claim returns its lane until the batch is
        settled, released or retired. Batches that an earlier process left as `sending`, and those
        released as unknown, come back with `in_doubt` and keep the horizon of the try in doubt.
        """
        ...

    async def resend(self, batch: Batch, *, now_s: float, post_timeout_s: float) -> Batch:
        """Record another try, with a new horizon, and return the updated batch.

        For a batch in doubt that was not found, and for one that was claimed long ago and not sent.
        """
        ...

    async def settle(self, batch: Batch, *, now_s: float) -> None:
        """Record that Letta has digested the batch; its turns are done. Repeating does no harm."""
        ...

    async def release(
        self, batch: Batch, *, due_s: float, unknown: bool, over: bool, error: str, now_s: float
    ) -> None:
        """Give a batch back, to be claimed again at `due_s`.

        Args:
            batch: As claimed.
            due_s: Unix time of the next try.
            unknown: The try may have landed (state `unknown`); False: it surely did not (`retry`).
            over: With `unknown`: Letta no longer works on it, so the horizon is now.
            error: What happened, without a caller's words.
            now_s: Unix time.
        """
        ...

    async def retire(
        self, batch: Batch, *, error: str, now_s: float, hold_until_s: float = 0.0
    ) -> None:
        """Make a batch a dead letter; its lane goes on with the next one.

        Args:
            batch: As claimed.
            error: What happened, without a caller's words.
            now_s: Unix time.
            hold_until_s: No other batch leaves the lane before this Unix time, since Letta may
                still be working on this one.
        """
        ...

    async def split(self, batch: Batch, *, now_s: float) -> None:
        """Replace a batch of several turns by its two halves, due now, in order.

        Only for a batch of which Letta certainly holds nothing. Repeating it does no harm.
        """
        ...

    async def hurry(self, *, now_s: float) -> None:
        """Make the pending turns of this replica's calls due at once, and those nobody has.

        A batch that waits for its next try still waits.
        """
        ...

    async def next_due_s(self) -> float | None:
        """Return the Unix time at which a claim next finds something, None when nothing waits."""
        ...

    async def wait(self, timeout_s: float) -> None:
        """Return when something may have become due since the last claim, or after `timeout_s`.

        A due time that arrives does not end the wait: take `timeout_s` from `next_due_s`.
        """
        ...
