"""Oddities of the App Server in which the adapter must not lose, double or invent anything."""

import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import anyio
import pytest

from sidecar.errors import (
    AgentNotFound,
    ConversationGone,
    LettaDenied,
    LettaUnavailable,
    NotAccepted,
    OutcomeUnknown,
)
from sidecar.letta.app_server.conversation import ALLOWED
from sidecar.letta.app_server.letta import AppServerLetta
from sidecar.letta.app_server.memory import AgentMemory
from sidecar.letta.port import Letta, Post
from sidecar.llm.port import ToolCall
from sidecar.model import Block
from tests.app_server.cuttable import Cuttable
from tests.app_server.scripted import IDLE, Frame, Say, scripted
from tests.app_server.stack import AppServerStack
from tests.contract.letta_worlds import (
    HUMAN,
    AppServerWorld,
    new_agent,
    new_post,
    next_post,
    takes_nothing,
    until_running,
    value_of,
)

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.real_letta,
    pytest.mark.anyio,
]

SETTLE_S = 45.0
CUT_OFF_TRIES = 5


@pytest.fixture
async def world(app_server: AppServerStack) -> AsyncIterator[AppServerWorld]:
    opened = AppServerWorld(app_server)
    yield opened
    await opened.slow_model(0.0)
    await opened.release_model()
    await opened.aclose()


async def delivered(letta: Letta, post: Post) -> Post:
    """Post as the relay does; return the post with the conversation it ended in."""
    with anyio.fail_after(SETTLE_S):
        while True:
            try:
                finding = await letta.find(post)
                if finding == "found":
                    return post
                if finding == "absent":
                    await letta.post(post)
                    return post
            except ConversationGone:
                opened = await letta.open_conversation(post.agent_id, label="a call")
                post = replace(post, conversation_id=opened)
            except (LettaUnavailable, NotAccepted, OutcomeUnknown):
                pass
            await anyio.sleep(0.2)


async def until_it_says(world: AppServerWorld, agent_id: str, words: str) -> None:
    with anyio.fail_after(SETTLE_S):
        while words not in await value_of(world.letta, agent_id):  # noqa: ASYNC110 - no event
            await anyio.sleep(0.05)


async def post_in_vain(letta: Letta, post: Post) -> None:
    with pytest.raises(OutcomeUnknown):
        await letta.post(post)


# Sockets


async def test_a_turn_outlives_the_socket_it_came_over(world: AppServerWorld) -> None:
    """A socket lost mid-turn costs nothing: the batch is stored once and digested once."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Has 2 sockets]]")
    async with Cuttable.before(world.stack.url) as proxy:
        letta = AppServerLetta(proxy.url, world.stack.token)
        world.opened.append(letta)
        await letta.read_blocks(agent_id)
        before = set(proxy.links)
        await world.slow_model(1.0)
        async with anyio.create_task_group() as tasks:

            async def post_until_cut() -> None:
                with suppress(OutcomeUnknown):
                    await letta.post(post)

            tasks.start_soon(post_until_cut)
            await at_work(world, post)
            first = next(link for link in proxy.links if link not in before)
            proxy.cut(first)
        await world.slow_model(0.0)
        ended = await delivered(letta, post)
        assert ended.conversation_id == post.conversation_id, "the conversation is still good"
        await letta.aclose()
    assert await world.copies(post) == 1
    assert (await value_of(world.letta, agent_id)).count("Has 2 sockets") == 1


async def at_work(world: AppServerWorld, post: Post) -> None:
    """Wait until the model is asked about a post, which is stored before that."""

    def asked() -> bool:
        return any(post.batch_id in str(body) for body in world.stack.llm_requests(newest=10))

    with anyio.fail_after(SETTLE_S):
        while not await anyio.to_thread.run_sync(asked):  # noqa: ASYNC110 - no event for it
            await anyio.sleep(0.05)
    assert await world.copies(post)


@pytest.mark.parametrize("edited", [False, True])
async def test_with_every_socket_lost_nothing_is_lost_or_doubled(
    world: AppServerWorld, *, edited: bool
) -> None:
    """With all sockets lost mid-turn, the batch is stored once and no edit is made twice."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Was wedged]]")
    async with Cuttable.before(world.stack.url) as proxy:
        letta = AppServerLetta(proxy.url, world.stack.token)
        world.opened.append(letta)
        await world.slow_model(1.5)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post_in_vain, letta, post)
            await (until_it_says(world, agent_id, "Was wedged") if edited else at_work(world, post))
            proxy.cut(*proxy.links)
        await world.slow_model(0.0)
        ended = await delivered(letta, post)
        await letta.aclose()
    if not edited:
        assert ended.conversation_id != post.conversation_id
    assert await world.copies(ended) == 1
    assert await world.letta.find(ended) == "found"
    assert (await value_of(world.letta, agent_id)).count("Was wedged") == 1


async def test_a_conversation_that_was_cut_off_takes_nothing_more(world: AppServerWorld) -> None:
    """A conversation cut off mid-turn takes no further batch: it reports an active turn forever."""
    # Where the next batch comes before the server has noticed the cut, the turn is cancelled only
    # then, and the conversation goes on: another one is cut off.
    for _ in range(CUT_OFF_TRIES - 1):
        with suppress(ConversationGone):
            await cut_off_and_offered(world)
            continue
        return
    with pytest.raises(ConversationGone):
        await cut_off_and_offered(world)


async def cut_off_and_offered(world: AppServerWorld) -> None:
    """Cut off a new conversation mid-turn, and post a further batch to it."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id)
    async with Cuttable.before(world.stack.url) as proxy:
        letta = AppServerLetta(proxy.url, world.stack.token)
        world.opened.append(letta)
        await world.slow_model(4.0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post_in_vain, letta, post)
            await at_work(world, post)
            proxy.cut(*proxy.links)
        await world.slow_model(0.0)
        await letta.aclose()
    await offered(world.letta, agent_id, post.conversation_id)


async def offered(letta: Letta, agent_id: str, conversation_id: str) -> None:
    """Post a further batch, again and again while the turn that was cut off is in its way.

    Its cancellation may come only then, and be seen by the further batch.
    """
    with anyio.fail_after(SETTLE_S):
        while True:
            try:
                await letta.post(next_post(agent_id, conversation_id, "the next batch"))
            except (NotAccepted, OutcomeUnknown):
                await anyio.sleep(0.1)
            else:
                return


async def test_a_sidecar_that_died_is_waited_for_and_then_replaced(world: AppServerWorld) -> None:
    """An unanswered message of another process counts as running until the cut-off, then absent."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Came back]]")
    async with Cuttable.before(world.stack.url) as proxy:
        dead = AppServerLetta(proxy.url, world.stack.token)
        world.opened.append(dead)
        await world.slow_model(1.5)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post_in_vain, dead, post)
            await at_work(world, post)
            proxy.cut(*proxy.links)
        await dead.aclose()
    await world.slow_model(0.0)
    assert await world.letta.find(post) == "running"
    later = AppServerLetta(world.stack.url, world.stack.token, run_cutoff_s=0.0)
    world.opened.append(later)
    assert await later.find(post) == "absent"
    ended = await delivered(later, post)
    assert await world.copies(ended) == 1
    assert (await value_of(world.letta, agent_id)).count("Came back") == 1


async def test_a_server_killed_mid_turn_loses_and_doubles_nothing(world: AppServerWorld) -> None:
    """A batch cut off by `kill -9` of the App Server is digested later, and edits memory once."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Saw it die]]")
    await world.slow_model(1.5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(post_in_vain, world.letta, post)
        await at_work(world, post)
        world.stack.kill_server()
    try:
        await takes_nothing(world.letta, agent_id, post)
    finally:
        world.stack.start_server()
    await world.slow_model(0.0)
    ended = await delivered(world.letta, post)
    assert await world.letta.find(ended) == "found"
    assert [await world.copies(post), await world.copies(ended)] == [1, 1]
    assert (await value_of(world.letta, agent_id)).count("Saw it die") == 1


# Inputs


async def test_what_was_accepted_and_not_run_goes_out_again() -> None:
    """An input that is accepted but never starts is sent once more, under a new id."""
    ids: list[str] = []
    runtime = {"agent_id": "a", "conversation_id": "c"}

    async def drops_the_first(frame: Frame, say: Say) -> None:
        request = {"request_id": frame["request_id"], "success": True}
        if frame["type"] == "runtime_start":
            await say({"type": "update_loop_status", "loop_status": IDLE, "runtime": runtime})
            await say({"type": "runtime_start_response", "runtime": runtime, **request})
        elif frame["type"] == "input":
            ids.append(frame["payload"]["messages"][0]["client_message_id"])
            await say(
                {"type": "input_accepted", "accepted": True, "disposition": "started", **request}
            )
            if len(ids) > 1:
                ran = {**IDLE, "status": "WORKING", "client_message_ids_by_run_id": {"r": ids[1:]}}
                await say({"type": "update_loop_status", "loop_status": ran, "runtime": runtime})
                end = {"type": "turn_finished", "stop_reason": "end_turn", "run_id": "r"}
                await say({**end, "runtime": runtime})
        else:
            await say({"type": f"{frame['type']}_response", "messages": [], **request})

    async with scripted(drops_the_first) as url:
        letta = AppServerLetta(url, None)
        await letta.post(next_post("a", "c", "hello"))
        await letta.aclose()
    assert len(set(ids)) == 2


async def test_an_input_that_was_queued_is_taken_back() -> None:
    """A queued batch is taken back, since the server merges queued inputs into one."""
    removed: list[str] = []
    runtime = {"agent_id": "a", "conversation_id": "c"}

    async def queues(frame: Frame, say: Say) -> None:
        request = {"request_id": frame["request_id"], "success": True}
        if frame["type"] == "runtime_start":
            await say({"type": "runtime_start_response", "runtime": runtime, **request})
        elif frame["type"] == "input":
            message_id = frame["payload"]["messages"][0]["client_message_id"]
            await say(
                {"type": "input_accepted", "accepted": True, "disposition": "queued", **request}
            )
            queue = [{"id": "q-1", "client_message_id": message_id}]
            await say({"type": "update_queue", "queue": queue, "runtime": runtime})
        else:
            if frame["type"] == "remove_queue_item":
                removed.append(frame["item_id"])
            await say({"type": f"{frame['type']}_response", "messages": [], **request})

    async with scripted(queues) as url:
        letta = AppServerLetta(url, None)
        with pytest.raises(NotAccepted) as refused:
            await letta.post(next_post("a", "c", "hello"))
        await letta.aclose()
    assert refused.value.busy
    assert removed == ["q-1"]


async def test_a_batch_is_one_user_message_in_a_conversation_of_its_call(
    world: AppServerWorld,
) -> None:
    """A batch is a user message outside `default`: that one locks, and other roles are dropped."""
    posts = [await new_post(world, await new_agent(world), "one") for _ in range(2)]
    assert len({"default", *(post.conversation_id for post in posts)}) == 3
    for post in posts:
        await world.letta.post(post)
        (text,) = await world.texts(post)
        assert post.text in text


async def test_a_turn_of_another_process_is_busy(world: AppServerWorld) -> None:
    """A conversation busy with another process refuses a batch, and takes it later."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "one")
    second = next_post(agent_id, post.conversation_id, "two")
    other = AppServerLetta(world.stack.url, world.stack.token)
    world.opened.append(other)
    await world.stall_model()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other.post, post)
        await until_running(other, post)
        await at_work(world, post)
        assert await world.letta.find(post) == "running"
        with pytest.raises(NotAccepted) as refused:
            await world.letta.post(second)
        assert refused.value.busy
        await world.release_model()
    await world.letta.post(second)
    assert [await world.copies(post), await world.copies(second)] == [1, 1]


async def test_the_agent_has_our_tools_and_no_other(world: AppServerWorld) -> None:
    """The model is offered our memory tools alone, so callers' words can't reach a shell."""
    agent_id = await new_agent(world)
    await anyio.to_thread.run_sync(lambda: world.stack.control_llm(clear=True))
    await world.letta.post(await new_post(world, agent_id, "[[remember human: Sings]]"))
    requests = await anyio.to_thread.run_sync(world.stack.llm_requests)
    assert len(requests) >= 2
    for request in requests:
        assert {tool["function"]["name"] for tool in request["tools"]} == set(ALLOWED)


async def test_reflection_is_turned_off(world: AppServerWorld) -> None:
    """After the first post, the server's own reflection is turned off."""
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id)
    await world.letta.post(post)
    runtime = {"agent_id": agent_id, "conversation_id": post.conversation_id}
    async with world.bare.lend() as socket:
        answer = await socket.ask("get_reflection_settings", runtime=runtime)
    assert answer["reflection_settings"]["trigger"] == "off"


async def test_an_agent_reflects_when_a_call_ends_and_is_asked_to(world: AppServerWorld) -> None:
    """With `reflect`, the server reflects after a call's last batch is digested."""
    letta = AppServerLetta(world.stack.url, world.stack.token, read_timeout_s=15.0, reflect=True)
    world.opened.append(letta)
    agent_id = await new_agent(world)
    post = await new_post(world, agent_id, "[[remember human: Sings]]")
    await anyio.to_thread.run_sync(lambda: world.stack.control_llm(clear=True))

    async def reflections() -> int:
        requests = await anyio.to_thread.run_sync(world.stack.llm_requests)
        return sum("reflection subagent" in str(request["messages"]) for request in requests)

    await letta.post(post)
    last = next_post(agent_id, post.conversation_id, "bye")
    await world.letta.post(replace(last, final=True))
    assert await reflections() == 0
    again = next_post(agent_id, post.conversation_id, "bye again")
    await letta.post(replace(again, final=True))
    with anyio.fail_after(SETTLE_S):
        while not await reflections():  # noqa: ASYNC110 - no event for it
            await anyio.sleep(0.1)


# Memory


async def test_an_edit_made_twice_is_made_once(world: AppServerWorld) -> None:
    """An edit repeated for the same batch is made once, and made again for another batch."""
    agent_id = await new_agent(world)
    call = ToolCall("call", "memory_insert", '{"label": "human", "new_str": "Has 1 dog"}')
    memory = AgentMemory(world.bare, timeout_s=15.0)
    for _ in range(2):
        _, failed = await memory.edit(agent_id, "batch-1", call)
        assert not failed
    assert await value_of(world.letta, agent_id) == "Has 1 dog"
    await memory.edit(agent_id, "batch-2", call)
    assert await value_of(world.letta, agent_id) == "Has 1 dog\nHas 1 dog"


async def test_what_another_process_changed_is_in_the_next_read(world: AppServerWorld) -> None:
    """The server announces a change only to the socket that made it, but every read returns it."""
    agent_id = await new_agent(world)
    assert not await value_of(world.letta, agent_id)
    other = AppServerLetta(world.stack.url, world.stack.token, read_timeout_s=15.0)
    world.opened.append(other)
    await other.post(await new_post(world, agent_id, "[[remember human: Has 1 cat]]"))
    assert await value_of(world.letta, agent_id) == "Has 1 cat"


async def test_a_refused_commit_leaves_nothing_in_memory(world: AppServerWorld) -> None:
    """Text that the server refuses to commit is neither served as memory nor left in the file."""
    agent_id = await new_agent(world, Block("human", "Name: Ada", "the caller"))
    memory = AgentMemory(world.bare, timeout_s=15.0)
    too_long = "x" * 21_000
    call = ToolCall("call", "memory_insert", f'{{"label": "human", "new_str": "{too_long}"}}')
    with pytest.raises(LettaUnavailable):
        await memory.edit(agent_id, "batch-1", call)
    assert await value_of(world.letta, agent_id) == "Name: Ada"
    folder = next(world.stack.home.rglob(f"{agent_id}/memory"))
    status = ["git", "-C", str(folder), "status", "--porcelain"]
    left = await anyio.to_thread.run_sync(partial(subprocess.check_output, status))
    assert left == b""


async def test_a_deleted_agent_is_not_served_from_what_it_left(world: AppServerWorld) -> None:
    """Reading a deleted or unknown agent is an error, though the server still lists its memory."""
    agent_id = await new_agent(world, Block("human", "Name: Ada", "the caller"))
    await world.letta.read_blocks(agent_id)
    await world.letta.delete_agent(agent_id)
    async with world.bare.lend() as socket:
        left = await socket.ask("list_memory", agent_id=agent_id)
        unknown = await socket.ask("list_memory", agent_id="agent-nobody")
    assert left["entries"]
    assert unknown["success"]
    for gone in (agent_id, "agent-nobody"):
        with pytest.raises(AgentNotFound):
            await world.letta.read_blocks(gone)


async def test_an_erased_agent_leaves_no_memory_file(world: AppServerWorld) -> None:
    """No file that the server still lists holds what an erased agent knew."""
    agent_id = await new_agent(world, Block("human", "Name: Ada", "the caller"))
    await world.letta.erase_agent(agent_id)
    await world.letta.erase_agent(agent_id)
    async with world.bare.lend() as socket:
        left = await socket.ask("list_memory", agent_id=agent_id)
    assert "Ada" not in str(left["entries"])


# Answers


async def test_a_frame_without_a_reply_ends_at_its_deadline() -> None:
    """Each request to a server that does not answer ends at its deadline."""

    async def says_nothing(frame: Frame, say: Say) -> None:
        pass

    async with scripted(says_nothing) as url:
        letta = AppServerLetta(url, None, read_timeout_s=0.3)
        post = next_post("a", "c", "hello")
        with anyio.fail_after(SETTLE_S):  # nothing answers, so only a deadline can end these
            with pytest.raises(LettaUnavailable):
                await letta.read_blocks("a")
            with pytest.raises(LettaUnavailable):
                await letta.find(post)
            with pytest.raises(NotAccepted):
                await letta.post(post)
        await letta.aclose()


async def test_an_unknown_frame_gets_no_reply(world: AppServerWorld) -> None:
    """The real server never answers an unknown frame, so every request needs a deadline."""
    async with world.bare.lend() as socket:
        with anyio.move_on_after(0.5) as waited:
            await socket.ask("no_such_frame")
        assert waited.cancelled_caught


async def test_another_protocol_version_is_refused_by_name() -> None:
    """A server of another protocol version is refused, and the error names its version."""

    async def is_not_asked(frame: Frame, _: Say) -> None:
        pytest.fail(f"the version was not refused: {frame['type']}")

    async with scripted(is_not_asked, protocol_version=2) as url:
        letta = AppServerLetta(url, None)
        with pytest.raises(LettaUnavailable, match=r"9\.9\.9.* protocol version 2, not 1"):
            await letta.read_blocks("a")
        with pytest.raises(NotAccepted, match="protocol version 2, not 1"):
            await letta.post(next_post("a", "c", "hello"))


async def test_a_token_that_is_absent_is_denied(world: AppServerWorld) -> None:
    """Without a token, or with a wrong one, a request is denied, not reported as unavailable."""
    for token in (None, "", "wrong"):
        letta = AppServerLetta(world.stack.url, token)
        world.opened.append(letta)
        with pytest.raises(LettaDenied):
            await letta.read_blocks("agent-nobody")
        with pytest.raises(LettaDenied):
            await letta.post(next_post("a", "c", "hello"))


def break_repository(world: AppServerWorld, agent_id: str) -> None:
    """Damage an agent's memory like a server killed while it makes the repository."""
    git = next(world.stack.home.rglob(f"{agent_id}/memory/.git"))
    shutil.rmtree(git)
    git.mkdir()


def empty_memory(world: AppServerWorld, agent_id: str) -> None:
    """Empty an agent's memory like a server killed before it makes a file."""
    memory = next(world.stack.home.rglob(f"{agent_id}/memory"))
    for path in memory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    git = ["git", "-C", str(memory), "-c", "user.name=letta", "-c", "user.email=letta@localhost"]
    subprocess.run([*git, "init", "-q"], check=True)
    made = ["commit", "--allow-empty", "-qm", "chore: initialize empty local memory"]
    subprocess.run([*git, *made], check=True)


@pytest.mark.parametrize("damage", [break_repository, empty_memory])
async def test_an_agent_made_half_way_is_made_anew(
    world: AppServerWorld, damage: Callable[[AppServerWorld, str], None]
) -> None:
    """An agent with neither usable memory nor messages is not found, so another can be made."""
    tags = (f"voice-caller:{uuid.uuid4().hex}",)
    agent_id = await world.letta.create_agent(world.spec(HUMAN, tags=tags))
    damage(world, agent_id)
    for _ in range(2):
        with pytest.raises(AgentNotFound):
            await world.letta.open_conversation(agent_id, label="a call")
    assert await world.letta.find_agents(tags) == []


async def test_an_agent_that_has_heard_something_is_never_made_anew(world: AppServerWorld) -> None:
    """An agent that heard something, or an owner's own, is kept when its repository is damaged."""
    tags = (f"voice-caller:{uuid.uuid4().hex}",)
    heard = await world.letta.create_agent(world.spec(HUMAN, tags=tags))
    await world.letta.post(await new_post(world, heard))
    owners = await world.letta.create_agent(world.spec(HUMAN, tags=("my-own",)))
    for agent_id in (heard, owners):
        break_repository(world, agent_id)
        with pytest.raises(LettaUnavailable):
            await world.letta.open_conversation(agent_id, label="a call")
    assert [agent.agent_id for agent in await world.letta.find_agents(tags)] == [heard]
