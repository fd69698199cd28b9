"""LiveKit's side: memory in the prompt, turns as heard, and the caller."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from livekit.agents import (
    Agent,
    APIStatusError,
    StopResponse,
    function_tool,
    llm,
)
from typing_extensions import override

from sidecar.livekit import CallerMemory, LinkSettings, finish, remember
from sidecar.model import Utterance
from sidecar.private import link_token
from sidecar.telemetry import Telemetry
from sidecar.testing.fake_sidecar import FakeSidecar
from sidecar.wire.frames import (
    CallOpen,
    Guidance,
    HangUp,
    Hints,
    Memory,
    Say,
    SpeechStarted,
    TurnFrame,
)
from sidecar.wire.spool import SpoolFile, default_spool_dir, spool_files
from sidecar.worker.call import LinkedCall
from sidecar.worker.livekit import memory as in_prompts
from sidecar.worker.livekit.memory import with_memory
from tests.livekit_room.lobby import FakeRoom, job
from tests.livekit_room.studio import Studio, on_air, studio
from tests.quiet import Quiet

pytestmark = [
    pytest.mark.unit,
    pytest.mark.anyio,
]

TOKEN = "a-token-of-16-or-more"

FENCED = "<memory-x>\nName: Ada\n</memory-x>"
STORY = "Once upon a time there was a keeper who counted ships every evening until none came home"


class Friend(CallerMemory, Agent):
    """An agent as a user writes it."""

    def __init__(self, **options: Any) -> None:
        # LiveKit leaves the event type of speech engines open.
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            instructions="Be brief.", **options
        )


@dataclass
class OnAir:
    studio: Studio
    call: LinkedCall
    telemetry: Telemetry
    shutdowns: list[str]

    async def hang_up(self) -> None:
        await self.studio.session.aclose()


def remembering(text: str) -> Callable[[str], Memory]:
    return lambda call: Memory(
        call=call, text=text, version="v1", read_at_s=time.time(), served="fresh", newest=True
    )


@asynccontextmanager
async def remembered(
    sidecar: FakeSidecar, spool_dir: Path, made: Studio, agent: Agent | None = None
) -> AsyncGenerator[OnAir]:
    """Run a session as a job does, from `remember` to `finish`."""
    telemetry = Telemetry(strict=True, logger=Quiet())
    async with sidecar.serving() as url:
        with job() as ctx:
            shutdowns: list[str] = []
            ctx._on_shutdown = shutdowns.append
            settings = LinkSettings(url, None, spool_dir)
            call = await remember(ctx, made.session, settings=settings, emit=telemetry.emit)
            try:
                async with on_air(made, agent or Friend()):
                    await made.until(lambda: call.memory is not None)
                    yield OnAir(made, call, telemetry, shutdowns)
            finally:
                with anyio.CancelScope(shield=True):
                    await finish(ctx)


def roles(prompt: list[dict[str, Any]]) -> list[str]:
    return [message["role"] for message in prompt]


def contents(prompt: list[dict[str, Any]]) -> list[str]:
    return [str(message["content"]) for message in prompt]


# The prompt


def chat(*turns: tuple[str, str]) -> llm.ChatContext:
    context = llm.ChatContext.empty()
    for role, text in turns:
        context.add_message(role=role, content=text)  # type: ignore[arg-type]
    return context


@pytest.mark.parametrize(
    ("turns", "place"),
    [
        ([("system", "s"), ("user", "u")], 1),
        ([("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")], 3),
        ([("system", "s"), ("user", "a"), ("assistant", "b")], 1),
        ([("system", "s"), ("system", "greet")], 1),
        ([("system", "s")], 1),
        ([("user", "u")], 0),
        ([], 0),
    ],
)
def test_memory_stands_just_before_the_callers_last_words(
    turns: list[tuple[str, str]], place: int
) -> None:
    """Memory is one message before the last user message, or after the instructions."""
    context = chat(*turns)
    before = context.to_dict()

    prompt = with_memory(context, FENCED)

    assert len(turns) + 1 == len(prompt.items)
    assert FENCED == prompt.messages()[place].text_content
    assert "user" == prompt.messages()[place].role
    assert before == context.to_dict()


async def test_the_prompt_of_a_turn_holds_the_memory(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """The prompt holds the pushed memory once, and the conversation does not hold it."""
    sidecar.memory_of = remembering(FENCED)
    made = studio(lambda _: "Hello Ada.")
    async with remembered(sidecar, tmp_path, made) as air:
        made.ear.says("Do you know me?")
        await made.until_committed(2)
        assert 1 == air.telemetry.counts["prompt_served"]

    assert ["system", "user", "user"] == roles(made.model.prompts[0])
    assert ["Be brief.", FENCED, "Do you know me?"] == contents(made.model.prompts[0])
    assert ["Do you know me?", "Hello Ada."] == [item.text_content for item in made.items]
    assert FENCED not in str(made.session.history.to_dict())


async def test_with_no_memory_the_prompt_is_untouched(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """Without memory the agent's own prompt is sent unchanged, byte for byte."""
    plain = studio(lambda _: "Hello.")
    async with on_air(plain, Agent(instructions="Be brief.")):
        plain.ear.says("Hello there.")
        await plain.until_committed(2)
    made = studio(lambda _: "Hello.")
    async with remembered(sidecar, tmp_path, made):
        made.ear.says("Hello there.")
        await made.until_committed(2)

    assert json.dumps(plain.model.prompts) == json.dumps(made.model.prompts)


async def test_a_turn_costs_one_llm_call(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """The reply begun before the end of the turn is used, so each turn is one LLM call."""
    sidecar.memory_of = remembering(FENCED)
    made = studio(lambda text: f"You said {text}", ttft_s=0.05)
    async with remembered(sidecar, tmp_path, made):
        for n in range(3):
            made.ear.says(f"number {n}")
            await made.until_committed(2 * n + 2)

    assert 3 == len(made.model.prompts)
    assert all(contents(prompt).count(FENCED) == 1 for prompt in made.model.prompts)


async def test_guidance_is_in_the_next_prompts_beside_the_memory(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """Guidance is a message in every later prompt, with the same bytes each time."""
    sidecar.memory_of = remembering(FENCED)
    made = studio(lambda text: f"You said {text}", ttft_s=0.05)
    async with remembered(sidecar, tmp_path, made) as air:
        made.ear.says("number 0")
        await made.until_committed(2)
        for _ in range(2):
            await sidecar.push(Guidance(call=air.call.call_id, text="Offer a call back."))
        await made.until(lambda: air.telemetry.counts["guidance_taken"] == 2)
        for n in (1, 2):
            made.ear.says(f"number {n}")
            await made.until_committed(2 * n + 2)

    before, *after = made.model.prompts
    assert 2 == len(after), "one LLM call a turn"
    assert "call back" not in str(before)
    for n, prompt in enumerate(after, start=1):
        assert ["system", "user", "user"] == roles(prompt)[-3:]
        guidance, memory, said = contents(prompt)[-3:]
        assert guidance.endswith("\n- Offer a call back.")
        assert (memory, said) == (FENCED, f"number {n}")
    assert contents(after[0])[-3] == contents(after[1])[-3]
    assert "call back" not in str(made.session.history.to_dict())


async def test_the_sidecar_has_the_agent_say_something_and_hang_up(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """A say is spoken and recorded as the agent's turn, and a hang-up shuts the job down."""
    made = studio(lambda text: f"You said {text}", ttft_s=0.05)
    async with remembered(sidecar, tmp_path, made) as air:
        await sidecar.push(Say(call=air.call.call_id, text="One moment, please."))
        await made.until(lambda: bool(sidecar.of_type(TurnFrame)))
        (turn,) = sidecar.of_type(TurnFrame)
        assert isinstance(turn, TurnFrame)
        assert ("agent", "One moment, please.") == (turn.speaker, turn.text)
        assert [] == air.shutdowns
        await sidecar.push(HangUp(call=air.call.call_id))
        await made.until(lambda: bool(air.shutdowns))


async def test_guidance_needs_no_memory(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """Without memory, guidance is in the prompt and no empty message is."""
    made = studio(lambda _: "Hello.")
    async with remembered(sidecar, tmp_path, made) as air:
        await sidecar.push(Guidance(call=air.call.call_id, text="Offer a call back."))
        await made.until(lambda: air.telemetry.counts["guidance_taken"] == 1)
        made.ear.says("Hello there.")
        await made.until_committed(2)

    assert ["system", "system", "user"] == roles(made.model.prompts[0])


@pytest.mark.parametrize(
    ("turns", "joined"),
    [
        (
            [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
            ["s\nGUIDE", "a", "b", f"{FENCED}\nc"],
        ),
        ([("user", "a")], ["GUIDE", f"{FENCED}\na"]),
        ([("system", "s")], ["s\nGUIDE", FENCED]),
        ([("system", "s"), ("assistant", "b")], ["s\nGUIDE", FENCED, "b"]),
        ([], ["GUIDE", FENCED]),
    ],
)
def test_memory_can_join_a_message(turns: list[tuple[str, str]], joined: list[str]) -> None:
    """Memory and guidance can join other messages, and the conversation stays unchanged."""
    context = chat(*turns)
    before = context.to_dict()
    prompt: Any = with_memory(context, FENCED, "GUIDE", joined=True)
    assert contents(prompt.to_provider_format("openai")[0]) == joined
    assert before == context.to_dict()


def alternate(prompt: list[dict[str, Any]]) -> None:
    """Raise the error of a model server whose template requires alternating roles."""
    kinds = [kind for kind in roles(prompt) if kind != "system"]
    if any(kind != ("user", "assistant")[n % 2] for n, kind in enumerate(kinds)):
        said = "Conversation roles must alternate user/assistant/user/assistant/..."
        raise APIStatusError("Error code: 400", status_code=400, body={"message": said})


async def test_a_model_that_wants_turns_hears_of_the_caller(
    sidecar: FakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a template refuses memory as a separate message, it is joined to the caller's words."""
    monkeypatch.setattr(in_prompts, "_in_turns", set[str]())
    sidecar.memory_of = remembering(FENCED)
    prompts: list[list[dict[str, Any]]] = []

    def reply(_: str) -> str:
        alternate(prompts[-1])
        return "Hello Ada."

    made = studio(reply)
    prompts = made.model.prompts
    async with remembered(sidecar, tmp_path, made):
        for number in (1, 2):
            made.ear.says("Do you know me?")
            await made.until_committed(2 * number)
    assert ["Hello Ada."] * 2 == [item.text_content for item in made.items[1::2]]
    assert ["system", "user", "user"] == roles(made.model.prompts[0])
    assert all(len(roles(prompt)) in {2, 4} for prompt in made.model.prompts[1:])
    assert f"{FENCED}\nDo you know me?" == contents(made.model.prompts[-1])[-1]


async def test_another_refusal_of_a_model_is_the_agents(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """A model's other errors go to LiveKit unchanged, and the request is not repeated."""
    sidecar.memory_of = remembering(FENCED)

    def reply(_: str) -> str:
        raise APIStatusError("Error code: 400", status_code=400, body={"message": "no such model"})

    made = studio(reply)
    errors: list[Any] = []
    session: Any = made.session  # LiveKit leaves the handlers of its events untyped
    session.on("error", errors.append)
    async with remembered(sidecar, tmp_path, made):
        made.ear.says("Do you know me?")
        await made.until(lambda: bool(errors))
        await made.until_committed(1)
    assert 1 == len(made.model.prompts)


async def test_a_tool_call_does_not_double_the_memory(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """Each prompt of a turn with a tool call holds the memory once."""
    sidecar.memory_of = remembering(FENCED)
    made = studio(lambda _: "It rains.")

    @function_tool
    async def weather() -> str:
        """Say the weather."""
        return "rain"

    async with remembered(sidecar, tmp_path, made, Friend(tools=[weather])):
        context = made.session.current_agent.chat_ctx.copy()
        context.add_message(role="user", content="Weather?")
        first = with_memory(context, FENCED)
        assert context.messages()[-1].text_content == "Weather?"
        assert 1 == sum(m.text_content == FENCED for m in first.messages())
        made.ear.says("Weather?")
        await made.until_committed(2)

    assert all(contents(prompt).count(FENCED) == 1 for prompt in made.model.prompts)


async def test_speculation_leaves_no_trace(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """However many prompts a turn needs, it is recorded once and the context stays clean."""
    sidecar.memory_of = remembering(FENCED)
    made = studio(lambda _: "Fine.")
    async with remembered(sidecar, tmp_path, made) as air:
        made.ear.starts()
        made.ear.final("I would like")
        await made.until(lambda: len(made.model.prompts) == 1)
        made.ear.final("a table for two")
        made.ear.stops()
        await made.until_committed(2)
        await made.until(lambda: air.call.unacked.all_acked)

    assert len(made.model.prompts) >= 2
    assert ["I would like a table for two", "Fine."] == sidecar.texts("AJ_1")


async def test_an_error_of_ours_does_not_reach_the_voice(
    sidecar: FakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in memory or recording is counted, and the caller still gets a reply."""
    made = studio(lambda _: "Hello.")
    async with remembered(sidecar, tmp_path, made) as air:

        async def broken(*_: object) -> None:
            raise ValueError("ours")

        def also_broken(*_: object, **__: object) -> None:
            raise TypeError("ours")

        monkeypatch.setattr(air.call, "ready", broken)
        monkeypatch.setattr(air.call, "record", also_broken)
        made.ear.says("Hi.")
        await made.until_committed(2)
        assert air.telemetry.counts["part_failed"] >= 3


async def test_an_agent_that_was_never_told_to_remember_works() -> None:
    """An agent with the mixin works without `remember`."""
    made = studio(lambda _: "Hello.")
    async with on_air(made, Friend()):
        made.ear.says("Hi.")
        await made.until_committed(2)
    assert ["system", "user"] == roles(made.model.prompts[0])


# The transcript


async def test_turns_are_recorded_as_heard(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """Both sides of a call reach the sidecar in order, with LiveKit's ids and measurements."""
    made = studio(lambda _: "Nice to meet you.")
    async with remembered(sidecar, tmp_path, made) as air:
        made.ear.says("I am Ada.")
        await made.until_committed(2)
        await made.until(lambda: air.call.unacked.all_acked)

    turns = list(sidecar.stored["AJ_1"].values())
    assert [("caller", "I am Ada."), ("agent", "Nice to meet you.")] == [
        (turn.speaker, turn.text) for turn in turns
    ]
    assert [item.id for item in made.items] == [turn.item for turn in turns]
    assert "on_user_turn_completed_delay" in turns[0].metrics
    assert "llm_node_ttft" in turns[1].metrics
    assert ["AJ_1"] == sidecar.closed
    assert [] == spool_files(tmp_path)


async def test_speech_starts_a_read_of_the_memory(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """Memory is read when the caller begins to speak, before any prompt."""
    made = studio(lambda _: "Yes.")
    async with remembered(sidecar, tmp_path, made):
        made.ear.starts()
        await sidecar.until(lambda: bool(sidecar.of_type(SpeechStarted)))
        assert [] == made.model.prompts
        made.ear.stops()


async def test_an_interrupted_reply_is_recorded_as_heard(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """An interrupted reply is recorded as far as it was heard, and marked as interrupted."""
    made = studio(lambda text: STORY if "story" in text else "Sure.")
    async with remembered(sidecar, tmp_path, made) as air:
        made.ear.says("Tell me a story.")
        await made.until(lambda: made.mouth.playing)
        await anyio.sleep(1.0)
        made.ear.starts()
        await made.ear.goes_on(0.4)
        made.ear.stops()
        made.ear.final("Stop please.")
        await made.until_committed(4)
        await made.until(lambda: air.call.unacked.all_acked)

    story = next(t for t in sidecar.stored["AJ_1"].values() if t.speaker == "agent")
    assert story.interrupted
    assert story.text
    assert STORY.startswith(story.text.rstrip())
    assert len(story.text) < len(STORY) * 0.8
    assert ["Tell me a story.", story.text, "Stop please.", "Sure."] == sidecar.texts("AJ_1")


async def test_a_hang_up_in_mid_sentence_keeps_the_words(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """Words that the caller was saying when the line went dead become one turn."""
    made = studio(lambda _: "Hello.")
    async with remembered(sidecar, tmp_path, made) as air:
        made.ear.starts()
        made.ear.interim("my new address is twelve")
        await made.until(lambda: air.studio.session.user_state == "speaking")
        await made.until(lambda: bool(sidecar.of_type(SpeechStarted)))
        await anyio.sleep(0.1)
        await air.hang_up()
        assert ["participant_disconnected"] != air.shutdowns
        assert 1 == len(air.shutdowns)

    assert ["my new address is twelve"] == sidecar.texts("AJ_1")


async def test_the_job_ends_with_the_session(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """When the session closes the job is shut down, so that `finish` runs."""
    made = studio(lambda _: "Hello.")
    async with remembered(sidecar, tmp_path, made) as air:
        await air.hang_up()
        assert ["user_initiated"] == air.shutdowns


async def test_with_the_sidecar_away_the_last_words_are_in_the_spool(tmp_path: Path) -> None:
    """`finish` leaves unacked turns, with the call's open and close, in the spool."""
    made = studio(lambda _: "Hello.")
    emit = Telemetry(strict=True, logger=Quiet()).emit
    with job() as ctx, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidecar.worker.livekit.job.FLUSH_S", 0.2)
        settings = LinkSettings("ws://127.0.0.1:1/link", None, tmp_path)
        await remember(ctx, made.session, settings=settings, emit=emit)
        async with on_air(made, Friend()):
            made.ear.says("I am Ada.")
            await made.until_committed(2)
        await finish(ctx)

    file = SpoolFile.take(spool_files(tmp_path)[0])
    assert file is not None
    spooled = file.read()
    assert ["I am Ada.", "Hello."] == [turn.text for turn in spooled.turns]
    assert spooled.opened is not None
    assert spooled.closed is not None
    file.close()


class Choosy(Friend):
    """Answers some turns and drops or changes others; `asked` lists the turns it got."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    @override
    async def on_user_turn_completed(
        self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
    ) -> None:
        said = new_message.text_content or ""
        self.asked.append(said)
        if "stop" in said:
            raise StopResponse
        if "raise" in said:
            raise ValueError
        if "change" in said:
            new_message.content = ["something else"]


@pytest.mark.parametrize("dropped", ["stop there", "raise it"])
@pytest.mark.parametrize(("said", "stored"), [("go on", "go on"), ("change", "something else")])
async def test_words_of_a_turn_that_the_session_drops_are_a_turn(
    sidecar: FakeSidecar, tmp_path: Path, dropped: str, said: str, stored: str
) -> None:
    """A turn dropped by `StopResponse` or a failed hook is stored before the next one."""
    made, agent = studio(lambda _: "Fine."), Choosy()
    async with remembered(sidecar, tmp_path, made, agent) as air:
        made.ear.says(dropped)
        await made.until(lambda: bool(agent.asked))  # LiveKit has no event for a dropped turn
        made.ear.says(said)
        await made.until_committed(2)
        await made.until(lambda: air.call.unacked.all_acked)
    assert dropped not in [item.text_content for item in made.items]
    assert [dropped, stored, "Fine."] == sidecar.texts("AJ_1")


@pytest.mark.parametrize("discard", [True, False])
async def test_words_over_an_agent_that_can_not_be_interrupted_are_a_turn(
    sidecar: FakeSidecar, tmp_path: Path, discard: bool
) -> None:
    """Words over an agent that can't be interrupted are stored, answered or not."""
    made = studio(lambda _: "Fine.", discard_audio_if_uninterruptible=discard)
    async with remembered(sidecar, tmp_path, made) as air:
        speech = made.session.say(STORY, allow_interruptions=False)
        await made.until(lambda: made.mouth.playing)
        made.ear.starts()
        made.ear.final("wait a moment")
        made.ear.stops()
        await speech
        made.ear.says("go on")
        await made.until(lambda: any(item.text_content == "Fine." for item in made.items))
        await made.until(lambda: air.call.unacked.all_acked)
    heard = " ".join(t.text for t in sidecar.stored["AJ_1"].values() if t.speaker == "caller")
    assert "wait a moment go on" == heard
    agents = [t.text for t in sidecar.stored["AJ_1"].values() if t.speaker == "agent"]
    assert [STORY, "Fine."] == agents


async def test_words_of_a_turn_that_is_cleared_are_a_turn(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """A turn dropped by `clear_user_turn` is still stored."""
    made = studio(lambda _: "Fine.")
    async with remembered(sidecar, tmp_path, made) as air:
        made.ear.starts()
        made.ear.final("my number is five")
        await made.until(lambda: bool(made.model.prompts))
        made.session.clear_user_turn()
        made.ear.stops()
        await made.until(lambda: len(made.ear.stt.streams) > 1)
        made.ear.says("go on")
        await made.until_committed(2)
        await made.until(lambda: air.call.unacked.all_acked)
    assert ["my number is five", "go on", "Fine."] == sidecar.texts("AJ_1")


async def test_an_agent_that_only_listens_has_its_words_stored_meanwhile(
    sidecar: FakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped words that no turn follows are stored soon, not only when the call ends."""
    monkeypatch.setattr("sidecar.worker.livekit.recorder.UNCOMMITTED_S", 0.2)
    made = studio(lambda _: "Fine.")
    async with remembered(sidecar, tmp_path, made, Choosy()) as air:
        for n, said in enumerate(["stop there", "and stop here"], start=1):
            made.ear.says(said)
            await sidecar.until(lambda n=n: len(sidecar.texts("AJ_1")) == n)
        made.ear.says("go on")
        await made.until_committed(2)
        await made.until(lambda: air.call.unacked.all_acked)
    assert ["stop there", "and stop here", "go on", "Fine."] == sidecar.texts("AJ_1")


async def test_a_turn_that_is_late_is_told_once(
    sidecar: FakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words that were sent before their turn was committed are not sent again with it."""
    monkeypatch.setattr("sidecar.worker.livekit.recorder.UNCOMMITTED_S", 0.0)
    made = studio(lambda _: "Fine.")
    async with remembered(sidecar, tmp_path, made) as air:
        made.ear.says("My number")
        await sidecar.until(lambda: sidecar.texts("AJ_1") == ["My number"])
        await made.until_committed(2)
        await made.until(lambda: air.call.unacked.all_acked)
    assert ["My number", "Fine."] == sidecar.texts("AJ_1")


async def test_a_turn_ended_before_its_final_is_stored_once(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """An interim committed by `commit_user_turn` is stored once, as are later dropped words."""
    made = studio(lambda _: "Fine.")
    async with remembered(sidecar, tmp_path, made, Choosy()) as air:
        made.ear.starts()
        made.ear.interim("go on")
        await made.until(lambda: bool(sidecar.of_type(SpeechStarted)))
        await made.session.commit_user_turn(transcript_timeout=0.1)
        made.ear.stops()
        await made.until_committed(2)
        for said in ("stop there", "stop there"):
            made.ear.says(said)
            await anyio.sleep(0.8)  # LiveKit has no event for a dropped turn
        await air.hang_up()
    assert ["go on", "Fine.", "stop there stop there"] == sidecar.texts("AJ_1")


class Colleague(Friend):
    """An agent that a call is handed to, and that greets."""

    @override
    async def on_enter(self) -> None:
        me: Any = self  # LiveKit leaves the user data of an agent's session open
        await me.session.say("Bert here.")


async def test_words_around_a_hand_over_are_stored_once(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """Words that a handover drops from the conversation are still stored, and only once."""
    sidecar.memory_of = remembering(FENCED)
    made = studio(lambda _: "Fine.")
    async with remembered(sidecar, tmp_path, made) as air:
        made.ear.says("I am Ada.")
        await made.until_committed(2)
        made.ear.starts()
        made.ear.final("my number is five")
        await made.until(lambda: len(made.model.prompts) == 2)  # begun before the turn's end
        made.session.update_agent(Colleague())
        made.ear.stops()
        await made.until(lambda: any(item.text_content == "Bert here." for item in made.items))
        made.ear.says("go on")
        await made.until(lambda: [i.text_content for i in made.items].count("Fine.") == 2)
        await made.until(lambda: air.call.unacked.all_acked)
    heard = [turn.text for turn in sidecar.stored["AJ_1"].values() if turn.speaker == "caller"]
    assert "I am Ada. my number is five go on" == " ".join(heard)
    said = [turn.text for turn in sidecar.stored["AJ_1"].values() if turn.speaker == "agent"]
    assert ["Fine.", "Bert here.", "Fine."] == said
    assert all(contents(prompt).count(FENCED) == 1 for prompt in made.model.prompts)


async def test_what_is_said_beside_the_conversation_is_stored(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """`say(add_to_chat_ctx=False)` is recorded once as heard, even if it is cut off."""
    made = studio(lambda _: "Fine.")
    async with remembered(sidecar, tmp_path, made) as air:
        await made.session.say("One moment.", add_to_chat_ctx=False)
        await made.session.say("Here I am.")
        speech = made.session.say(STORY, add_to_chat_ctx=False)
        await made.until(lambda: made.mouth.playing)
        await anyio.sleep(1.0)
        speech.interrupt()
        await speech
        await made.until(lambda: len(sidecar.texts("AJ_1")) == 3)
        await made.until(lambda: air.call.unacked.all_acked)
    one, two, story = sidecar.stored["AJ_1"].values()
    assert ("One moment.", "Here I am.") == (one.text, two.text)
    assert story.interrupted
    assert STORY.startswith(story.text.rstrip())
    assert len(story.text) < len(STORY) * 0.8


# A call that nobody joined, and the end of one


@pytest.mark.parametrize(
    ("metadata", "hints"), [("{}", Hints()), ({"agent_id": "agent-1"}, Hints(agent_id="agent-1"))]
)
async def test_words_in_a_room_nobody_joined_are_nobodys(
    sidecar: FakeSidecar, tmp_path: Path, metadata: object, hints: Hints
) -> None:
    """A call that nobody joined opens with the job's own hints, and its turns are stored."""
    made = studio(lambda _: "Anybody there?")
    emit = Telemetry(strict=True, logger=Quiet()).emit
    async with sidecar.serving() as url:
        with job(metadata, FakeRoom()) as ctx:
            settings = LinkSettings(url, None, tmp_path)
            call = await remember(ctx, made.session, settings=settings, emit=emit)
            call.record(Utterance("i1", "agent", "Anybody there?"))
            await asyncio.sleep(0)
            assert [] == sidecar.of_type(TurnFrame)
            await finish(ctx)

    opening = sidecar.of_type(CallOpen)[0]
    assert isinstance(opening, CallOpen)
    assert hints == opening.hints
    assert ["Anybody there?"] == sidecar.texts("AJ_1")


async def test_a_jobs_no_holds_before_anybody_joins(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """When the job's consent is "no", no turn is sent or written to disk."""
    made = studio(lambda _: "Anybody there?")
    emit = Telemetry(strict=True, logger=Quiet()).emit
    async with sidecar.serving() as url:
        with job({"consent": "no"}, FakeRoom()) as ctx:
            settings = LinkSettings(url, None, tmp_path)
            call = await remember(ctx, made.session, settings=settings, emit=emit)
            call.record(Utterance("i1", "agent", "Anybody there?"))
            await finish(ctx)
    assert [] == sidecar.of_type(TurnFrame)
    assert [] == spool_files(tmp_path)


async def test_finish_without_remember_is_nothing() -> None:
    """`on_session_end=finish` does nothing if the job did not call `remember`."""
    with job() as ctx:
        await finish(ctx)


def test_the_environment_says_where_the_sidecar_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank and unset settings have their defaults, and a token is optional."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    spool = default_spool_dir()
    token_file = spool.parent / "link-token"
    here = "ws://127.0.0.1:8377/link"
    assert LinkSettings(here, None, spool, token_file=token_file) == LinkSettings.of(
        {"SIDECAR_LINK_URL": " "}
    )
    assert LinkSettings("wss://sidecar.example/link", TOKEN, Path("/spool")) == LinkSettings.of(
        {
            "SIDECAR_LINK_URL": "wss://sidecar.example/link",
            "SIDECAR_LINK_TOKEN": TOKEN,
            "SIDECAR_SPOOL_DIR": "/spool",
        }
    )
    assert Path("/data/spool") == LinkSettings.of({"SIDECAR_DATA_DIR": "/data"}).spool_dir


def test_a_worker_of_the_same_user_finds_the_token(tmp_path: Path) -> None:
    """Without SIDECAR_LINK_TOKEN, the data directory's token is read anew at each use."""
    environ = {"SIDECAR_DATA_DIR": str(tmp_path)}
    shown = LinkSettings.of(environ).shown
    assert callable(shown)
    with pytest.raises(FileNotFoundError):
        shown()
    made = link_token(tmp_path)
    assert shown() == made
    assert LinkSettings.of(environ | {"SIDECAR_LINK_TOKEN": TOKEN}).shown == TOKEN


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("ws://127.0.0.1:8377/link", True),
        ("ws://[::1]:8377/link", True),
        ("ws://localhost/link", True),
        ("wss://sidecar.example/link", False),
        ("ws://127.0.0.1.sidecar.example/link", False),
    ],
)
def test_the_token_of_this_machine_is_shown_to_no_other(
    url: str, here: bool, tmp_path: Path
) -> None:
    """The token that a sidecar made is shown only to a sidecar on this machine."""
    environ = {"SIDECAR_DATA_DIR": str(tmp_path), "SIDECAR_LINK_URL": url}
    assert callable(LinkSettings.of(environ).shown) is here
