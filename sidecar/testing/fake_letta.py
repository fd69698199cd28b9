"""A Letta in memory: virtual time, scripted faults, and a record of what it took.

It stores every post, the same batch twice if it is posted twice: the code under test has to prevent
that. Its look-up tells the truth.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import anyio

from sidecar.errors import (
    AgentNotFound,
    ConversationGone,
    LettaDenied,
    LettaUnavailable,
    NotAccepted,
    OutcomeUnknown,
    Rejected,
    TooLarge,
)
from sidecar.letta.port import AgentSpec, Finding, FoundAgent, Post
from sidecar.model import Block, Passage


class Fault(StrEnum):
    """What happens to one post."""

    NONE = "none"
    REFUSE = "refuse"  # not taken: 503
    BUSY = "busy"  # not taken: 409
    SLOW = "slow"  # taken, answered after `slow_s`
    HANG = "hang"  # lands after `slow_s`, never answered
    HANG_EMPTY = "hang_empty"  # never lands, never answered
    CUT = "cut"  # cut at once, lands after `slow_s`
    LATE = "late"  # cut at once; reaches Letta after `slow_s`, and shows in no look-up before
    CUT_EMPTY = "cut_empty"  # cut at once, never lands
    ERROR_LANDED = "error_landed"  # stored, then answered with 500
    ERROR_EMPTY = "error_empty"  # answered with 500, not stored
    REJECT = "reject"  # 400
    DENY = "deny"  # 401
    AGENT_GONE = "agent_gone"
    CONVERSATION_GONE = "conversation_gone"
    BUG = "bug"  # an error no adapter may let through


@dataclass(frozen=True, slots=True)
class Taken:
    """A post that reached the agent, which works on it from `began_s` to `landed_s`."""

    post: Post
    began_s: float
    landed_s: float


@dataclass(slots=True)
class _Agent:
    spec: AgentSpec
    created_at_s: float
    blocks: dict[str, Block] = field(default_factory=dict[str, Block])


class FakeLetta:
    """Implements the port `Letta`.

    Args:
        clock: Unix time in seconds; has to advance while a post sleeps.
        faults: Faults of the posts, in order; none once they are used up.
        latency_s: How long every answer takes.
        slow_s: How long a slow post takes, and after which one that was cut lands.
        any_agent: Every id names an agent, as in a benchmark; otherwise only ids that
            `create_agent` returned.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        faults: Iterable[Fault] = (),
        latency_s: float = 0.02,
        slow_s: float = 5.0,
        any_agent: bool = True,
    ) -> None:
        self._clock = clock
        self._faults = iter(faults)
        self._latency_s = latency_s
        self._slow_s = slow_s
        self._any_agent = any_agent
        self._agents: dict[str, _Agent] = {}
        self._conversations: dict[str, str] = {}
        self._opened = 0
        self._taken: list[Taken] = []
        self.archive: dict[str, list[str]] = {}
        """Texts of archival memory by agent; every question finds all of them."""
        self.search_s = latency_s
        """How long a search in `archive` takes."""
        self.posts = 0
        self.down = False
        """Every call fails, as if nothing were listening."""
        self.lookups_fail = False
        self.context_chars: int | None = None
        """Most characters that the texts of a conversation may have together; None: any number."""

    @property
    def name(self) -> str:
        """See `Letta.name`."""
        return "a Letta for tests"

    # What tests ask

    @property
    def taken(self) -> list[Taken]:
        """What is stored by now, in the order it landed."""
        now_s = self._clock()
        return sorted(
            (taken for taken in self._taken if taken.landed_s <= now_s),
            key=lambda taken: taken.landed_s,
        )

    @property
    def overlaps(self) -> int:
        """How often one agent was at work on two posts at once."""
        count = 0
        until_s: dict[str, float] = {}
        for taken in sorted(self._taken, key=lambda taken: taken.began_s):
            agent = taken.post.agent_id
            count += taken.began_s < until_s.get(agent, 0.0)
            until_s[agent] = max(until_s.get(agent, 0.0), taken.landed_s)
        return count

    @property
    def conversations(self) -> dict[str, str]:
        """Agent by conversation."""
        return dict(self._conversations)

    def forget_conversations(self) -> None:
        """Lose every conversation; what was stored in them stays in `taken`."""
        self._conversations.clear()

    # The port

    async def read_blocks(self, agent_id: str) -> tuple[Block, ...]:
        """See `Letta.read_blocks`."""
        await self._answer()
        agent = self._agents.get(agent_id)
        if agent is None:
            if self._any_agent:
                return ()
            raise AgentNotFound("no such agent")
        return tuple(sorted(agent.blocks.values(), key=lambda block: block.label))

    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        """See `Letta.search_passages`."""
        await self._answer()
        await anyio.sleep(self.search_s - self._latency_s)
        self._check_agent(agent_id)
        found = enumerate(self.archive.get(agent_id, ())[:limit])
        return tuple(Passage(f"passage-{number}", text) for number, text in found)

    async def open_conversation(self, agent_id: str, *, label: str) -> str:
        """See `Letta.open_conversation`."""
        await self._answer()
        self._check_agent(agent_id)
        self._opened += 1
        conversation_id = f"conv-{self._opened}"
        self._conversations[conversation_id] = agent_id
        return conversation_id

    async def post(self, post: Post) -> None:
        """See `Letta.post`."""
        self.posts += 1
        if self.down:
            raise NotAccepted("connection refused")
        fault = next(self._faults, Fault.NONE)
        if fault is Fault.BUG:
            raise KeyError("not ours")
        if fault is Fault.AGENT_GONE or not self._has_agent(post.agent_id):
            raise AgentNotFound("no such agent")
        if (
            fault is Fault.CONVERSATION_GONE
            or self._conversations.get(post.conversation_id) != post.agent_id
        ):
            self._conversations.pop(post.conversation_id, None)
            raise ConversationGone("no such conversation")
        if fault is Fault.REFUSE:
            raise NotAccepted("503")
        if fault is Fault.BUSY:
            raise NotAccepted("409", busy=True)
        if fault is Fault.REJECT:
            raise Rejected("400")
        if fault is Fault.DENY:
            raise LettaDenied("401")
        stored = [
            t.post.text for t in self._taken if t.post.conversation_id == post.conversation_id
        ]
        if self.context_chars and sum(map(len, [*stored, post.text])) > self.context_chars:
            raise TooLarge("the context is full")
        await self._work_on(post, fault)

    async def _work_on(self, post: Post, fault: Fault) -> None:
        slow = fault in {Fault.SLOW, Fault.HANG, Fault.CUT}
        work_s = self._slow_s if slow else self._latency_s
        if fault not in {Fault.HANG_EMPTY, Fault.CUT_EMPTY, Fault.ERROR_EMPTY}:
            now_s = self._clock()
            began_s = now_s + self._slow_s if fault is Fault.LATE else now_s
            self._taken.append(Taken(post, began_s, began_s + work_s))
        if fault in {Fault.CUT, Fault.LATE, Fault.CUT_EMPTY}:
            raise OutcomeUnknown("the connection was cut")
        await anyio.sleep(work_s)
        if fault in {Fault.HANG, Fault.HANG_EMPTY}:
            await anyio.sleep_forever()
        if fault in {Fault.ERROR_LANDED, Fault.ERROR_EMPTY}:
            raise OutcomeUnknown("500", over=True)

    async def find(self, post: Post) -> Finding:
        """See `Letta.find`."""
        await self._answer()
        if self.lookups_fail:
            raise LettaUnavailable("503")
        self._check_agent(post.agent_id)
        now_s = self._clock()
        tries = [
            taken
            for taken in self._taken
            if taken.post.batch_id == post.batch_id and taken.began_s <= now_s
        ]
        if any(taken.landed_s > now_s for taken in tries):
            return "running"
        return "found" if tries else "absent"

    async def find_agents(self, tags: Sequence[str]) -> Sequence[FoundAgent]:
        """See `Letta.find_agents`."""
        await self._answer()
        found = [
            FoundAgent(agent_id, agent.spec.name, tuple(agent.spec.tags), agent.created_at_s)
            for agent_id, agent in self._agents.items()
            if set(tags) <= set(agent.spec.tags)
        ]
        return sorted(found, key=lambda agent: (agent.created_at_s, agent.agent_id))

    async def create_agent(self, spec: AgentSpec) -> str:
        """See `Letta.create_agent`."""
        await self._answer()
        agent_id = f"agent-{len(self._agents) + 1}"
        blocks = {block.label: block for block in spec.blocks}
        self._agents[agent_id] = _Agent(spec, self._clock(), blocks)
        return agent_id

    async def delete_agent(self, agent_id: str) -> None:
        """See `Letta.delete_agent`."""
        await self._answer()
        self._agents.pop(agent_id, None)

    async def erase_agent(self, agent_id: str) -> None:
        """See `Letta.erase_agent`."""
        await self.delete_agent(agent_id)
        for conversation_id, agent in list(self._conversations.items()):
            if agent == agent_id:
                self._forget_conversation(conversation_id)

    async def erase_conversation(self, agent_id: str, conversation_id: str) -> None:
        """See `Letta.erase_conversation`."""
        await self._answer()
        if self._conversations.get(conversation_id) == agent_id:
            self._forget_conversation(conversation_id)

    def _forget_conversation(self, conversation_id: str) -> None:
        del self._conversations[conversation_id]
        self._taken = [t for t in self._taken if t.post.conversation_id != conversation_id]

    async def aclose(self) -> None:
        """See `Letta.aclose`."""

    async def _answer(self) -> None:
        if self.down:
            raise LettaUnavailable("connection refused")
        await anyio.sleep(self._latency_s)

    def _has_agent(self, agent_id: str) -> bool:
        return self._any_agent or agent_id in self._agents

    def _check_agent(self, agent_id: str) -> None:
        if not self._has_agent(agent_id):
            raise AgentNotFound("no such agent")
