"""The stand-in for a Letta server behaves as the real one does, and fails when told to."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from aiohttp import ClientError, ClientSession

from sidecar.errors import (
    AgentNotFound,
    ConversationGone,
    LettaDenied,
    LettaError,
    LettaUnavailable,
    NotAccepted,
    OutcomeUnknown,
    TooLarge,
)
from sidecar.letta.port import AgentSpec, Post
from sidecar.letta.rest.letta import RestLetta
from sidecar.letta.rest.wire import wire_otid
from sidecar.model import Block
from sidecar.testing.faults import Fault, FaultDraw, Faults, FaultScript
from sidecar.testing.letta_routes import LettaStandIn, StandInOptions
from sidecar.testing.letta_runs import failing, work
from sidecar.testing.letta_server import demo_digest, standing_in
from tests.ports import free_port

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

SPEC = AgentSpec("ada's", "", [Block("human", "", "the caller", 100)], ["voice", "caller-1"])


@asynccontextmanager
async def adapted(
    *, key: str | None = None, read_timeout_s: float = 5.0, **options: Any
) -> AsyncGenerator[tuple[RestLetta, LettaStandIn]]:
    async with standing_in(StandInOptions(**options)) as (url, stand_in):
        letta = RestLetta(url, key, read_timeout_s=read_timeout_s)
        try:
            yield letta, stand_in
        finally:
            await letta.aclose()


async def a_post(letta: RestLetta, text: str = "hello", batch_id: str = "b1") -> Post:
    agent_id = await letta.create_agent(SPEC)
    conversation = await letta.open_conversation(agent_id, label="call 1")
    return Post(batch_id, agent_id, conversation, text, 0.0)


async def becomes(true: Callable[[], bool], *, within_s: float = 5.0) -> None:
    """Poll until something is true, as a process or a socket has no event to wait for."""
    with anyio.fail_after(within_s):
        while not await anyio.to_thread.run_sync(true):  # noqa: ASYNC110
            await anyio.sleep(0.02)


def otids(stand_in: LettaStandIn) -> list[str]:
    return [message.otid for message in stand_in.state.messages]


async def test_the_adapter_reads_posts_and_finds() -> None:
    """A post through the real adapter changes the block that is read next."""
    async with adapted(digest=demo_digest) as (letta, stand_in):
        post = await a_post(letta, "my name is ada")
        assert await letta.find(post) == "absent"
        await letta.post(post)
        assert await letta.find(post) == "found"
        (block,) = await letta.read_blocks(post.agent_id)
        assert block == Block("human", "Name: Ada", "the caller", 100)
        (found,) = await letta.find_agents(["caller-1"])
        assert (found.agent_id, set(found.tags)) == (post.agent_id, set(SPEC.tags))
        assert await letta.find_agents(["caller-2"]) == []
        await letta.delete_agent(post.agent_id)
        with pytest.raises(AgentNotFound):
            await letta.read_blocks(post.agent_id)
        assert otids(stand_in) == ["b1"]


async def test_the_same_otid_is_stored_once() -> None:
    """With dedupe, a second post joins the first one's run."""
    async with adapted() as (letta, stand_in):
        post = await a_post(letta)
        await letta.post(post)
        await letta.post(post)
        assert otids(stand_in) == ["b1"]


async def test_without_dedupe_what_is_posted_twice_is_stored_twice() -> None:
    """Without dedupe a batch posted twice is stored twice, so that a test can see it."""
    async with adapted(dedupe=False) as (letta, stand_in):
        post = await a_post(letta)
        await letta.post(post)
        await letta.post(post)
        assert otids(stand_in) == ["b1", "b1"]


async def test_a_model_that_was_down_for_hours_leaves_no_batch_behind() -> None:
    """However many runs of a batch have failed, it is stored soon after the model works again."""
    async with adapted(digest=demo_digest) as (letta, stand_in):
        post = await a_post(letta, "batch b1: my name is ada")
        state = stand_in.state
        for number in range(120):
            run = state.start_run(
                state.conversations[post.conversation_id],
                wire_otid(post.batch_id, number),
                background=True,
            )
            await work(state, run, post.text, failing, wait_s=0)
        for _ in range(3):
            assert await letta.find(post) == "absent"
            with suppress(OutcomeUnknown):
                await letta.post(post)
        assert await letta.find(post) == "found"
        assert [message.text for message in state.messages] == [post.text]


async def test_a_replayed_letter_that_was_stored_is_found_behind_newer_ones() -> None:
    """A stored batch is found by the time of its first try, however many came after it."""
    async with adapted(digest=demo_digest) as (letta, stand_in):
        sealed_at_s = time.time()
        post = await a_post(letta, "batch b1: my name is ada")
        await letta.post(replace(post, first_sent_at_s=sealed_at_s))
        for n in range(120):
            await letta.post(
                replace(post, batch_id=f"later-{n}", text="x", first_sent_at_s=time.time())
            )
        stand_in.state.run_of_otid.clear()  # as it is after 3 hours
        assert await letta.find(replace(post, first_sent_at_s=sealed_at_s)) == "found"


async def test_a_conversation_is_locked_while_a_run_is_at_work() -> None:
    """During a run another post gets 409, and the message is listed only after the run."""
    async with adapted(delay_s=30.0) as (letta, stand_in):
        post = await a_post(letta)
        other = Post("b2", post.agent_id, post.conversation_id, "hello", 0.0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(letta.post, post)
            await becomes(lambda: bool(stand_in.state.runs))
            with pytest.raises(NotAccepted) as refusal:
                await letta.post(other)
            assert refusal.value.busy
            assert await letta.find(post) == "running"
            assert otids(stand_in) == []
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("fault", "error", "stored"),
    [
        ("denied", LettaDenied, 0),
        ("unavailable", OutcomeUnknown, 0),
        ("limited", NotAccepted, 0),
        ("busy", NotAccepted, 0),
        ("broken", OutcomeUnknown, 0),
        ("cut_before", OutcomeUnknown, 0),
        ("stream_error", OutcomeUnknown, 0),
        ("broken_after", OutcomeUnknown, 1),
        ("cut_after", OutcomeUnknown, 1),
    ],
)
async def test_a_fault_of_a_post_is_what_its_name_says(
    fault: Any, error: type[Exception], stored: int
) -> None:
    """Each fault of a post raises its error of the port, and stores the message or doesn't."""
    async with adapted() as (letta, stand_in):
        post = await a_post(letta)
        stand_in.draw.script = FaultScript(posts=Faults(next=[fault]))
        with pytest.raises(error) as failure:
            await letta.post(post)
        if fault == "limited":
            assert isinstance(failure.value, NotAccepted)
            assert failure.value.retry_after_s == 0.2
        assert len(otids(stand_in)) == stored
        assert await letta.find(post) == ("found" if stored else "absent")
        assert stand_in.draw.drawn == {fault: 1}


async def test_reads_fail_when_told_to() -> None:
    """A read can fail with an error, a cut connection or an empty list."""
    async with adapted() as (letta, stand_in):
        post = await a_post(letta)
        # aiohttp repeats a GET by itself if a kept connection is cut before the answer.
        for faults in (["unavailable"], ["cut_before", "cut_before"]):
            stand_in.draw.script = msgspec.convert({"reads": {"next": faults}}, FaultScript)
            with pytest.raises(LettaUnavailable):
                await letta.read_blocks(post.agent_id)
        stand_in.draw.script = FaultScript(reads=Faults(next=["empty"]))
        assert await letta.read_blocks(post.agent_id) == ()
        assert len(await letta.read_blocks(post.agent_id)) == 1


async def test_a_read_that_meets_silence_ends_at_its_deadline() -> None:
    """A read of a server that never answers ends at its deadline."""
    async with adapted(read_timeout_s=0.2) as (letta, stand_in):
        stand_in.draw.script = FaultScript(reads=Faults(next=["hang"] * 3))
        with anyio.fail_after(5), pytest.raises(LettaUnavailable):
            await letta.read_blocks("agent-1")


async def test_a_password_is_asked_for() -> None:
    """The wrong key is refused on every route of Letta's."""
    async with adapted(password="right", key="wrong") as (letta, _):
        with pytest.raises(LettaDenied):
            await letta.find_agents([])


async def test_without_redis_posts_go_out_in_the_foreground() -> None:
    """When background posts get 503, the adapter posts in the foreground."""
    async with adapted(redis=False) as (letta, stand_in):
        post = await a_post(letta)
        await letta.post(post)
        assert otids(stand_in) == ["b1"]
        assert await letta.find(post) == "found"


async def test_a_missing_conversation_is_told_from_a_missing_agent() -> None:
    """A 404 names the missing agent or conversation."""
    async with adapted() as (letta, _):
        post = await a_post(letta)
        with pytest.raises(ConversationGone):
            await letta.post(Post("b1", post.agent_id, "conv-0", "hello", 0.0))


async def test_everything_stored_outlives_the_process(tmp_path: Path) -> None:
    """Agents, blocks and messages are there after a restart, and a torn last line is dropped."""
    file = tmp_path / "letta.jsonl"
    async with adapted(file=file, digest=demo_digest) as (letta, _):
        post = await a_post(letta, "my name is ada")
        await letta.post(post)
    with file.open("ab") as opened:
        opened.write(b'{"kind": "mess')
    async with adapted(file=file) as (letta, stand_in):
        assert await letta.find(post) == "found"
        (block,) = await letta.read_blocks(post.agent_id)
        assert block.value == "Name: Ada"
        await letta.post(Post("b2", post.agent_id, post.conversation_id, "more", 0.0))
        assert otids(stand_in) == ["b1", "b2"]
    assert [json.loads(line)["kind"] for line in file.read_bytes().splitlines()] == [
        "agent",
        "conversation",
        "message",
        "message",
    ]


async def test_the_controls_merge_into_the_script() -> None:
    """`/_ctl` merges known settings and refuses others, and `/_stats` counts."""
    async with standing_in(StandInOptions()) as (url, stand_in), ClientSession(url) as client:
        await client.post("/_ctl", json={"posts": {"chances": {"busy": 1.0}}})
        await client.post("/_ctl", json={"posts": {"latency_s": 0.0}, "seed": 7})
        assert stand_in.draw.script.posts.chances == {"busy": 1.0}
        assert stand_in.draw.script.seed == 7
        assert (await client.post("/_ctl", json={"posts": {"nonsense": 1}})).status == 400
        assert (await client.post("/_ctl", json={"posts": 1})).status == 400
        assert (await (await client.get("/_stats")).json())["messages"] == 0
        assert await (await client.get("/_messages")).json() == []
        await client.post("/_ctl", json={"reads": {"next": ["cut_before"] * 2}})
        with pytest.raises(ClientError):
            await client.get("/v1/agents/")


async def test_the_same_seed_draws_the_same_faults() -> None:
    """The same seed draws the same faults."""
    script = FaultScript(posts=Faults(chances={"busy": 0.3, "broken": 0.3}), seed=5)

    def drawn() -> list[Any]:
        draw = FaultDraw(script)
        return [draw.fault(draw.script.posts) for _ in range(50)]

    assert drawn() == drawn()
    assert set(drawn()) == {"busy", "broken", None}


async def test_the_command_survives_a_kill(tmp_path: Path) -> None:
    """A killed server process still has the post that it acknowledged."""
    port = free_port()
    command = [sys.executable, "-m", "sidecar.testing.letta_server", "--port", str(port)]
    command += ["--db", str(tmp_path / "db.jsonl"), "--delay-ms", "1", "--no-dedupe"]

    async def started() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command)  # noqa: ASYNC220 - it must outlive this task
        await becomes(lambda: _is_up(port), within_s=30)
        return process

    process = await started()
    letta = RestLetta(f"http://127.0.0.1:{port}", None)
    try:
        post = await a_post(letta)
        await letta.post(post)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process = await started()
        assert await letta.find(post) == "found"
    finally:
        await letta.aclose()
        process.kill()
        process.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/health/", timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


async def test_a_gateways_503_is_no_refusal_where_no_otid_protects() -> None:
    """A proxy's 503 leaves a post in doubt, since Letta may have stored it."""
    async with adapted(dedupe=False, redis=False) as (letta, stand_in):
        post = await a_post(letta, "batch b1")
        stand_in.draw.script.posts.next = ["none", "gateway"]
        with pytest.raises(OutcomeUnknown) as unknown:
            await letta.post(post)
        assert not unknown.value.over, "Letta may still be at work"
        assert await letta.find(post) == "found"
        assert len(otids(stand_in)) == 1


async def test_a_gateways_503_need_not_be_waited_out_under_an_otid() -> None:
    """A proxy's 503 ends the post's horizon where a repeat would join the same run."""
    async with adapted() as (letta, stand_in):
        post = await a_post(letta, "batch b1")
        stand_in.draw.script.posts.next = ["gateway"]
        with pytest.raises(OutcomeUnknown) as unknown:
            await letta.post(post)
        assert unknown.value.over
        for _ in range(6):
            await letta.post(post)
        assert len(otids(stand_in)) == 1


async def test_a_lost_redis_behind_a_gateways_503_is_looked_up() -> None:
    """If Redis is lost after a proxy's 503, a look-up still finds the stored batch."""
    async with adapted() as (letta, stand_in):
        post = await a_post(letta, "batch b1")
        stand_in.draw.script.posts.next = ["gateway"]
        with pytest.raises(OutcomeUnknown):
            await letta.post(post)
        stand_in.options = replace(stand_in.options, redis=False)
        assert await letta.find(post) == "found"
        assert len(otids(stand_in)) == 1


@pytest.mark.parametrize("redis", [True, False])
async def test_a_run_that_overflows_is_told_from_a_model_that_is_down(redis: bool) -> None:
    """A context overflow is "too large", a failed model "unknown", and neither stores anything."""
    async with adapted(redis=redis) as (letta, stand_in):
        post = await a_post(letta, "batch b1")
        ends: Mapping[Fault, type[LettaError]] = {
            "overflow": TooLarge,
            "stream_error": OutcomeUnknown,
        }
        for fault, error in ends.items():
            stand_in.draw.script.posts.chances = {fault: 1.0}
            with pytest.raises(error):
                await letta.post(post)
        stand_in.draw.script.posts.chances = {}
        assert await letta.find(post) == "absent"
        await letta.post(post)
        assert len(otids(stand_in)) == 1
