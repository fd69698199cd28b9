"""Reports on the journal for people: the state of delivery, and the calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.journal.backlog import Backlog, Undelivered
from sidecar.journal.transcripts import Transcripts
from sidecar.model import Call, Turn


@dataclass(frozen=True, slots=True)
class CallRow:
    """A call, for people.

    Attributes:
        call: As stored.
        turns: How many turns it has.
        undelivered: How many of them are neither digested by Letta nor given up.
    """

    call: Call
    turns: int
    undelivered: int


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """The state of one lane, for people.

    Attributes:
        lane: Its name.
        agent_id: Letta's id, where known.
        pending: Turns not yet in any batch.
        state: State of its open batch (`sidecar.journal.states`), or `idle`.
        attempt: Tries of the open batch so far.
        oldest_s: Unix time of its oldest undelivered turn, or None.
        error: What the last try ended with, or empty.
    """

    lane: str
    agent_id: str | None
    pending: int
    state: str
    attempt: int
    oldest_s: float | None
    error: str


@dataclass(frozen=True, slots=True)
class JournalCounts(Backlog):
    """The backlog, and the totals of all that is stored."""

    calls: int
    live_calls: int
    turns: int


@dataclass(frozen=True, slots=True)
class BatchRow:
    """The state of one batch, for people.

    Attributes:
        batch_id: Its id.
        lane: The queue it came out of.
        call: Key of its call.
        part: 1 for the first batch of the call.
        turns: How many turns it holds.
        state: As in `sidecar.journal.states`.
        attempt: Tries so far.
        sealed_at_s: Unix time of sealing.
        ended_s: Unix time at which it was settled, given up or dropped; None while it is open.
        error: What the last try ended with, or empty.
    """

    batch_id: str
    lane: str
    call: str
    part: int
    turns: int
    state: str
    attempt: int
    sealed_at_s: float
    ended_s: float | None
    error: str


class Reports(Transcripts, Undelivered, Protocol):
    """Reports for people, each on the state of one commit; they change nothing.

    Every method may raise `JournalError`.
    """

    async def lanes(self) -> list[LaneStatus]:
        """Return every lane that holds something undelivered."""
        ...

    async def counts(self) -> JournalCounts:
        """Return totals, for people; reads every call."""
        ...

    async def batches(
        self, *, states: Sequence[str], limit: int, newest_first: bool = False
    ) -> list[BatchRow]:
        """Return batches in any of these states, in the order in which they were sealed.

        Args:
            states: Of `sidecar.journal.states`.
            limit: At most this many, from the start of the order; negative: all.
            newest_first: In the reverse order.
        """
        ...

    async def batch(self, name: str) -> tuple[BatchRow, tuple[Turn, ...]] | None:
        """Return a batch and its turns, by its id or the first characters of it.

        None: no batch has such an id, or several have.
        """
        ...

    async def calls(self, *, limit: int, live: bool = False, caller_key: str = "") -> list[CallRow]:
        """Return the newest calls, newest first.

        Args:
            limit: At most this many; negative: all.
            live: Only those that are not closed.
            caller_key: Only this caller's; empty: everybody's.
        """
        ...

    async def call_row(self, key: str) -> CallRow | None:
        """Return a call with its figures, by its key; None for one that is not stored."""
        ...

    async def call_keys(self) -> list[str]:
        """Return the key of every call."""
        ...

    async def caller_keys(self, beginning: str) -> list[str]:
        """Return the caller keys in the journal that begin with these hex digits, sorted."""
        ...

    async def agents_of(self, caller_key: str) -> list[str]:
        """Return Letta's ids of the agents that a caller's calls went to, where known, sorted."""
        ...

    async def turns_since(self, appended_s: float) -> list[tuple[float, Turn]]:
        """Return the turns stored at or after a Unix time, each with the time it was stored."""
        ...
