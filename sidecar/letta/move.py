"""Carries an agent from one Letta to another: whole, or block by block. The source stays as it is.

Theory of operation. A moved agent carries a tag with the id of the one it came from, so a second
move finds it and creates no other. Between two Lettas that both know agent files (.af), that file
is carried: the agent's instructions, model, tools, blocks and own messages. Otherwise a new agent
that digests transcripts is created with the blocks and the tags; messages and archival passages
stay behind. What arrived is read back and compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

from sidecar.errors import AgentNotFound, LettaUnavailable
from sidecar.letta.app_server.files import without_own
from sidecar.letta.digest_agent import CALLER_TAG, DIGEST_SYSTEM, own_tags, tags_of_tenant
from sidecar.letta.port import AgentSpec, FoundAgent, Letta
from sidecar.model import Block

MOVED: Final = "voice-moved-from:"

State: TypeAlias = Literal["to move", "moved", "there already", "differs", "taken"]
"""`differs`: moved before, and one of the two has learned since. `taken`: the caller has an agent
at the target that did not come from this one. Both are left alone."""


@dataclass(frozen=True, slots=True)
class Move:
    """What a move would do, or did, with one agent.

    Attributes:
        agent_id: At the source.
        name: Of the agent.
        state: What the move found or did.
        how: By agent file, or block by block.
        target_id: Its id at the target; empty if it is not there yet.
        blocks: Label and length in characters of each block that is carried.
    """

    agent_id: str
    name: str
    state: State
    how: Literal["af", "blocks"]
    target_id: str = ""
    blocks: tuple[tuple[str, int], ...] = ()


@runtime_checkable
class KnowsAgentFiles(Protocol):
    """A Letta that writes and reads .af files."""

    async def export_agent(self, agent_id: str) -> str:
        """Return the agent's file.

        Raises:
            AgentNotFound: no such agent.
            LettaUnavailable: no answer in time.
        """
        ...

    async def import_agent(self, file: str, *, tags: Sequence[str]) -> str:
        """Create an agent from a file, with these tags and no other; return its id.

        Raises:
            Rejected: the server does not take the file.
            LettaUnavailable: it may or may not exist; look for its tags before the next try.
        """
        ...


async def agents_to_move(source: Letta, agent_id: str) -> Sequence[FoundAgent]:
    """Return the agent with this id, or, if it is empty, all that this product made.

    Raises:
        AgentNotFound: no such agent at the source.
        LettaUnavailable: no answer in time.
    """
    found = await source.find_agents(tags_of_tenant(""))
    if not agent_id:
        return found
    own = [agent for agent in found if agent.agent_id == agent_id]
    if own:
        return own
    await source.read_blocks(agent_id)
    return [FoundAgent(agent_id, agent_id, tags_of_tenant(""), 0.0)]


async def plan(source: Letta, target: Letta, agent: FoundAgent) -> Move:
    """Return what a move would do; nothing is changed.

    Raises:
        LettaError: one of the two did not answer.
    """
    blocks = await source.read_blocks(agent.agent_id)
    af = isinstance(source, KnowsAgentFiles) and isinstance(target, KnowsAgentFiles)
    move = Move(
        agent.agent_id,
        agent.name,
        "to move",
        "af" if af else "blocks",
        blocks=tuple((block.label, len(block.value)) for block in blocks),
    )
    moved = await target.find_agents((f"{MOVED}{agent.agent_id}",))
    if moved:
        there = await target.read_blocks(moved[0].agent_id)
        state: State = "there already" if _alike(blocks, there) else "differs"
        return replace(move, state=state, target_id=moved[0].agent_id)
    if any(tag.startswith(CALLER_TAG) for tag in agent.tags):
        taken = await target.find_agents(own_tags(agent.tags))
        if taken:
            return replace(move, state="taken", target_id=taken[0].agent_id)
    return move


async def carry_out(
    source: Letta, target: Letta, agent: FoundAgent, *, model: str, embedding: str
) -> Move:
    """Move an agent if `plan` says that it is to be moved; may be repeated.

    Args:
        source: Where it lives; nothing there is changed.
        target: Where it is to live.
        agent: Of `agents_to_move`.
        model: Handle at the target for an agent made block by block; empty: the target's own.
        embedding: Likewise.

    Raises:
        Rejected: the target does not take the agent.
        LettaUnavailable: one did not answer, or what arrived is not what was sent.
    """
    move = await plan(source, target, agent)
    if move.state != "to move":
        return move
    blocks = await source.read_blocks(agent.agent_id)
    tags = (*_tags(agent), f"{MOVED}{agent.agent_id}")
    if isinstance(source, KnowsAgentFiles) and isinstance(target, KnowsAgentFiles):
        file = await source.export_agent(agent.agent_id)
        made = await target.import_agent(file, tags=tags)
    else:
        spec = AgentSpec(agent.name, DIGEST_SYSTEM, blocks, tags, model, embedding)
        made = await target.create_agent(spec)
    try:
        there = await target.read_blocks(made)
    except AgentNotFound:
        there = ()
    if not _alike(blocks, there):
        raise LettaUnavailable(
            f"agent {made} at {target.name} is not what was sent",
            hint="delete it there and move again; the source is as it was",
        )
    return replace(move, state="moved", target_id=made)


def _tags(agent: FoundAgent) -> tuple[str, ...]:
    return tuple(tag for tag in without_own(agent.tags) if not tag.startswith(MOVED))


def _alike(here: Sequence[Block], there: Sequence[Block]) -> bool:
    """Return whether each block here has the same value there.

    White space at a value's end is ignored: the App Server trims it. Additional blocks there are
    ignored as well: the classic server adds one to some agents.
    """
    said = {block.label: block.value.rstrip() for block in there}
    return all(said.get(block.label) == block.value.rstrip() for block in here)
