"""The plug in the line to Letta, which gives the parts behind it a real outage."""

import uuid

import anyio
import anyio.lowlevel
import pytest
from typing_extensions import override

from sidecar.errors import LettaUnavailable, NotAccepted, OutcomeUnknown
from sidecar.letta.plug import PluggedLetta
from sidecar.letta.port import AgentSpec, Post
from sidecar.model import Block
from sidecar.telemetry import Telemetry
from sidecar.testing.fake_letta import FakeLetta

pytestmark = [pytest.mark.unit, pytest.mark.anyio, pytest.mark.backend("asyncio", "trio")]

BLOCKS = (Block("human", "Name: Ada"),)


async def made() -> tuple[PluggedLetta, FakeLetta, Post]:
    fake = FakeLetta(clock=lambda: 0.0)
    plug = PluggedLetta(fake, emit=Telemetry(strict=True).emit)
    agent = await plug.create_agent(AgentSpec("a", "", BLOCKS, ("t",)))
    conversation = await plug.open_conversation(agent, label="c")
    return plug, fake, Post(str(uuid.uuid4()), agent, conversation, "words", 0.0)


async def test_plugged_in_it_is_not_there() -> None:
    """While plugged in, every request and answer passes unchanged."""
    plug, fake, post = await made()
    assert plug.name == fake.name
    assert [block.value for block in await plug.read_blocks(post.agent_id)] == ["Name: Ada"]
    await plug.post(post)
    assert await plug.find(post) == await fake.find(post) != "absent"


async def test_pulled_nothing_gets_through() -> None:
    """While unplugged, a post is not accepted, other requests fail, and all work again later."""
    plug, fake, post = await made()
    plug.pull()
    with pytest.raises(NotAccepted):
        await plug.post(post)
    for asked in (
        plug.read_blocks(post.agent_id),
        plug.find(post),
        plug.open_conversation(post.agent_id, label="c"),
        plug.find_agents(("t",)),
        plug.create_agent(AgentSpec("b", "", (), ())),
        plug.delete_agent(post.agent_id),
        plug.erase_agent(post.agent_id),
        plug.erase_conversation(post.agent_id, post.conversation_id),
    ):
        with pytest.raises(LettaUnavailable):
            await asked
    plug.restore()
    assert await plug.find(post) == "absent"
    await plug.post(post)
    assert await fake.find(post) != "absent"


async def test_what_is_under_way_is_cut_off() -> None:
    """A post under way when the plug is pulled has an unknown outcome."""

    class Slow(FakeLetta):
        @override
        async def post(self, post: Post) -> None:
            await anyio.sleep_forever()

    plug = PluggedLetta(Slow(clock=lambda: 0.0), emit=Telemetry(strict=True).emit)
    post = Post(str(uuid.uuid4()), "agent", "conversation", "words", 0.0)
    async with anyio.create_task_group() as tasks:

        async def pull() -> None:
            await anyio.lowlevel.checkpoint()
            plug.pull()

        tasks.start_soon(pull)
        with pytest.raises(OutcomeUnknown):
            await plug.post(post)
