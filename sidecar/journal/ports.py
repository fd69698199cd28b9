"""The journal: a durable, ordered record of turns, with one cursor per call.

Turns of a call are a log; what is pending is a range of it, so coalescing costs nothing. Calls
of one agent share a *lane*, and one batch at a time goes out of a lane (Letta loses edits when
two conversations change one block at once). `sidecar/journal/sqlite/` keeps these promises;
the contract suite is tests/contract/test_journal.py.

Calls whose `ref` is nobody's are stored and never delivered: their turns count as settled.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.model import AgentRef, Batch, Call, Turn


@dataclass(frozen=True, slots=True)
class PostPolicy:
    """When pending turns are sealed into a batch; any one of these suffices.

    Attributes:
        max_turns: This many turns of a call are pending.
        max_age_s: The oldest pending turn of a call was appended this long ago.
        batch_turns: No batch holds more turns than this.
        batch_chars: Nor, beyond its first turn, more characters of text.

    A closed call is due at once.
    """

    max_turns: int = 20
    max_age_s: float = 60.0
    batch_turns: int = 200
    batch_chars: int = 24_000

    def due_s(self, *, pending: int, oldest_s: float, closed: bool, now_s: float) -> float | None:
        """Return the Unix time at which a call's pending turns are due, None when it has none.

        Args:
            pending: Turns of the call not yet in any batch.
            oldest_s: Unix time at which the oldest of them was appended.
            closed: The call has ended.
            now_s: Unix time.
        """
        if pending == 0:
            return None
        if closed or pending >= self.max_turns:
            return now_s
        # A turn that was stored by a clock that was ahead is no younger than now.
        return min(oldest_s, now_s) + self.max_age_s

    def cut(self, chars: Sequence[int]) -> int:
        """Return how many of the pending turns, given by their lengths, go into one batch."""
        total = 0
        for taken, size in enumerate(chars[: self.batch_turns]):
            total += size
            if taken and total > self.batch_chars:
                return taken
        return min(len(chars), self.batch_turns)


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """How one lane stands, for people.

    Attributes:
        lane: Its name.
        agent_id: Letta's id, where known.
        pending: Turns not yet in any batch.
        state: State of its open batch (`sidecar.delivery.decisions`), or `idle`.
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
class Backlog:
    """What Letta has not digested.

    Attributes:
        undelivered: Turns that are neither settled nor dead.
        dead_batches: Batches that were given up.
        oldest_undelivered_s: Unix time at which the oldest undelivered turn was appended.
    """

    undelivered: int
    dead_batches: int
    oldest_undelivered_s: float | None


@dataclass(frozen=True, slots=True)
class JournalCounts(Backlog):
    """The backlog, and the totals of all that is stored."""

    calls: int
    live_calls: int
    turns: int


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


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch as it stands, for people.

    Attributes:
        batch_id: Its id.
        lane: The queue it came out of.
        call: Key of its call.
        part: 1 for the first batch of the call.
        turns: How many turns it holds.
        state: As in `sidecar.delivery.decisions`.
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


OPEN_STATES = ("sealed", "sending", "unknown", "retry")
"""States of a batch that is on its way."""


@dataclass(frozen=True, slots=True)
class CallerHolding:
    """What the journal holds of one caller.

    Attributes:
        calls: Keys of all calls of the caller, live ones too, oldest first.
        live_calls: How many calls are not closed.
        turns: Turns of all these calls.
        undelivered: Turns of them which Letta has not digested.
        dead_batches: Batches of them that were given up.
        under_way: Batches of them on their way to Letta just now.
        agents: Agent ids these calls went to, the caller's own among them, where known.
        conversations: Agent id (empty where unknown) and conversation id of each call that has
            a conversation.
        own_agent: Id of the agent that is this caller's alone, or None.
    """

    calls: tuple[str, ...]
    live_calls: int
    turns: int
    undelivered: int
    dead_batches: int
    under_way: int
    agents: tuple[str, ...]
    conversations: tuple[tuple[str, str], ...]
    own_agent: str | None


class Journal(Protocol):
    """A durable record of calls and turns, and the outbox to Letta.

    What is written takes effect in the order in which it was asked for. Every method may raise
    `JournalFull` or `JournalCorrupt`; then nothing of it was stored.
    """

    async def open_call(self, call: Call) -> Call:
        """Store a call and return it as stored. The same key again returns the first one.

        A new call makes what is pending of its caller's earlier calls due at once: what was said
        first is delivered first (see `claim`).
        A call that was closed and is opened again is live again. Its `consent` is joined
        (`sidecar.model.joined_consent`). Whose memory it belongs to never changes: where the rules
        have given its caller another agent since, the stored `ref` stands to the end of the call,
        as does an empty `caller_key`.

        Raises:
            CallError: the key is stored with another `caller_key` (`call_claimed`), or the call was
                erased with its caller (`erased`): nothing of it is to be stored again.
        """
        ...

    async def call(self, key: str) -> Call | None:
        """Return a call as stored, live or closed; None for one that is not."""
        ...

    async def identify(self, call: Call) -> Call:
        """Give a stored call without a caller that of `call`; return it as stored.

        For a channel whose first word of a call names nobody. A call of nobody gets the agent
        with the caller, and what was said in it before is delivered with the rest. One that is
        somebody's already, or another agent's, stays as it is.

        Raises:
            CallError: the call was never opened (`unknown_call`), or erased (`erased`).
        """
        ...

    async def append(self, turns: Sequence[Turn]) -> None:
        """Store turns, in the order given.

        Promises: on return they survive a crash of this process and of the host (fsynced); a
        turn whose (call, item_id) is stored already is dropped, so append may be repeated; all
        of `turns` or none of them are stored. A turn for a closed call is taken as well.
        Does not promise order between calls, or that Letta has seen anything.

        Raises:
            CallError: a call was never opened (`unknown_call`), or a turn can't be stored
                (`bad_value`): a text is no Unicode (a lone surrogate), a `seq` beyond `MAX_SEQ`.
        """
        ...

    async def rewrite(self, call: str, turns: Sequence[Turn], *, keep: int) -> int:
        """Replace the turns of a call after the first `keep` by these, in one step.

        For a channel that learns later what was really said. A turn in a batch never changes:
        when more than `keep` turns are in batches, nothing is changed.

        Returns:
            How many turns of the call, from its first, are in batches. More than `keep`: nothing
            was changed. A call of nobody has none in batches.

        Raises:
            CallError: as for `append`.
        """
        ...

    async def close_call(self, call: str, *, at_s: float, final: bool = False) -> None:
        """Mark a call as ended: what is pending of it is due at once. Repeating it is no error.

        Args:
            call: Its key.
            at_s: Unix time.
            final: Its channel has had the last word on it. That mark stays, also where the call
                is opened again.

        Raises:
            CallError: the call was never opened (`unknown_call`).
        """
        ...

    async def live_calls(self) -> list[Call]:
        """Return the calls that are not closed, oldest first."""
        ...

    async def recent(
        self, ref: AgentRef, *, caller_key: str, except_call: str, since_s: float, limit: int
    ) -> tuple[Turn, ...]:
        """Return the newest turns of this caller in other calls which Letta had not digested.

        Args:
            ref: Whose memory.
            caller_key: Only turns of calls of this caller; empty returns none.
            except_call: Key of the call that asks.
            since_s: Turns settled before this Unix time are left out (they are in the snapshot).
            limit: At most this many, the newest, oldest first. Dead letters are included.
        """
        ...

    async def agent_of(self, ref: AgentRef) -> str | None:
        """Return the agent id learnt for this lane, or None."""
        ...

    async def learn_agent(self, ref: AgentRef, agent_id: str) -> None:
        """Remember the agent id of a lane. Another one than before forgets its conversations."""
        ...

    async def forget_agent(self, ref: AgentRef) -> None:
        """Forget a learnt agent that is gone, and with it the conversations of its lane."""
        ...

    async def claim(self, limit: int, *, now_s: float, post_timeout_s: float) -> list[Batch]:
        """Take up to `limit` due lanes and return the batch each has to deliver.

        A lane with no open batch gets one sealed first: of the call that is due, or of another call
        of the same caller when what is pending there was said before, due or not. Promises: a batch
        is durable, and marked `sending` with `horizon_s = now_s + post_timeout_s`, before it is
        returned; until it is settled, released or retired no other claim returns its lane. Batches
        that an earlier process left as `sending`, and those released as unknown, come back with
        `in_doubt`; their horizon stays that of the try in doubt.
        """
        ...

    async def take_back(
        self, *, now_s: float, wait_s: float = math.inf, horizon_s: float = math.inf
    ) -> None:
        """Take every batch that is marked as being sent for one in doubt, due now.

        For whoever claims, before its first claim: nothing is under way then. What an earlier
        process stored by another clock is drawn in to the longest it can mean by this one: no
        batch was sealed later than now, no try lands after `now_s + horizon_s`, no lane waits
        for its batch longer than `wait_s`, nor for turns longer than `PostPolicy.max_age_s`.

        Args:
            now_s: Unix time.
            wait_s: Longest wait between two tries.
            horizon_s: Longest time in which a try may land.
        """
        ...

    async def resend(self, batch: Batch, *, now_s: float, post_timeout_s: float) -> Batch:
        """Record a try anew, with a new horizon, and return the batch so renewed.

        For a batch in doubt that was not found, and for one whose claim has aged unsent.
        """
        ...

    async def learn_conversation(self, call: str, conversation_id: str) -> None:
        """Remember Letta's conversation of a call. A later one replaces it."""
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
            over: With `unknown`: Letta is no longer at work on it, the horizon is now.
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
            hold_until_s: No other batch leaves the lane before: the server may still be at work.
        """
        ...

    async def split(self, batch: Batch, *, now_s: float) -> None:
        """Replace a batch of several turns by two of half its turns, due now, the first one first.

        For one of which Letta certainly holds nothing. Repeating it does no harm.
        """
        ...

    async def try_write(self) -> None:
        """Write what changes nothing, durably: returns when turns can be stored, else raises."""
        ...

    async def hurry(self, *, now_s: float) -> None:
        """Make every pending turn due at once. A batch that waits for its next try still waits."""
        ...

    async def next_due_s(self) -> float | None:
        """Return the Unix time at which a claim next finds something, None when nothing waits."""
        ...

    async def wait(self, timeout_s: float) -> None:
        """Return when something may have become due since the last claim, or after `timeout_s`.

        A due time that merely arrives wakes nobody: ask `next_due_s` how long to wait.
        """
        ...

    async def lanes(self) -> list[LaneStatus]:
        """Return every lane that holds something undelivered."""
        ...

    async def backlog(self) -> Backlog:
        """Return what is undelivered; costs no more in a journal that holds years of calls."""
        ...

    async def counts(self) -> JournalCounts:
        """Return totals, for people: looks at every call."""
        ...

    async def erase_settled(self, *, before_s: float) -> int:
        """Erase calls that ended before and hold nothing undelivered or dead; return the turns.

        A call that was never closed has ended with its last turn. What keeps an erased caller's
        calls from coming back (`erase_caller`) goes at the same age.
        """
        ...

    async def held_of_caller(self, caller_key: str) -> CallerHolding:
        """Return what is held of a caller, in whatever state; an empty key holds nothing."""
        ...

    async def erase_caller(self, caller_key: str, *, also: Sequence[str] = (), now_s: float) -> int:
        """Erase every call of a caller, undelivered and dead ones too; return the turns.

        Promises: of the words nothing stays in the journal, nor in its log. The lanes of others
        go on. The agent learnt for the caller is forgotten. The calls can't be opened again
        (`open_call`) until `erase_settled` passes `now_s`; what is kept for that names nobody.

        Args:
            caller_key: Of the caller.
            also: Keys of other calls of the caller, which the journal need not hold.
            now_s: Unix time.

        Raises:
            CallerBusy: a call is live or a batch under way; nothing was erased.
        """
        ...

    async def said_of(self, pieces: Collection[bytes]) -> set[bytes]:
        """Return those of some pieces of UTF-8 text that a stored turn holds. Looks at every turn."""
        ...

    async def batches(self, *, states: Sequence[str], limit: int) -> list[BatchRow]:
        """Return the newest batches in any of these states, newest first."""
        ...

    async def dead_letters(self) -> list[DeadLetter]:
        """Return the batches that were given up, oldest first."""
        ...

    async def replay(self, batch_id: str, *, now_s: float) -> bool:
        """Put a dead letter back into its lane, to be looked up first; False when it is none.

        It is given up no sooner than any batch from now on; `sealed_at_s` stays, since a trace of
        it may be as old as that.
        """
        ...

    async def drop(self, batch_id: str, *, now_s: float) -> bool:
        """Give a dead letter up for good: retention may erase it. False when it is none."""
        ...

    async def calls(self, *, limit: int) -> list[Call]:
        """Return the newest calls, newest first."""
        ...

    async def turns(self, call: str) -> tuple[Turn, ...]:
        """Return all turns of a call, in order; empty for an unknown call."""
        ...

    async def aclose(self) -> None:
        """Finish what is queued and close. Safe to call twice."""
        ...
