"""A call of the local page: what is said, answered, cut off and said again."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sidecar.calls import MemoryView
from sidecar.channels.console.call import (
    FALLBACK,
    HEARD_S,
    HISTORY_MESSAGES,
    UNSTORED_LIMIT,
    ConsoleCall,
)
from sidecar.errors import JournalFull, LlmError
from sidecar.llm.guidance import CallGuidance
from sidecar.model import Turn
from sidecar.prompt_wait import Waits

pytestmark = [pytest.mark.unit, pytest.mark.anyio, pytest.mark.backend("asyncio", "trio")]

KEY = "default/console-1"


class Line:
    """A live call on a journal that may be full."""

    def __init__(self) -> None:
        self.key = KEY
        self.closed = False
        self.full = False
        self.listener: ConsoleCall | None = None
        self.turns: list[Turn] = []
        self.memory = MemoryView("<memory>Ada</memory>", "v", 0.0, "stale")
        self.guidance = CallGuidance()

    def guide(self, text: str) -> None:
        self.guidance.add(text)
        if self.listener is not None:
            self.listener.on_guidance(text)

    async def record(self, turns: Sequence[Turn]) -> None:
        await anyio.lowlevel.checkpoint()
        if self.full:
            raise JournalFull("no room")
        self.turns += turns

    async def ready(self, waits: Waits) -> float:
        await anyio.lowlevel.checkpoint()
        return 0.0

    async def close(self, reason: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed = True

    @property
    def texts(self) -> list[str]:
        return [turn.text for turn in self.turns]


class Model:
    """Streams two words; the second one waits for `go_on`."""

    def __init__(self) -> None:
        self.asked: list[list[Mapping[str, Any]]] = []
        self.go_on = anyio.Event()
        self.fault: LlmError | None = None

    async def stream(self, messages: Sequence[Mapping[str, Any]]) -> AsyncIterator[str]:
        self.asked.append(list(messages))
        if self.fault is not None:
            raise self.fault
        yield "One "
        await self.go_on.wait()
        yield "two."


class Scene:
    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self.frames: list[dict[str, Any]] = []
        self.line = Line()
        self.model = Model()
        self.call = ConsoleCall(
            KEY,
            self.send,
            self.model,  # type: ignore[arg-type]
            look=lambda: None,
            waits=Waits(),
            tasks=tasks,
            clock=lambda: 1_800_000_000.0,
        )
        self.line.listener = self.call
        self.call.begin(self.line, ())  # type: ignore[arg-type]

    async def send(self, kind: str, **fields: object) -> None:
        await anyio.lowlevel.checkpoint()
        self.frames.append({"type": kind, **fields})

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == kind]

    async def until(self, kind: str, times: int = 1) -> dict[str, Any]:
        with anyio.fail_after(5.0):
            while len(self.of_kind(kind)) < times:
                await anyio.lowlevel.checkpoint()
        return self.of_kind(kind)[-1]


@asynccontextmanager
async def scene() -> AsyncGenerator[Scene]:
    async with anyio.create_task_group() as tasks:
        yield Scene(tasks)
        tasks.cancel_scope.cancel()


async def test_memory_stands_just_before_the_callers_last_words() -> None:
    """The prompt ends with the memory and the caller's words, and can be looked at later."""
    async with scene() as here:
        here.model.go_on.set()
        await here.call.say("a", "Hello.", aloud=False)
        end = await here.until("reply.end")
        assert (end["text"], end["stored"], end["memory"]["served"]) == ("One two.", True, "stale")
        (asked,) = here.model.asked
        assert [m["content"] for m in asked[1:]] == ["<memory>Ada</memory>", "Hello."]
        assert here.call.prompt_of("a") == asked
        assert here.line.turns[1].metrics["memory_served_stale"] == 1.0


async def test_guidance_is_in_every_prompt_to_the_end_of_the_call() -> None:
    """Guidance stays before the memory in each prompt, unchanged, however long the call gets."""
    async with scene() as here:
        here.model.go_on.set()
        here.line.guide("Offer a call back.")
        here.line.guide("Offer a call back.")
        for n in range(HISTORY_MESSAGES):
            await here.call.say(f"turn-{n}", f"Number {n}.", aloud=False)
            await here.until("reply.end", times=n + 1)
        last = f"Number {HISTORY_MESSAGES - 1}."
        for asked, words in ((here.model.asked[0], "Number 0."), (here.model.asked[-1], last)):
            roles = [(m["role"], m["content"]) for m in asked[-3:]]
            assert roles == [
                ("system", here.line.guidance.text),
                ("user", "<memory>Ada</memory>"),
                ("user", words),
            ]
            assert str(asked).count("Offer a call back.") == 1


async def test_words_said_again_are_not_answered_again() -> None:
    """A repeated turn is not answered again; after the reply, the page is sent the reply again."""
    async with scene() as here:
        await here.call.say("a", "Hello.", aloud=False)
        await here.until("reply.delta")
        await here.call.say("a", "Hello.", aloud=False)
        here.model.go_on.set()
        await here.until("reply.end")
        await here.call.say("a", "Hello.", aloud=False)
        again = await here.until("reply.end", times=2)
        assert again["text"] == "One two."
        assert len(here.model.asked) == 1
        assert here.line.texts == ["Hello.", "One two."]


async def test_the_next_words_cut_the_reply_off() -> None:
    """An interrupted reply is stored as far as it was sent, before the interrupting words."""
    async with scene() as here:
        await here.call.say("a", "Hello.", aloud=False)
        await here.until("reply.delta")
        await here.call.say("b", "Wait!", aloud=False)
        assert here.line.texts == ["Hello.", "One", "Wait!"]
        assert here.line.turns[1].interrupted
        assert here.of_kind("reply.end")[0]["interrupted"] is True


async def test_a_reply_read_aloud_is_kept_as_it_was_heard() -> None:
    """A reply read aloud is stored once it was spoken, or as far as it was spoken if cut off."""
    async with scene() as here:
        here.model.go_on.set()
        await here.call.say("a", "Hello.", aloud=True)
        await here.until("reply.spoken")
        assert here.of_kind("reply.end") == []
        await here.call.stop(heard_chars=3)
        assert here.line.texts == ["Hello.", "One"]
        await here.call.say("b", "Go on.", aloud=True)
        await here.until("reply.spoken", times=2)
        here.call.heard("b")
        assert (await here.until("reply.end", times=2))["interrupted"] is False
        assert here.line.texts[-1] == "One two."
        assert HEARD_S > 30


async def test_what_a_full_journal_refused_is_stored_first_when_there_is_room() -> None:
    """Turns that a full journal refused are stored in order as soon as there is room."""
    async with scene() as here:
        here.model.go_on.set()
        here.line.full = True
        await here.call.say("a", "First.", aloud=False)
        assert (await here.until("reply.end"))["stored"] is False
        assert here.of_kind("turn") == []
        here.line.full = False
        await here.call.say("b", "Second.", aloud=False)
        await here.until("reply.end", times=2)
        assert [frame["turn"] for frame in here.of_kind("turn")] == ["a", "b"]
        assert here.line.texts == ["First.", "One two.", "Second.", "One two."]
        assert [turn.seq for turn in here.line.turns] == [1, 2, 3, 4]


async def test_the_end_of_a_call_stores_what_could_not_be() -> None:
    """Turns that the journal refused are tried once more before the call is closed."""
    async with scene() as here:
        here.model.go_on.set()
        here.line.full = True
        await here.call.say("a", "First.", aloud=False)
        await here.until("reply.end")
        here.line.full = False
        await here.call.end("caller hung up")
        assert here.line.closed
        assert here.line.texts == ["First.", "One two."]


async def test_a_model_that_fails_is_spoken_for() -> None:
    """When the model fails, the caller hears an apology and the page gets the reason."""
    async with scene() as here:
        here.model.fault = LlmError("refused")
        await here.call.say("a", "Hello.", aloud=False)
        assert (await here.until("reply.end"))["text"] == FALLBACK
        assert "refused" in here.of_kind("error")[0]["message"]


async def test_a_call_that_another_page_has_taken_up_is_not_ended() -> None:
    """A page that lost its call to another one neither speaks in it nor closes it."""
    async with scene() as here:
        here.line.listener = None
        await here.call.end("page closed")
        assert not here.line.closed
        await here.call.say("a", "Hello.", aloud=False)
        assert here.line.texts == []


async def test_a_call_goes_on_from_what_is_stored() -> None:
    """A call taken up again knows its turns, answers the open one and stores none twice."""
    async with scene() as here:
        stored = [
            Turn(KEY, "a", 1, "caller", "Hello.", 1.0),
            Turn(KEY, "reply-a", 2, "agent", "Hi.", 2.0),
            Turn(KEY, "b", 3, "caller", "Who am I?", 3.0),
        ]
        here.model.go_on.set()
        here.call.begin(here.line, stored)  # type: ignore[arg-type]
        await here.call.say("a", "Hello.", aloud=False)
        assert (await here.until("reply.end"))["text"] == "Hi."
        await here.call.say("b", "Who am I?", aloud=False)
        await here.until("reply.end", times=2)
        assert [(turn.item_id, turn.seq) for turn in here.line.turns] == [("reply-b", 4)]
        assert [m["content"] for m in here.model.asked[0][1:]] == [
            "Hello.",
            "Hi.",
            "<memory>Ada</memory>",
            "Who am I?",
        ]


async def test_what_waits_for_a_full_journal_is_bounded() -> None:
    """Beyond a bound new words are refused, and those already taken are stored later."""
    async with scene() as here:
        here.model.go_on.set()
        here.line.full = True
        for n in range(UNSTORED_LIMIT // 2):
            await here.call.say(f"t{n}", f"word {n}", aloud=False)
            await here.until("reply.end", times=n + 1)
        here.frames.clear()
        await here.call.say("one more", "no room", aloud=False)
        assert "no room" in here.of_kind("error")[0]["message"]
        assert [] == here.line.turns
        here.line.full = False
        await here.call.say("one more", "room", aloud=False)
        await here.until("reply.end")
        said = [turn.text for turn in here.line.turns if turn.speaker == "caller"]
    assert said == [*(f"word {n}" for n in range(UNSTORED_LIMIT // 2)), "room"]
