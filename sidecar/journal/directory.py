"""What was learnt from Letta: the agent of each lane, and the conversation of each call."""

from typing import Protocol

from sidecar.model import AgentRef


class Directory(Protocol):
    """Remembers durably which agent a lane's caller has.

    Every method may raise `JournalError`; then nothing was stored.
    """

    async def agent_of(self, ref: AgentRef) -> str | None:
        """Return the agent id learnt for this lane, or None."""
        ...

    async def learn_agent(self, ref: AgentRef, agent_id: str) -> None:
        """Remember the agent id of a lane. A changed id forgets the lane's conversations."""
        ...


class Addresses(Directory, Protocol):
    """Also remembers the conversation of each call, and forgets agents that no longer exist."""

    async def forget_agent(self, ref: AgentRef) -> None:
        """Forget a lane's agent that no longer exists, and the conversations of the lane."""
        ...

    async def learn_conversation(self, key: str, conversation_id: str) -> None:
        """Remember Letta's conversation of a call. A later one replaces it."""
        ...
