"""What retention and forgetting need of the journal: what it stores of a caller, and erasure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.journal.transcripts import Transcripts


@dataclass(frozen=True, slots=True)
class StoredOfCaller:
    """What the journal stores of one caller.

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


class Erasure(Transcripts, Protocol):
    """Erases calls: those that are old enough, or all of one caller.

    Every method may raise `JournalError`; then nothing was erased, unless the error says so.
    """

    async def erase_settled(self, *, before_s: float) -> int:
        """Erase calls that ended before `before_s` and hold nothing undelivered or dead.

        A call that was never closed ended with its last turn. What keeps an erased caller's calls
        from coming back (`erase_caller`) is erased at the same age.

        Returns:
            How many turns were erased.
        """
        ...

    async def stored_of_caller(self, caller_key: str) -> StoredOfCaller:
        """Return what the journal stores of a caller, in any state; nothing for an empty key."""
        ...

    async def erase_caller(
        self,
        caller_key: str,
        *,
        also: Sequence[str] = (),
        agents: Sequence[str] = (),
        now_s: float,
    ) -> int:
        """Erase every call of a caller, undelivered and dead ones too.

        Promises: none of the words stays in the journal or in its log. The lanes of others go on.
        The agent learnt for the caller is forgotten. The calls can't be opened again
        (`Record.open_call`) until `erase_settled` is called with a `before_s` after `now_s`; what
        is stored for that identifies nobody. Nor can what a dead worker left of any other call of
        the caller be stored, if that worker lived no longer than until `now_s`.

        Args:
            caller_key: Key of the caller.
            also: Keys of other calls of the caller, which the journal need not have.
            agents: The caller's own agents: `erased_agents` returns them.
            now_s: Unix time.

        Returns:
            How many turns were erased.

        Raises:
            CallerBusy: a call is live or a batch under way; nothing was erased.
        """
        ...

    async def is_any_erased(self, *, since_s: float) -> bool:
        """Whether a caller was erased since a Unix time, by any replica."""
        ...

    async def erased_agents(self, agent_ids: Collection[str], *, since_s: float) -> set[str]:
        """Return which agents were erased with their callers since a Unix time, by any replica.

        Args:
            agent_ids: Ids of the agents to ask about.
            since_s: Unix time. What `erase_settled` has dropped is not known any more.
        """
        ...

    async def said_of(self, pieces: Collection[bytes]) -> set[bytes]:
        """Return which pieces of UTF-8 text occur in a stored turn. Reads every turn."""
        ...
