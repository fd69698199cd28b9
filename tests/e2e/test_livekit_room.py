"""Calls in a room: a caller's voice, the unmodified voice worker, and the sidecar behind it.

Speech is scripted, with the timing of real speech (tests/livekit_room/parts.py); everything else
is real: LiveKit's SDK and worker, WebRTC audio, processes, sockets, signals.
"""

import sqlite3
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from sidecar.testing.fake_sidecar import FakeSidecar
from sidecar.wire.frames import CallOpen, Hints, Memory
from sidecar.wire.spool import SpoolFile, spool_files
from tests.letta_server.stack import LettaStack
from tests.livekit_room.caller import Caller, calling
from tests.livekit_room.parts import LONG_STORY
from tests.livekit_room.server import LiveKitServer
from tests.livekit_room.worker import VoiceWorker, voice_worker
from tests.otlp_collector import Collector
from tests.ports import free_port
from tests.sidecar_process import SidecarProcess

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

ANSWER_S = 100.0  # a job's process starts, imports and loads its models, on a busy machine
ADA = "+12025550100"
BOB = "+12025550199"


def fenced(fact: str) -> str:
    return f'<memory-abc>\n<block label="human">\n{fact}\n</block>\n</memory-abc>'


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server() -> AsyncGenerator[LiveKitServer]:
    async with LiveKitServer().serving() as server:
        yield server


class Fake(FakeSidecar):
    """A fake sidecar on its own port, which remembers callers by their number."""

    def __init__(self) -> None:
        super().__init__(memory_of=self._remembered)
        self.facts: dict[str, str] = {}
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/link"

    def hints(self, call: str) -> Hints:
        opened = [f for f in self.of_type(CallOpen) if isinstance(f, CallOpen) and f.call == call]
        return opened[0].hints

    def _remembered(self, call: str) -> Memory:
        fact = self.facts.get(self.hints(call).phone, "")
        text = fenced(fact) if fact else ""
        return Memory(
            call=call, text=text, version=fact, read_at_s=time.time(), served="fresh", newest=True
        )


@pytest.fixture(scope="module")
def fake() -> Fake:
    return Fake()


@pytest.fixture(scope="module")
async def worker(
    server: LiveKitServer, fake: Fake, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[VoiceWorker]:
    async with voice_worker(server, fake.url, tmp_path_factory.mktemp("worker")) as worker:
        yield worker


@asynccontextmanager
async def on_the_line(
    server: LiveKitServer, room: str, *, phone: str = ADA
) -> AsyncGenerator[tuple[Caller, str]]:
    """Call and hear disclosure and greeting to their end; gives the caller and the call's id."""
    async with calling(server.url, room, f"sip_{room}", phone=phone) as caller:
        job = await server.call_agent(room)
        await caller.until(lambda: len(caller.heard) >= 2, ANSWER_S)
        await caller.until_agent_is_silent(for_s=0.8)
        yield caller, job


async def exchange(caller: Caller, words: str, *, answers: int = 1) -> None:
    """Say something and hear every agent's answer to its end."""
    before = len(caller.heard)
    await caller.say(words)
    await caller.until(lambda: len(caller.heard) >= before + answers, ANSWER_S)
    await caller.until_agent_is_silent()


async def until(condition: Any, budget_s: float = ANSWER_S) -> None:
    with anyio.fail_after(budget_s):
        while not await anyio.to_thread.run_sync(condition):  # noqa: ASYNC110 - another process
            await anyio.sleep(0.1)


def on_disk(spool_dir: Path) -> str:
    """Return what a worker has spooled so far."""
    return "".join(path.read_text() for path in spool_files(spool_dir))


def contents(prompt: list[dict[str, Any]]) -> list[str]:
    return [str(message["content"]) for message in prompt]


# With a fake sidecar


async def test_a_caller_is_greeted_and_answered_from_memory(
    server: LiveKitServer, fake: Fake, worker: VoiceWorker
) -> None:
    """The disclosure comes first, the name is in the greeting, each prompt holds the memory."""
    fake.facts[ADA] = "Name: Ada"
    worker.will_hear("greeting", "what is my name")
    async with fake.serving(fake.port):
        async with on_the_line(server, "greeting") as (caller, job):
            await exchange(caller, "what is my name")
        await fake.until(lambda: job in fake.closed)

    disclosure, greeting, answer = caller.heard
    assert "AI assistant" in disclosure
    assert "Ada" in greeting
    assert "Ada" in answer
    turns = list(fake.stored[job].values())
    assert [disclosure, greeting, "what is my name", answer] == [turn.text for turn in turns]
    assert ["agent", "agent", "caller", "agent"] == [turn.speaker for turn in turns]
    assert [1, 2, 3, 4] == [turn.seq for turn in turns]
    assert {"transcription_delay", "end_of_turn_delay"} <= turns[2].metrics.keys()
    assert {"llm_node_ttft", "tts_node_ttfb", "e2e_latency"} <= turns[3].metrics.keys()
    assert Hints(phone=ADA) == fake.hints(job)
    first, *later = worker.prompts("greeting")
    assert contents(first)[1] == fenced("Name: Ada")
    assert 1 == len(later), "one LLM call a turn"
    assert [fenced("Name: Ada"), "what is my name"] == contents(later[0])[-2:]


async def test_a_barge_in_is_recorded_as_heard(
    server: LiveKitServer, fake: Fake, worker: VoiceWorker
) -> None:
    """An interrupted story is recorded as far as it was heard, and as interrupted."""
    worker.will_hear("barge-in", "tell me a story", "stop please that is enough")
    async with fake.serving(fake.port):
        async with on_the_line(server, "barge-in") as (caller, job):
            await caller.say("tell me a story")
            await caller.until_agent_speaks()
            await anyio.sleep(0.5)
            await caller.say("stop please that is enough")
            await caller.until_agent_is_silent()
            await fake.until(lambda: "stop please that is enough" in fake.texts(job))
        await fake.until(lambda: job in fake.closed)

    story = next(t for t in fake.stored[job].values() if t.text.startswith("Once upon"))
    assert story.interrupted
    assert LONG_STORY.startswith(story.text.strip())
    assert len(story.text) < len(LONG_STORY) - 40
    texts = fake.texts(job)
    assert texts.index("tell me a story") < texts.index(story.text)
    assert texts.index(story.text) < texts.index("stop please that is enough")


async def test_a_hang_up_in_mid_sentence_keeps_the_words(
    server: LiveKitServer, fake: Fake, worker: VoiceWorker
) -> None:
    """The words before the line went dead are the call's last turn."""
    sentence = (
        "please write down that my new address is twelve river lane in the old part of the town"
        " right behind the station"
    )
    worker.will_hear("hang-up", sentence)
    async with fake.serving(fake.port):
        async with on_the_line(server, "hang-up") as (caller, job):
            await caller.begin(sentence, words=3)
        await fake.until(lambda: job in fake.closed, 20)

    last = list(fake.stored[job].values())[-1]
    assert "caller" == last.speaker
    assert last.text.startswith("please write down")
    assert sentence.startswith(last.text)
    assert last.text != sentence


async def test_two_callers_at_once_have_each_their_own_memory(
    server: LiveKitServer, fake: Fake, worker: VoiceWorker
) -> None:
    """Of two calls on one worker, neither has a word of the other in its prompts."""
    fake.facts = {ADA: "Name: Ada", BOB: "Name: Bob"}
    heard: dict[str, str] = {}

    async def call(room: str, phone: str) -> None:
        async with on_the_line(server, room, phone=phone) as (caller, job):
            await exchange(caller, "what is my name")
            heard[room] = " ".join(caller.heard)
        await fake.until(lambda: job in fake.closed, 20)

    for room in ("ada-calls", "bob-calls"):
        worker.will_hear(room, "what is my name")
    async with fake.serving(fake.port), anyio.create_task_group() as tasks:
        tasks.start_soon(call, "ada-calls", ADA)
        tasks.start_soon(call, "bob-calls", BOB)

    for room, own, other in (("ada-calls", "Ada", "Bob"), ("bob-calls", "Bob", "Ada")):
        assert own in heard[room]
        assert other not in heard[room]
        assert other not in str(worker.prompts(room))


async def test_a_call_goes_on_while_the_sidecar_is_away(
    server: LiveKitServer, fake: Fake, worker: VoiceWorker
) -> None:
    """While the sidecar is away and back the caller is answered, and no turn lost or doubled."""
    fake.facts[ADA] = "Name: Ada"
    said = ["my name is Ada", "I live in Lyon", "my dog is called Rex"]
    worker.will_hear("outage", *said)
    async with on_the_line(server, "outage") as (caller, job):
        await exchange(caller, said[0])
        async with fake.serving(fake.port):
            await fake.until(lambda: said[0] in fake.texts(job), ANSWER_S)
            await exchange(caller, said[1])
        await exchange(caller, said[2])
        fake_back = fake.serving(fake.port)
        async with fake_back:
            await fake.until(lambda: said[2] in fake.texts(job), ANSWER_S)
            await caller.hang_up()
            await fake.until(lambda: job in fake.closed, 20)

    turns = list(fake.stored[job].values())
    assert said == [turn.text for turn in turns if turn.speaker == "caller"]
    assert list(range(1, len(turns) + 1)) == [turn.seq for turn in turns]
    assert 8 == len(turns), "disclosure, greeting and three exchanges"
    assert [] == spool_files(worker.spool_dir)


async def test_sigterm_in_a_call_hands_over_what_was_said(
    server: LiveKitServer, fake: Fake, tmp_path: Path
) -> None:
    """A worker that is stopped in the middle of a call flushes the call first."""
    async with (
        fake.serving(fake.port),
        voice_worker(server, fake.url, tmp_path) as worker,
    ):
        another = "and another thing is that I would like to come in on some other day next week"
        worker.will_hear("sigterm", "my name is Ada", another)
        async with on_the_line(server, "sigterm") as (caller, job):
            await exchange(caller, "my name is Ada")
            fake.acks = False
            await caller.begin(another, words=2)
            fake.acks = True
            await worker.stop()
            await fake.until(lambda: job in fake.closed, 20)

    texts = fake.texts(job)
    assert "my name is Ada" in texts
    assert texts[-1].startswith("and another")
    assert [] == spool_files(worker.spool_dir)


@pytest.mark.slow
async def test_kill_9_of_the_worker_leaves_its_words_in_the_spool(
    server: LiveKitServer, fake: Fake, tmp_path: Path
) -> None:
    """With the sidecar away, a killed worker's turns are in the spool and not locked."""
    async with voice_worker(server, fake.url, tmp_path) as worker:
        worker.will_hear("kill", "my name is Ada")
        async with on_the_line(server, "kill") as (caller, _):
            await exchange(caller, "my name is Ada")
            await until(lambda: "my name is Ada" in on_disk(worker.spool_dir))
            await worker.kill()

    (left,) = spool_files(worker.spool_dir)
    file = SpoolFile.take(left)
    assert file is not None
    spooled = file.read()
    file.close()
    assert spooled.opened is not None
    assert Hints(phone=ADA) == spooled.opened.hints
    assert "my name is Ada" in [turn.text for turn in spooled.turns]


# With the real sidecar


@pytest.mark.slow
@pytest.mark.real_letta
async def test_the_second_call_recalls_what_letta_made_of_the_first(
    server: LiveKitServer, letta_server: LettaStack, tmp_path: Path
) -> None:
    """What was said in one call changes the real agent's block and is known in the next."""
    fact, phone = "my name is Ada and I live in Lyon", "+12025550112"
    spool_dir = tmp_path / "spool"
    sidecar = SidecarProcess(
        tmp_path / "data",
        {
            "LETTA_BASE_URL": letta_server.base_url,
            "LETTA_API_KEY": letta_server.api_key or "",
            "SIDECAR_SPOOL_DIR": str(spool_dir),
        },
    )
    await anyio.to_thread.run_sync(sidecar.start)
    try:
        async with voice_worker(server, sidecar.link_url, tmp_path) as worker:
            worker.will_hear("first", fact)
            worker.will_hear("second", "where do I live")
            async with on_the_line(server, "first", phone=phone) as (caller, _):
                await exchange(caller, fact)
            await until(sidecar.is_at_rest, 60)
            async with on_the_line(server, "second", phone=phone) as (caller, _):
                assert "Ada" in " ".join(caller.heard)
                await exchange(caller, "where do I live")
                assert "Lyon" in caller.heard[-1]
            memory = contents(worker.prompts("second")[-1])[-2]
            assert "Lyon" in memory
            assert "<said-recently>" not in memory
    finally:
        await anyio.to_thread.run_sync(sidecar.stop)
    log = "".join(sidecar.log)
    assert "Lyon" not in log
    assert phone not in log


@pytest.mark.slow
async def test_a_sidecar_killed_in_a_call_is_back_for_the_next_one(
    server: LiveKitServer, tmp_path: Path
) -> None:
    """After kill -9 of the sidecar in a call, the next call has what was said before and after."""
    spool_dir = tmp_path / "spool"
    sidecar = SidecarProcess(tmp_path / "data", {"SIDECAR_SPOOL_DIR": str(spool_dir)})
    await anyio.to_thread.run_sync(sidecar.start)
    try:
        async with voice_worker(server, sidecar.link_url, tmp_path) as worker:
            worker.will_hear("before", "my name is Ada", "I live in Lyon")
            worker.will_hear("after", "where do I live")
            async with on_the_line(server, "before", phone="+12025550113") as (caller, _):
                await exchange(caller, "my name is Ada")
                await anyio.to_thread.run_sync(sidecar.kill)
                await exchange(caller, "I live in Lyon")
            await anyio.to_thread.run_sync(sidecar.start)
            said = ["my name is Ada", "I live in Lyon"]
            await until(lambda: said == words_in_journal(sidecar.data_dir))
            async with on_the_line(server, "after", phone="+12025550113") as (caller, _):
                assert "Ada" in " ".join(caller.heard)
                await exchange(caller, "where do I live")
                assert "Lyon" in caller.heard[-1]
    finally:
        await anyio.to_thread.run_sync(sidecar.stop)


def words_in_journal(data_dir: Path) -> list[str]:
    """Return what the caller said in all calls, in the order in which it was stored."""
    with closing(sqlite3.connect(f"file:{data_dir / 'journal.db'}?mode=ro", uri=True)) as journal:
        rows = journal.execute(
            "SELECT text FROM turns WHERE speaker = 'caller' ORDER BY appended_s"
        )
        return [text for (text,) in rows]


@pytest.mark.slow
async def test_two_jobs_in_one_room_store_each_word_once(
    server: LiveKitServer, tmp_path: Path
) -> None:
    """Two jobs in a room both have memory, and each word is stored once across a kill."""
    before, after = "my name is Ada", "I live in Lyon"
    sidecar = SidecarProcess(tmp_path / "data")
    await anyio.to_thread.run_sync(sidecar.start)
    try:
        async with voice_worker(server, sidecar.link_url, tmp_path) as first:
            first.will_hear("twice", before, after)
            async with (
                on_the_line(server, "twice", phone="+12025550115") as (caller, _),
                voice_worker(server, sidecar.link_url, tmp_path),
            ):
                greeted = len(caller.heard)
                await server.call_agent("twice")
                await caller.until(lambda: len(caller.heard) > greeted, ANSWER_S)
                await caller.until_agent_is_silent()
                assert sum("AI assistant" in words for words in caller.heard) == 1
                await exchange(caller, before, answers=2)
                await first.kill()
                await caller.until_agent_is_silent()
                await exchange(caller, after)
                await caller.hang_up()
                await until(lambda: not sidecar.live_calls())
        assert [before, after] == words_in_journal(sidecar.data_dir)
        assert 1 == "".join(sidecar.log).count("call_recorded_elsewhere")
        assert len(first.prompts("twice")) > 3, "both agents answered"
    finally:
        await anyio.to_thread.run_sync(sidecar.stop)


async def test_a_call_that_outlives_its_worker_is_not_greeted_twice(
    server: LiveKitServer, tmp_path: Path
) -> None:
    """After kill -9 of a worker the next job knows what was said, and goes on in the same call."""
    before, after = "my name is Ada", "I live in Lyon"
    sidecar = SidecarProcess(tmp_path / "data")
    await anyio.to_thread.run_sync(sidecar.start)
    try:
        async with voice_worker(server, sidecar.link_url, tmp_path) as first:
            first.will_hear("goes-on", before)
            async with on_the_line(server, "goes-on", phone="+12025550116") as (caller, _):
                await exchange(caller, before)
                await until(lambda: before in words_in_journal(sidecar.data_dir))
                await first.kill()
                await caller.until_agent_is_silent()
                heard, asked = len(caller.heard), len(first.prompts("goes-on"))
                async with voice_worker(server, sidecar.link_url, tmp_path) as second:
                    second.will_hear("goes-on", after)
                    await server.call_agent("goes-on")
                    await caller.until(lambda: len(caller.heard) > heard, ANSWER_S)
                    await caller.until_agent_is_silent()
                    await exchange(caller, after)
                    await caller.hang_up()
                    await until(lambda: not sidecar.live_calls())
                    prompts = second.prompts("goes-on")[asked:]
        assert [before, after] == words_in_journal(sidecar.data_dir)
        assert sum("AI assistant" in words for words in caller.heard) == 1
        for prompt in prompts:
            memory = next(text for text in contents(prompt) if text.startswith("<memory-"))
            assert "This call goes on" in memory
            assert before in memory
            assert after not in memory
        assert 1 == calls_in_journal(sidecar.data_dir)
    finally:
        await anyio.to_thread.run_sync(sidecar.stop)


def calls_in_journal(data_dir: Path) -> int:
    with closing(sqlite3.connect(f"file:{data_dir / 'journal.db'}?mode=ro", uri=True)) as journal:
        return int(journal.execute("SELECT count(*) FROM calls").fetchone()[0])


@pytest.mark.slow
async def test_a_call_in_a_room_is_one_trace(server: LiveKitServer, tmp_path: Path) -> None:
    """One trace goes from the caller's speech to the settled batch, without words or numbers."""
    said = "my name is Zenobia"
    with Collector() as collector:
        sidecar = SidecarProcess(tmp_path / "data", collector.env)
        await anyio.to_thread.run_sync(sidecar.start)
        try:
            async with voice_worker(
                server, sidecar.link_url, tmp_path, env=collector.env
            ) as worker:
                worker.will_hear("traced", said)
                async with on_the_line(server, "traced", phone="+12025550114") as (caller, job):
                    await exchange(caller, said)
                await until(lambda: sidecar.is_at_rest() and collector.named("call"))
                await until(lambda: collector.named("deliver batch"))
        finally:
            await anyio.to_thread.run_sync(sidecar.stop)

    (call,) = collector.named("call")
    caller_turn = collector.named("caller turn")[0]
    delivered = collector.named("deliver batch")
    assert {call.trace} == {caller_turn.trace, *(batch.trace for batch in delivered)}
    assert caller_turn.span in {span for batch in delivered for _, span in batch.links}
    assert {"agent_session", "llm_node", "wait for memory"} <= {
        span.name for span in collector.spans if span.trace == call.trace
    }
    conversations = {span.attributes.get("gen_ai.conversation.id") for span in collector.spans}
    assert job in conversations
    for word in (said, "Zenobia", "AI assistant", "5550114"):
        assert word.encode() not in collector.raw, word
