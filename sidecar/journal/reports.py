"""What people ask of the journal: how delivery stands, which calls there were."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.journal.backlog import Backlog, Undelivered
from sidecar.journal.transcripts import Transcripts
from sidecar.model import Call


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """How one lane stands, for people.

    Attributes:
        lane: Its name.
        agent_id: Letta's id, where known.
        pending: Turns not yet in any batch.
        state: State of its open batch (`sidecar.journal.states`), or `idle`.
        attempt: Tries of the open batch so far.
        oldest_s: Unix time of its oldest turn that is not settled, or None.
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
    """A batch as it stands, for people.

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
    """Answers for people, each on the state of one commit; changes nothing.

    Every method may raise `JournalError`.
    """

    async def lanes(self) -> list[LaneStatus]:
        """Return every lane that holds something undelivered."""
        ...

    async def counts(self) -> JournalCounts:
        """Return totals, for people: looks at every call."""
        ...

    async def batches(self, *, states: Sequence[str], limit: int) -> list[BatchRow]:
        """Return the newest batches in any of these states, newest first."""
        ...

    async def calls(self, *, limit: int) -> list[Call]:
        """Return the newest calls, newest first."""
        ...
