"""What was learnt of Letta: where the turns of a caller and of a call go."""

from typing import Protocol

from sidecar.model import AgentRef


class Directory(Protocol):
    """Remembers durably which agent a lane's caller has.

    Every method may raise `JournalError`; then nothing was learnt.
    """

    async def agent_of(self, ref: AgentRef) -> str | None:
        """Return the agent id learnt for this lane, or None."""
        ...

    async def learn_agent(self, ref: AgentRef, agent_id: str) -> None:
        """Remember the agent id of a lane. Another one than before forgets its conversations."""
        ...


class Addresses(Directory, Protocol):
    """Remembers the conversation of each call as well, and forgets what is gone."""

    async def forget_agent(self, ref: AgentRef) -> None:
        """Forget a learnt agent that is gone, and with it the conversations of its lane."""
        ...

    async def learn_conversation(self, call: str, conversation_id: str) -> None:
        """Remember Letta's conversation of a call. A later one replaces it."""
        ...
