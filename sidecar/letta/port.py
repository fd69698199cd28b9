"""What the sidecar needs of any Letta, with the promises each adapter keeps.

One contract suite (tests/contract/test_letta.py) runs against every adapter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from sidecar.model import Block, Passage

Finding: TypeAlias = Literal["found", "running", "absent"]


@dataclass(frozen=True, slots=True)
class Post:
    """One batch on its way to Letta.

    Attributes:
        batch_id: A UUID, sent as `otid`, and carried in `text` as well.
        agent_id: The agent that digests it.
        conversation_id: The conversation of the call, of this agent.
        text: One user message: the tagged transcript of the batch.
        first_sent_at_s: Unix time of the first try: no trace of it can be older.
        final: No other batch of its call comes after it.
    """

    batch_id: str
    agent_id: str
    conversation_id: str
    text: str
    first_sent_at_s: float
    final: bool = False


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent fit to digest transcripts.

    Attributes:
        name: Shown to the owner; holds no number.
        system: The agent's instructions; empty takes the server's own.
        blocks: Its first memory.
        tags: The tags by which it is found again.
        model: Model handle in the server's form, empty for the server's default.
        embedding: Embedding handle, empty for the server's default.
        metadata: Free values kept with the agent.
    """

    name: str
    system: str
    blocks: Sequence[Block]
    tags: Sequence[str]
    model: str = ""
    embedding: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class FoundAgent:
    """An agent found by tag. `created_at_s` is Unix time; ties are broken by id."""

    agent_id: str
    name: str
    tags: tuple[str, ...]
    created_at_s: float


class Letta(Protocol):
    """A Letta of any generation.

    Every method has a deadline and either returns or raises a `sidecar.errors.LettaError`; it never
    raises a library's error, and never retries by itself.
    Every method may raise `LettaDenied` when the key is refused.
    """

    @property
    def name(self) -> str:
        """What it is and where, for people: no key in it."""
        ...

    async def read_blocks(self, agent_id: str) -> tuple[Block, ...]:
        """Return all blocks of the agent, sorted by label; one request.

        Promises: what a settled post changed before this call started is in the answer.

        Raises:
            AgentNotFound: no such agent (never an empty answer in its place).
            LettaUnavailable: no answer in time, or a fault of the server.
        """
        ...

    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        """Return what the agent's archival memory holds on a question, best first.

        Promises: passages of this agent alone, at most `limit`; one request, within the deadline
        of a read.
        Does not promise that they answer the question: a server that searches by meaning returns
        the nearest there are, however far, and no measure of it.

        Raises:
            NotOffered: this generation has no archival memory.
            AgentNotFound: no such agent.
            LettaUnavailable: no answer in time, or a fault of the server.
        """
        ...

    async def open_conversation(self, agent_id: str, *, label: str) -> str:
        """Start a conversation of the agent and return its id.

        Promises nothing if the answer was lost: a conversation may exist then, and stays empty.

        Raises:
            AgentNotFound: no such agent.
            LettaUnavailable: it may or may not exist; opening another one does no harm.
        """
        ...

    async def post(self, post: Post) -> None:
        """Give the agent one batch and return when it has digested it.

        Promises: on return the message is part of the conversation and every block edit of this
        run is visible to the next `read_blocks`.
        Does not promise that the same batch posted twice is stored once on every server: see
        `find`, and the windows in docs/letta.md.

        Raises:
            NotAccepted: certainly not taken; the same post may be sent again later.
            OutcomeUnknown: perhaps taken; `find` first.
            Rejected: not taken, and the same post never will be.
            AgentNotFound: the agent is gone.
            ConversationGone: the agent exists, the conversation does not.
        """
        ...

    async def find(self, post: Post) -> Finding:
        """Look up a post of unknown outcome.

        Returns:
            `found`: the message is stored, the run is over. `running`: a run that may be ours is
            still at work. `absent`: no trace, and nothing at work that could still leave one; also
            returned when the conversation is gone.

        Raises:
            LettaUnavailable: the look-up failed; nothing is known.
            AgentNotFound: the agent is gone.
        """
        ...

    async def find_agents(self, tags: Sequence[str]) -> Sequence[FoundAgent]:
        """Return the agents that carry all of `tags`, oldest first.

        Raises:
            LettaUnavailable: no answer in time, or a fault of the server.
        """
        ...

    async def create_agent(self, spec: AgentSpec) -> str:
        """Create an agent that digests transcripts and return its id.

        Raises:
            LettaUnavailable: it may or may not exist; look for its tags before the next try.
            Rejected: the server does not take this spec; the message names why.
        """
        ...

    async def delete_agent(self, agent_id: str) -> None:
        """Delete an agent. One that is gone already is no error."""
        ...

    async def erase_agent(self, agent_id: str) -> None:
        """Delete an agent that is one caller's alone, and every block that no other agent uses.

        Promises: on return neither the agent nor those blocks can be read any more; may be
        repeated until it returns. Does not promise what the server keeps in backups and logs.

        Raises:
            LettaUnavailable: perhaps some of it is left; repeat it.
        """
        ...

    async def erase_conversation(self, agent_id: str, conversation_id: str) -> None:
        """Delete a conversation with its messages; one that is gone already is no error.

        Does not promise that the agent's blocks lose what it learnt there, nor that the server
        overwrites the messages: the classic one marks them as deleted and keeps the rows.

        Raises:
            LettaUnavailable: perhaps it is left; repeat it.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        ...
