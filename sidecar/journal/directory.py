"""What was learnt from Letta: the agent of each lane, and the conversation of each call.

Several sidecars may learn at once: the first one's word counts for all.
"""

from typing import Protocol

from sidecar.model import AgentRef


class Directory(Protocol):
    """Remembers durably which agent a lane's caller has.

    Every method may raise `JournalError`; then nothing was stored.
    """

    async def agent_of(self, ref: AgentRef) -> str | None:
        """Return the agent id learnt for this lane, or None."""
        ...

    async def learn_agent(self, ref: AgentRef, agent_id: str, *, instead_of: str = "") -> str:
        """Remember the agent id of a lane, if none is remembered, and return the one that is.

        Args:
            ref: Of the lane.
            agent_id: The agent.
            instead_of: It is replaced if it is this one, and the lane's conversations forgotten.
        """
        ...


class Addresses(Directory, Protocol):
    """Also remembers the conversation of each call, and forgets agents that no longer exist."""

    async def forget_agent(self, ref: AgentRef, agent_id: str) -> None:
        """Forget a lane's agent that no longer exists, and the conversations of the lane.

        No effect if another one is remembered by now.
        """
        ...

    async def learn_conversation(
        self, key: str, conversation_id: str, *, agent_id: str, instead_of: str = ""
    ) -> str:
        """Remember Letta's conversation of a call, if none is, and return the one that is.

        Args:
            key: Of the call; one that was erased remembers nothing.
            conversation_id: The conversation.
            agent_id: Whose it is; nothing is remembered if another one has been learnt since.
            instead_of: It is replaced if it is this one.

        Returns:
            Empty: there is none, because another agent has been learnt.
        """
        ...
