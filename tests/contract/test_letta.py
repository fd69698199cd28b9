"""What every Letta promises behind the port, whatever generation it is."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest
from _pytest.mark import ParameterSet

from sidecar.errors import (
    AgentNotFound,
    ConversationGone,
    LettaDenied,
    NotAccepted,
    NotOffered,
    OutcomeUnknown,
    Rejected,
)
from sidecar.letta.port import Finding, Letta, Post
from sidecar.letta.rest.letta import RestLetta
from sidecar.model import Block
from tests.app_server.stack import AppServerStack
from tests.contract.letta_worlds import (
    HUMAN,
    SETTLE_S,
    RestWorld,
    World,
    new_agent,
    new_post,
    next_post,
    open_world,
    until_running,
    value_of,
)
from tests.letta_server.stack import MODEL, LettaStack

pytestmark = [pytest.mark.contract, pytest.mark.anyio]

STAND_INS = ["stand-in", "stand-in-no-redis"]
REAL = ["real", "real-no-redis"]
REST = [*STAND_INS, *REAL]
APP_SERVER = "app-server"
EVERY = ["embedded", *REST, APP_SERVER]
# Those that take one post of a conversation at a time and recognise a batch by its otid.
LOCKING = ["embedded", "stand-in", "real", APP_SERVER]
WITH_KEY = ["stand-in", "real", APP_SERVER]


def marked(kinds: list[str]) -> list[ParameterSet]:
    """Mark the kinds that need the real server, so that a quick run can leave them out."""
    marks = {
        "real": [pytest.mark.real_letta],
        "real-no-redis": [pytest.mark.real_letta, pytest.mark.slow],
        APP_SERVER: [pytest.mark.real_letta],
    }
    return [pytest.param(kind, marks=marks.get(kind, [])) for kind in kinds]


@pytest.fixture(params=marked(EVERY))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def stack(kind: str, request: pytest.FixtureRequest) -> LettaStack | AppServerStack | None:
    if kind == APP_SERVER:
        return request.getfixturevalue("app_server")
    if not kind.startswith("real"):
        return None
    name = "letta_server_without_redis" if "no-redis" in kind else "letta_server"
    return request.getfixturevalue(name)


@pytest.fixture
async def world(
    kind: str, stack: LettaStack | AppServerStack | None, tmp_path: Path
) -> AsyncIterator[World]:
    async with open_world(kind, stack, tmp_path) as opened:
        yield opened


def only(kinds: list[str]) -> pytest.MarkDecorator:
    """Run a test in these worlds only."""
    return pytest.mark.parametrize("kind", marked(kinds))


async def found_in_the_end(letta: Letta, post: Post) -> Finding:
    """Look up until nothing is at work."""
    with anyio.fail_after(SETTLE_S):
        while (finding := await letta.find(post)) == "running":  # noqa: ASYNC110 - no event for it
            await anyio.sleep(0.1)
    return finding


# Memory


async def test_blocks_come_whole_exact_and_sorted(world: World) -> None:
    """A read returns every block, sorted by label, with its value unchanged."""
    written = (
        Block("zeta", "tab\there\nand a line", "last"),
        Block("alpha", "Grüße, 你好, 🦜‍🔥, <human>&amp;</human>", "first", limit_chars=9_000),
        Block("empty", "", "nothing yet"),
        Block(
            "long",
            "0123456789abcdeé" * (world.longest_chars // 16),
            "as long as can be",
            limit_chars=30_000,
        ),
        Block("rules", "be kind", "not yours to change", read_only=True),
    )
    agent_id = await new_agent(world, *written)
    read = await world.letta.read_blocks(agent_id)
    assert [block.label for block in read] == ["alpha", "empty", "long", "rules", "zeta"]
    for block in written:
        got = next(b for b in read if b.label == block.label)
        assert (got.value, got.description, got.read_only) == (
            block.value,
            block.description,
            block.read_only,
        )
        if block.limit_chars is not None:
            assert got.limit_chars == block.limit_chars


async def test_the_next_read_shows_what_a_post_changed(world: World) -> None:
    """When a post returns, the next read returns the block that its agent changed."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Likes Grüntee ☕]]")
    await world.letta.post(post)
    assert "Likes Grüntee ☕" in await value_of(world.letta, agent_id)
    assert await world.copies(post) == 1
    assert await world.letta.find(post) == "found"


async def test_batches_of_a_conversation_keep_their_order(world: World) -> None:
    """Batches posted one after the other are stored in that order, each once."""
    agent_id = await new_agent(world)
    first = await new_post(world, agent_id, "one")
    posts = [first, *(next_post(agent_id, first.conversation_id, w) for w in ("two", "three"))]
    for post in posts:
        await world.letta.post(post)
    texts = await world.texts(first)
    if isinstance(world, RestWorld):
        texts.reverse()  # newest first on the wire
    assert texts == [post.text for post in posts]


# Archival memory


@only(["embedded", *REST])
async def test_archival_memory_is_searched(world: World) -> None:
    """A search returns whole passages that the agent archived, and at most as many as asked for."""
    agent_id = await new_agent(world)
    assert await world.letta.search_passages(agent_id, "boat", limit=5) == ()
    await world.archive(agent_id, "Her boat is called Möwe,\nand lies in Hyères.")
    await world.archive(agent_id, "The boat was bought in 1998.")
    found = await world.letta.search_passages(agent_id, "Which boat?", limit=5)
    texts = {"Her boat is called Möwe,\nand lies in Hyères.", "The boat was bought in 1998."}
    assert {passage.text for passage in found} == texts
    assert len({passage.passage_id for passage in found}) == 2
    assert len(await world.letta.search_passages(agent_id, "Which boat?", limit=1)) == 1


@only(["embedded", *REST])
async def test_archival_memory_is_the_agents_own(world: World) -> None:
    """A search returns nothing of another agent's, and fails for an agent that is gone."""
    agent_id, other = await new_agent(world), await new_agent(world)
    await world.archive(other, "Her boat is called Möwe.")
    assert await world.letta.search_passages(agent_id, "boat", limit=5) == ()
    await world.letta.delete_agent(other)
    for gone in (other, "agent-local-7"):
        with pytest.raises(AgentNotFound):
            await world.letta.search_passages(gone, "boat", limit=5)


@only([APP_SERVER])
async def test_a_letta_without_an_archive_says_so(world: World) -> None:
    """A search on the App Server, which has no archival memory, is an error, not empty."""
    agent_id = await new_agent(world)
    with pytest.raises(NotOffered):
        await world.letta.search_passages(agent_id, "boat", limit=5)


# Agents


async def test_agents_are_found_by_all_of_their_tags(world: World) -> None:
    """Only agents that carry every tag asked for are found, oldest first."""
    mine, other, shared = (f"tag-{uuid.uuid4().hex}" for _ in range(3))
    both = [
        await world.letta.create_agent(world.spec(HUMAN, tags=(shared, mine, "more")))
        for _ in range(2)
    ]
    await world.letta.create_agent(world.spec(HUMAN, tags=(shared, other)))
    await world.letta.create_agent(world.spec(HUMAN, tags=(mine,)))
    found = await world.letta.find_agents((shared, mine))
    assert [agent.agent_id for agent in found] == both
    assert all({shared, mine} <= set(agent.tags) for agent in found)
    assert await world.letta.find_agents((shared, mine, other)) == []


async def test_a_deleted_agent_is_gone_everywhere(world: World) -> None:
    """Reading, opening, posting or looking up fails for a deleted agent, instead of being empty."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id)
    await world.letta.delete_agent(agent_id)
    await world.letta.delete_agent(agent_id)
    for asked in (
        partial(world.letta.read_blocks, agent_id),
        partial(world.letta.open_conversation, agent_id, label="a call"),
        partial(world.letta.post, post),
        partial(world.letta.find, post),
    ):
        with pytest.raises(AgentNotFound):
            await asked()


async def test_an_agent_of_another_letta_is_not_found(world: World) -> None:
    """An agent id in another Letta's form is an agent not found, not a fault."""
    for stranger in ("agent-local-7", str(uuid.uuid4()), f"agent-{uuid.uuid4()}"):
        with pytest.raises(AgentNotFound):
            await world.letta.read_blocks(stranger)


# Posting once


@only(LOCKING)
async def test_the_same_post_twice_is_stored_once(world: World) -> None:
    """A batch posted again under its otid is stored once and digested once."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Has 1 dog]]")
    await world.letta.post(post)
    await world.letta.post(post)
    assert await world.copies(post) == 1
    assert (await value_of(world.letta, agent_id)).count("Has 1 dog") == 1


@only(LOCKING)
async def test_the_same_post_at_once_is_stored_once(world: World) -> None:
    """Two posts of a batch at the same time both join its one run and store it once."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Has 1 dog]]")
    await world.stall_model()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.letta.post, post)
        await until_running(world.letta, post)
        tasks.start_soon(world.letta.post, post)
        assert await world.letta.find(post) == "running"  # behind the second post
        await world.release_model()
    assert await world.copies(post) == 1


@only(LOCKING)
async def test_a_conversation_at_work_is_busy(world: World) -> None:
    """A second batch for a busy conversation is refused, not stored, and is taken later."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "one")
    second = next_post(agent_id, post.conversation_id, "two")
    await world.stall_model()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.letta.post, post)
        await until_running(world.letta, post)
        with pytest.raises(NotAccepted) as refused:
            await world.letta.post(second)
        assert refused.value.busy
        await world.release_model()
    assert await world.letta.find(second) == "absent"
    await world.letta.post(second)
    assert [await world.copies(post), await world.copies(second)] == [1, 1]


async def test_a_message_is_found_when_its_run_is_over(world: World) -> None:
    """While the agent is at work, a look-up says "running" and never "absent"."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id)
    assert await world.letta.find(post) == "absent"
    await world.stall_model()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.letta.post, post)
        await until_running(world.letta, post)
        if not world.stores_at_start:
            assert await world.copies(post) == 0, "not listed yet, and yet accepted"
        await world.release_model()
    assert await world.letta.find(post) == "found"


async def test_a_failed_run_leaves_nothing_and_goes_in_later(world: World) -> None:
    """A batch whose runs failed is absent at once, and is stored once when the model is back."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Plays chess]]")
    await world.break_model(broken=True)
    for _ in range(2):
        with pytest.raises(OutcomeUnknown) as unknown:
            await world.letta.post(post)
        assert unknown.value.over
        assert await world.letta.find(post) == "absent"
    await world.break_model(broken=False)
    await world.letta.post(post)
    assert await world.letta.find(post) == "found"
    assert await world.copies(post) == 1
    assert (await value_of(world.letta, agent_id)).count("Plays chess") == 1


@only(REST)
async def test_a_failed_run_is_overcome_after_a_restart_of_ours(world: RestWorld) -> None:
    """An adapter that knows nothing of the failed run still delivers the batch once."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id)
    await world.break_model(broken=True)
    with pytest.raises(OutcomeUnknown):
        await world.letta.post(post)
    await world.break_model(broken=False)
    restarted = RestLetta(world.base_url, world.bare.api_key)
    world.opened.append(restarted)
    assert await restarted.find(post) == "absent"
    await restarted.post(post)
    assert await restarted.find(post) == "found"
    assert await world.copies(post) == 1


async def test_a_cut_post_is_never_lost_or_doubled(world: World) -> None:
    """After a post is cut off mid-run, a look-up in the end says whether it was stored."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Was cut off]]")
    await world.stall_model()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.letta.post, post)
        await until_running(world.letta, post)
        tasks.cancel_scope.cancel()
    await world.release_model()
    finding = await found_in_the_end(world.letta, post)
    if not world.stores_at_start:
        assert await world.copies(post) == (1 if finding == "found" else 0)
    if finding == "absent":
        await world.letta.post(post)
    assert await world.copies(post) == 1
    assert (await value_of(world.letta, agent_id)).count("Was cut off") == 1


@only(REST)
async def test_a_slow_digest_is_unknown_and_not_over(world: RestWorld) -> None:
    """A post past its deadline may still land: it is unknown, not over, and found in the end."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id)
    hasty = RestLetta(world.base_url, world.bare.api_key, post_timeout_s=2.0)
    world.opened.append(hasty)
    await world.stall_model()
    with pytest.raises(OutcomeUnknown) as unknown:
        await hasty.post(post)
    assert not unknown.value.over
    await until_running(hasty, post)
    await world.release_model()
    assert await found_in_the_end(hasty, post) == "found"
    assert await world.copies(post) == 1


@only(["stand-in-no-redis", "real-no-redis"])
async def test_a_batch_far_back_is_found(world: World) -> None:
    """A batch is found by its message even when many others came after it."""
    agent_id = await new_agent(world)
    first = await new_post(world, agent_id, "the first")
    await world.letta.post(first)
    for _ in range(35):  # four messages each on the real server, and its page holds a hundred
        await world.letta.post(next_post(agent_id, first.conversation_id, "later"))
    assert await world.letta.find(first) == "found"
    never = next_post(agent_id, first.conversation_id, "never sent")
    assert await world.letta.find(replace(never, first_sent_at_s=first.first_sent_at_s)) == "absent"


# Refusals


@only(REAL)
async def test_a_deleted_conversation_asks_for_a_new_one(world: RestWorld) -> None:
    """A post to a deleted conversation stores nothing; the batch can go into a new one."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id)
    await world.delete_conversation(post)
    with pytest.raises(ConversationGone):
        await world.letta.post(post)
    assert await world.letta.find(post) == "absent"
    again = await world.letta.open_conversation(agent_id, label="a call")
    moved = replace(post, conversation_id=again)
    await world.letta.post(moved)
    assert await world.copies(moved) == 1


@only(REAL)
async def test_a_conversation_that_waits_for_approval_asks_for_a_new_one(world: RestWorld) -> None:
    """A conversation that waits for a tool's approval takes no batch, and a new one does."""
    made = await world.bare.agents.create(
        agent_type="letta_v1_agent",
        name="asks first",
        model=MODEL,
        include_base_tools=False,
        tools=["memory_insert"],
        tool_rules=[{"type": "requires_approval", "tool_name": "memory_insert"}],
        memory_blocks=[{"label": "human", "value": ""}],
    )
    first = await new_post(world, made.id, "[[remember human: Sings]]")
    await world.letta.post(first)
    second = next_post(made.id, first.conversation_id, "[[remember human: Dances]]")
    with pytest.raises(ConversationGone):
        await world.letta.post(second)
    assert await world.letta.find(second) == "absent"
    again = await world.letta.open_conversation(made.id, label="a call")
    moved = replace(second, conversation_id=again)
    await world.letta.post(moved)
    assert await world.copies(moved) == 1


async def test_a_conversation_of_another_letta_asks_for_a_new_one(world: World) -> None:
    """A conversation id in another Letta's form counts as a conversation that is gone."""
    agent_id = await new_agent(world)
    post = next_post(agent_id, "conversation-7", "hello")
    with pytest.raises(ConversationGone):
        await world.letta.post(post)
    assert await world.letta.find(post) == "absent"


@only(WITH_KEY)
async def test_a_wrong_key_is_denied_everywhere(world: World) -> None:
    """A request with the wrong key is denied, not reported as absent or unavailable."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id)
    denied = world.with_wrong_key()
    for asked in (
        partial(denied.read_blocks, agent_id),
        partial(denied.open_conversation, agent_id, label="a call"),
        partial(denied.post, post),
        partial(denied.find, post),
        partial(denied.find_agents, ("contract",)),
        partial(denied.create_agent, world.spec(HUMAN)),
        partial(denied.delete_agent, agent_id),
    ):
        with pytest.raises(LettaDenied):
            await asked()
    assert await world.copies(post) == 0


@only(["real", APP_SERVER])
async def test_a_spec_the_server_does_not_take_is_rejected(world: World) -> None:
    """Creating an agent with an unknown model is rejected, and the error names the setting."""
    spec = replace(world.spec(HUMAN), model="nobody/no-such-model")
    with pytest.raises(Rejected, match="LETTA_AGENT_MODEL"):
        await world.letta.create_agent(spec)


@only(["real", APP_SERVER])
async def test_an_empty_model_is_chosen_from_what_the_server_has(world: World) -> None:
    """Without a configured model, the agent runs on one the server lists, and digests."""
    spec = replace(world.spec(HUMAN), model="", embedding="")
    agent_id = await world.letta.create_agent(spec)
    await world.letta.post(await new_post(world, agent_id, "[[remember human: Sings]]"))
    assert "Sings" in await value_of(world.letta, agent_id)


async def test_closing_twice_is_no_error(world: World) -> None:
    """An adapter may be closed twice."""
    await world.letta.aclose()
    await world.letta.aclose()
