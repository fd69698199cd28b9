"""The embedded Letta keeps the port's promises, with the classic server's semantics."""

import json
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from typing_extensions import override

from sidecar.demo.model import DemoModel
from sidecar.errors import (
    AgentNotFound,
    ConversationGone,
    LettaError,
    LettaUnavailable,
    LlmError,
    NotAccepted,
    OutcomeUnknown,
    PromptTooLong,
    Rejected,
    TooLarge,
)
from sidecar.letta.embedded.letta import MAX_STEPS, EmbeddedLetta
from sidecar.letta.port import AgentSpec, Post
from sidecar.llm.port import Llm, Reply, ToolCall
from sidecar.model import Block

pytestmark = [pytest.mark.unit, pytest.mark.anyio, pytest.mark.backend("asyncio", "trio")]

SPEC = AgentSpec(
    name="ada's",
    system="You digest transcripts.",
    blocks=[
        Block("persona", "I am a memory.", "who you are", read_only=True),
        Block("human", "", "the caller", limit_chars=100),
    ],
    tags=["voice", "caller-1"],
)


class Scripted(Llm):
    """Answers with the given replies, then with plain text; keeps every prompt."""

    def __init__(self, *replies: Reply | Exception) -> None:
        self.replies = list(replies)
        self.shown: list[Sequence[Mapping[str, Any]]] = []
        self.before_each: Callable[[], Any] | None = None

    @property
    @override
    def name(self) -> str:
        return "scripted"

    @override
    async def stream(self, messages: Sequence[Mapping[str, Any]]) -> AsyncIterator[str]:
        yield ""

    @override
    async def complete(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Reply:
        self.shown.append(messages)
        if self.before_each is not None:
            await self.before_each()
        reply = self.replies.pop(0) if self.replies else Reply("done")
        if isinstance(reply, Exception):
            raise reply
        return reply

    @override
    async def aclose(self) -> None:
        pass


def calls(name: str, **arguments: object) -> Reply:
    return Reply("", (ToolCall("c1", name, json.dumps(arguments)),))


@asynccontextmanager
async def opened(path: Path, llm: Llm | None = None, **more: Any) -> AsyncGenerator[EmbeddedLetta]:
    letta = await EmbeddedLetta.open(path / "letta.db", llm=llm or DemoModel(), **more)
    try:
        yield letta
    finally:
        await letta.aclose()


def said(text: str, agent_id: str, conversation_id: str, batch_id: str = "b1") -> Post:
    turn = f'<turn speaker="caller" time="2026-11-22T18:00:00Z">{text}</turn>'
    whole = f'<transcript batch="{batch_id}">\n{turn}\n</transcript>'
    return Post(batch_id, agent_id, conversation_id, whole, 0.0)


async def agent_in(letta: EmbeddedLetta) -> tuple[str, str]:
    agent_id = await letta.create_agent(SPEC)
    return agent_id, await letta.open_conversation(agent_id, label="call 1")


async def human_of(letta: EmbeddedLetta, agent_id: str) -> str:
    return next(b.value for b in await letta.read_blocks(agent_id) if b.label == "human")


async def test_what_is_posted_changes_the_block(tmp_path: Path) -> None:
    """A fact said in one post is in the next read, and corrected by a later one."""
    async with opened(tmp_path) as letta:
        agent_id, conversation = await agent_in(letta)
        await letta.post(said("my name is ada and i live in lyon", agent_id, conversation))
        assert await human_of(letta, agent_id) == "Name: Ada\nHome: Lyon"
        await letta.post(said("I moved to Paris", agent_id, conversation, "b2"))
        assert await human_of(letta, agent_id) == "Name: Ada\nHome: Paris"


async def test_blocks_are_sorted_by_label_and_whole(tmp_path: Path) -> None:
    """A read returns every field of every block, sorted."""
    async with opened(tmp_path) as letta:
        agent_id = await letta.create_agent(SPEC)
        blocks = await letta.read_blocks(agent_id)
    assert blocks == tuple(sorted(SPEC.blocks, key=lambda b: b.label))


async def test_the_same_otid_is_digested_once(tmp_path: Path) -> None:
    """A post that was stored does not run again, either now or after a restart."""
    llm = Scripted()
    async with opened(tmp_path, llm) as letta:
        agent_id, conversation = await agent_in(letta)
        post = said("hello", agent_id, conversation)
        await letta.post(post)
        await letta.post(post)
    async with opened(tmp_path, llm) as letta:
        await letta.post(post)
        assert await letta.find(post) == "found"
        assert [otid for otid, _ in await letta.messages(conversation)] == ["b1"]
    assert len(llm.shown) == 1


class Gate:
    """Holds each step of the model until it is opened."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.opened = anyio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.opened.wait()


async def test_a_conversation_takes_one_post_at_a_time(tmp_path: Path) -> None:
    """While a run is at work another post is refused as busy, and the same post joins the run."""
    llm, gate = Scripted(), Gate()
    llm.before_each = gate
    async with opened(tmp_path, llm) as letta:
        agent_id, conversation = await agent_in(letta)
        post = said("hello", agent_id, conversation)
        other = said("hello", agent_id, conversation, "b2")
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(letta.post, post)
                await gate.reached.wait()
                tasks.start_soon(letta.post, post)
                await anyio.lowlevel.checkpoint()
                with pytest.raises(NotAccepted) as refusal:
                    await letta.post(other)
                assert refusal.value.busy
                assert await letta.find(post) == "running"
                assert await letta.find(other) == "absent"
                assert await letta.messages(conversation) == []
                gate.opened.set()
        assert await letta.find(post) == "found"
    assert len(llm.shown) == 1


async def test_two_conversations_of_one_agent_lose_no_edit(tmp_path: Path) -> None:
    """Runs of one agent follow one another, so both edits of one block are kept."""
    async with opened(tmp_path) as letta:
        agent_id, first = await agent_in(letta)
        second = await letta.open_conversation(agent_id, label="call 2")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(letta.post, said("my name is ada", agent_id, first, "b1"))
            tasks.start_soon(letta.post, said("i live in lyon", agent_id, second, "b2"))
        lines = (await human_of(letta, agent_id)).splitlines()
    assert sorted(lines) == ["Home: Lyon", "Name: Ada"]


async def test_a_failed_model_leaves_nothing_and_the_post_may_run_again(tmp_path: Path) -> None:
    """An edit made before the model failed is not stored; the outcome is known to be over."""
    llm = Scripted(calls("memory_insert", label="human", new_str="half"), LlmError("it broke"))
    async with opened(tmp_path, llm) as letta:
        agent_id, conversation = await agent_in(letta)
        post = said("hello", agent_id, conversation)
        with pytest.raises(OutcomeUnknown) as unknown:
            await letta.post(post)
        assert unknown.value.over
        assert await letta.find(post) == "absent"
        assert await human_of(letta, agent_id) == ""
        await letta.post(post)
        assert await letta.find(post) == "found"


async def test_what_the_model_has_no_room_for_is_no_outage(tmp_path: Path) -> None:
    """A post that exceeds the model's context is an error "too large" and stores nothing."""
    llm = Scripted(calls("memory_insert", label="human", new_str="half"), PromptTooLong("400"))
    async with opened(tmp_path, llm) as letta:
        agent_id, conversation = await agent_in(letta)
        post = said("hello", agent_id, conversation)
        with pytest.raises(TooLarge):
            await letta.post(post)
        assert await letta.find(post) == "absent"
        assert await human_of(letta, agent_id) == ""


async def test_a_joined_run_that_fails_is_over_for_both(tmp_path: Path) -> None:
    """Both posts of a failed run learn that it is over."""
    llm, gate = Scripted(LlmError("it broke")), Gate()
    llm.before_each = gate
    seen: list[bool] = []

    async def post_it(letta: EmbeddedLetta, post: Post) -> None:
        with pytest.raises(OutcomeUnknown) as unknown:
            await letta.post(post)
        seen.append(unknown.value.over)

    async with opened(tmp_path, llm) as letta:
        post = said("hello", *await agent_in(letta))
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(post_it, letta, post)
                await gate.reached.wait()
                tasks.start_soon(post_it, letta, post)
                await anyio.lowlevel.checkpoint()
                gate.opened.set()
    assert seen == [True, True]


async def test_a_cancelled_post_leaves_nothing(tmp_path: Path) -> None:
    """A cancelled post is no longer running and was not stored."""
    llm, gate = Scripted(), Gate()
    llm.before_each = gate
    async with opened(tmp_path, llm) as letta:
        post = said("hello", *await agent_in(letta))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(letta.post, post)
            await gate.reached.wait()
            tasks.cancel_scope.cancel()
        assert await letta.find(post) == "absent"


async def test_a_run_has_a_deadline(tmp_path: Path) -> None:
    """A run of a model that hangs ends at its deadline and stores nothing."""
    llm, gate = Scripted(), Gate()
    llm.before_each = gate
    async with opened(tmp_path, llm, run_budget_s=0.05) as letta:
        post = said("hello", *await agent_in(letta))
        with pytest.raises(OutcomeUnknown) as unknown:
            await letta.post(post)
        assert unknown.value.over
        assert await letta.find(post) == "absent"


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (calls("memory_insert", label="persona", new_str="x"), "read-only"),
        (calls("memory_insert", label="human", new_str="x" * 101), "its limit is 100"),
        (calls("memory_insert", label="nobody", new_str="x"), "human, persona"),
        (calls("memory_insert", label="human"), "new_str"),
        (calls("memory_replace", label="human", old_str="none", new_str="x"), "0 times"),
        (calls("memory_erase", label="human"), "memory_insert"),
        (Reply("", (ToolCall("c1", "memory_insert", "{"),)), "not JSON"),
        (Reply("", (ToolCall("c1", "memory_insert", "[" * 100_000),)), "not JSON"),
        (Reply("", (ToolCall("c1", "memory_insert", "[1]"),)), "label"),
    ],
)
async def test_an_edit_that_may_not_be_is_told_to_the_model(
    tmp_path: Path, call: Reply, answer: str
) -> None:
    """An edit that is not allowed is answered as a tool error and changes nothing."""
    llm = Scripted(call)
    async with opened(tmp_path, llm) as letta:
        agent_id, conversation = await agent_in(letta)
        before = await letta.read_blocks(agent_id)
        await letta.post(said("hello", agent_id, conversation))
        assert await letta.read_blocks(agent_id) == before
    tool_answer = llm.shown[1][-1]["content"]
    assert tool_answer.startswith("Error: ")
    assert answer in tool_answer


async def test_a_whole_block_may_be_rewritten(tmp_path: Path) -> None:
    """memory_rethink sets the value, with characters that can't be stored replaced."""
    llm = Scripted(calls("memory_rethink", label="human", new_memory="Name: \ud800Ada"))
    async with opened(tmp_path, llm) as letta:
        agent_id, conversation = await agent_in(letta)
        await letta.post(said("hello", agent_id, conversation))
        assert await human_of(letta, agent_id) == "Name: \ufffdAda"


async def test_an_endless_model_is_stopped(tmp_path: Path) -> None:
    """A model that never stops calling tools ends after a bounded number of steps."""
    llm = Scripted(*[calls("memory_rethink", label="human", new_memory=f"{i}") for i in range(50)])
    async with opened(tmp_path, llm) as letta:
        agent_id, conversation = await agent_in(letta)
        await letta.post(said("hello", agent_id, conversation))
        assert await human_of(letta, agent_id) == f"{MAX_STEPS - 1}"
    assert len(llm.shown) == MAX_STEPS


async def test_the_model_sees_blocks_in_lettas_layout(tmp_path: Path) -> None:
    """Instructions come first, then each block with description, metadata and value."""
    llm = Scripted()
    async with opened(tmp_path, llm) as letta:
        await letta.post(said("hello", *await agent_in(letta)))
    system = llm.shown[0][0]["content"]
    assert system.startswith("You digest transcripts.\n")
    assert (
        "<persona>\n<description>\nwho you are\n</description>\n<metadata>\n- read_only=true\n"
        "- chars_current=14\n</metadata>\n<value>\nI am a memory.\n</value>\n</persona>"
    ) in system
    assert "- chars_limit=100" in system


async def test_unknown_names_are_told_apart(tmp_path: Path) -> None:
    """An unknown agent and an unknown conversation are different errors, never empty answers."""
    async with opened(tmp_path) as letta:
        agent_id, conversation = await agent_in(letta)
        other = await letta.create_agent(SPEC)
        for outcome in (
            letta.read_blocks("agent-0"),
            letta.open_conversation("agent-0", label=""),
            letta.post(said("hello", "agent-0", conversation)),
            letta.find(said("hello", "agent-0", conversation)),
        ):
            with pytest.raises(AgentNotFound):
                await outcome
        with pytest.raises(ConversationGone):
            await letta.post(said("hello", agent_id, "conv-0"))
        with pytest.raises(ConversationGone):
            await letta.post(said("hello", other, conversation))
        assert await letta.find(said("hello", agent_id, "conv-0")) == "absent"


async def test_agents_are_found_by_all_their_tags_oldest_first(tmp_path: Path) -> None:
    """An agent is found only if every tag matches; without tags, every agent is found."""
    times = iter([20.0, 10.0, 30.0])
    async with opened(tmp_path, clock=lambda: next(times)) as letta:
        young = await letta.create_agent(AgentSpec("young", "", [], ["a", "b"]))
        old = await letta.create_agent(AgentSpec("old", "", [], ["b", "a", "c"]))
        other = await letta.create_agent(AgentSpec("other", "", [], ["a"]))
        assert [f.agent_id for f in await letta.find_agents(["a", "b"])] == [old, young]
        assert [f.agent_id for f in await letta.find_agents([])] == [old, young, other]
        assert await letta.find_agents(["d"]) == []


async def test_a_deleted_agent_is_gone_with_all_it_held(tmp_path: Path) -> None:
    """Nothing of a deleted agent stays in the file, and deleting it again is no error."""
    async with opened(tmp_path) as letta:
        agent_id, conversation = await agent_in(letta)
        await letta.post(said("[[remember human: canary-4711]]", agent_id, conversation))
        await letta.delete_agent(agent_id)
        await letta.delete_agent(agent_id)
        with pytest.raises(AgentNotFound):
            await letta.read_blocks(agent_id)
        assert await letta.messages(conversation) == []
        assert await letta.find_agents([]) == []
    assert b"canary-4711" not in (tmp_path / "letta.db").read_bytes()


@pytest.mark.parametrize(
    "blocks",
    [
        [Block("human", ""), Block("human", "")],
        [Block("human", "too long", limit_chars=3)],
    ],
)
async def test_a_spec_that_makes_no_sense_is_rejected(tmp_path: Path, blocks: list[Block]) -> None:
    """A spec with a repeated label or a value over its limit is rejected and makes no agent."""
    async with opened(tmp_path) as letta:
        with pytest.raises(Rejected):
            await letta.create_agent(AgentSpec("x", "", blocks, []))
        assert await letta.find_agents([]) == []


async def test_the_file_is_private(tmp_path: Path) -> None:
    """The file and SQLite's files beside it are readable by their owner only, under any umask."""
    before = os.umask(0)
    try:
        async with opened(tmp_path / "new") as letta:
            await letta.create_agent(SPEC)
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "new").iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """A damaged file is an error that says what to do, and the file is left unchanged."""
    (tmp_path / "letta.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(LettaError, match=r"check .*letta\.db"):
        await EmbeddedLetta.open(tmp_path / "letta.db", llm=DemoModel())
    assert (tmp_path / "letta.db").read_bytes().startswith(b"not a database")


async def test_after_close_everything_is_unavailable(tmp_path: Path) -> None:
    """Closing twice is safe; a read or post after it fails with the port's errors."""
    async with opened(tmp_path) as letta:
        agent_id, conversation = await agent_in(letta)
    await letta.aclose()
    with pytest.raises(LettaUnavailable):
        await letta.read_blocks(agent_id)
    with pytest.raises(NotAccepted):
        await letta.post(said("hello", agent_id, conversation))
