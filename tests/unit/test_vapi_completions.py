"""VAPI's model endpoint as an ASGI application on fakes, in virtual time."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from sidecar.channels.vapi.auth import REPLAY_WINDOW_S, Credential, Door
from sidecar.channels.vapi.completions import FALLBACK_TEXT, Completions, Policy
from sidecar.channels.vapi.deliveries import Deliveries
from sidecar.channels.vapi.limits import Budget, RateCap
from sidecar.errors import LlmError
from tests.llm.answers import (
    ANSWERS,
    CALLS,
    DONE,
    ROLE,
    STOP,
    THOUGHT,
    USAGE,
    data,
    says,
)
from tests.unit.test_vapi_call import World

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

CALL = {"id": "1", "type": "inboundPhoneCall", "customer": {"number": "+14155550123"}}
FALLBACK_S = 8.0
PING = b": ping\n\n"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})


class Scripted:
    """A model's server that answers by a script: bytes to send, seconds to wait, an error to raise.

    Args:
        script: Of each request, by its body.
    """

    def __init__(self, script: Callable[[dict[str, Any]], Sequence[Any]]) -> None:
        self.script = script
        self.asked: list[dict[str, Any]] = []

    async def ask(self, body: bytes, traceparent: str = "") -> "ScriptedReply":
        asked = json.loads(body)
        self.asked.append(asked)
        steps = list(self.script(asked))
        if steps and isinstance(steps[0], LlmError):
            raise steps[0]
        return ScriptedReply(steps)

    async def warm(self) -> None: ...

    async def aclose(self) -> None: ...


class ScriptedReply:
    content_type = "text/event-stream"

    def __init__(self, steps: list[Any]) -> None:
        self._steps = steps

    async def next(self) -> bytes:
        while self._steps:
            step = self._steps.pop(0)
            if isinstance(step, bytes):
                if step:
                    return step
            elif isinstance(step, Exception):
                raise step
            else:
                await trio.sleep(step)
        return b""

    def close(self) -> None: ...


class Heard:
    """What VAPI got, and when (seconds since it asked)."""

    def __init__(self) -> None:
        self.status = 0
        self.pieces: list[tuple[float, bytes]] = []
        self.ended_s = 0.0

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    @property
    def text(self) -> str:
        """What it would say; fails where it would end the call."""
        *frames, end, rest = self.body.decode("utf-8", "replace").split("\n\n")
        assert (end, rest) == ("data: [DONE]", "")
        chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def answer(self) -> str:
        """What it would say of a whole answer."""
        return json.loads(self.body)["choices"][0]["message"]["content"]


class Endpoint(World):
    def __init__(self, upstream: Scripted, **limits: Any) -> None:
        super().__init__()
        self.upstream = upstream
        self.budget = Budget(limits.pop("day_tokens", 0))
        deliveries = Deliveries(
            window_s=REPLAY_WINDOW_S,
            wall=self.clock,
            clock=self.clock,
            path=None,
            emit=self.telemetry.emit,
        )
        self.completions = Completions(
            self.vapi,
            upstream,
            Door([Credential("acme", (b"key",), (b"s",))], wall=self.clock, deliveries=deliveries),
            policy=Policy(model="m", fallback_s=FALLBACK_S, **limits),
            rate=RateCap(1e6, 1e6),
            budget=self.budget,
            emit=self.telemetry.emit,
            clock=self.clock,
            wall=self.clock,
        )

    async def ask(self, text: str = "Hello", *, stream: bool = True, **more: Any) -> Heard:
        """Ask for a reply, as VAPI does."""
        asked = {"messages": [{"role": "user", "content": text}], "stream": stream, "call": CALL}
        raw = json.dumps({**asked, **more}).encode()
        return await self.ask_raw(raw)

    async def ask_raw(self, raw: bytes) -> Heard:
        heard, over = Heard(), trio.Event()
        began_s = trio.current_time()
        parts = [{"type": "http.request", "body": raw}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(part: Any) -> None:
            now_s = trio.current_time() - began_s
            if part["type"] == "http.response.start":
                heard.status = part["status"]
                return
            if part["body"]:
                heard.pieces.append((now_s, part["body"]))
            if not part.get("more_body"):
                heard.ended_s = now_s
                over.set()

        headers = [(b"authorization", b"Bearer key")]
        await self.completions({"type": "http", "headers": headers}, receive, send)
        return heard


@asynccontextmanager
async def opened(*steps: Any, **limits: Any) -> AsyncIterator[Endpoint]:
    """The endpoint before a model that takes these steps whatever it is asked."""
    async with served(Scripted(lambda _: steps), **limits) as world:
        yield world


@asynccontextmanager
async def served(upstream: Scripted, **limits: Any) -> AsyncIterator[Endpoint]:
    world = Endpoint(upstream, **limits)
    async with trio.open_nursery() as nursery:
        for part in (world.snapshots, world.calls, world.vapi):
            await nursery.start(part.run)
        yield world
        nursery.cancel_scope.cancel()


class TestAnswers:
    @pytest.mark.parametrize("size", [1, 7, 1 << 20])
    @pytest.mark.parametrize("name", sorted(ANSWERS))
    async def test_a_caller_hears_words_or_the_fallback(self, name: str, size: int) -> None:
        """Of every kind of answer, however it is cut: its words, and else the fallback at once."""
        body, heard, _ = ANSWERS[name]
        pieces = [body[n : n + size] for n in range(0, min(len(body), 4_000), size)]
        async with opened(*pieces) as world:
            got = await world.ask()
            assert got.status == 200
            assert got.text == (FALLBACK_TEXT if heard is None else heard)
            assert got.ended_s < 1.0
            assert world.telemetry.counts["reply_failed"] == (heard is None)

    @pytest.mark.parametrize("name", sorted(ANSWERS))
    async def test_whole_answers(self, name: str) -> None:
        """A request that does not stream is answered with the same words, whole."""
        async with opened(ANSWERS[name].body) as world:
            got = await world.ask(stream=False)
            heard = ANSWERS[name].heard
            assert (got.status, got.answer) == (200, FALLBACK_TEXT if heard is None else heard)

    @pytest.mark.parametrize("name", sorted(CALLS))
    async def test_a_tool_call_is_an_answer(self, name: str) -> None:
        """VAPI is given a tool to run at once, and no fallback beside it."""
        async with opened(CALLS[name].body) as world:
            got = await world.ask()
            assert b'"endCall"' in got.body
            assert got.text == ""
            assert world.telemetry.counts["reply_failed"] == 0


def for_ever(piece: bytes, every_s: float = 0.05) -> list[Any]:
    """A model that goes on for a minute."""
    return [piece, every_s] * round(60 / every_s)


SILENT = {
    "comments": PING,
    "empty deltas": data(says("")),
    "blanks": data(says(" ")),
    "roles": data(ROLE),
    "thought": data(THOUGHT),
    "usage": data(USAGE),
    "no choices": data({"ping": 1}),
    "half a frame": b"data: {",
}


class TestSilence:
    @pytest.mark.parametrize("kind", SILENT)
    async def test_before_the_first_word(self, kind: str) -> None:
        """What no caller can hear, twenty times a second, puts the fallback off by nothing."""
        async with opened(*for_ever(SILENT[kind])) as world:
            got = await world.ask()
            assert got.text == FALLBACK_TEXT
            assert got.pieces[0][0] == pytest.approx(FALLBACK_S, abs=0.1)

    @pytest.mark.parametrize("kind", SILENT)
    async def test_between_two_words(self, kind: str) -> None:
        """After a first word the line is silent no longer than the limit, whatever else comes."""
        word = data(says("One moment."))
        async with opened(word, 3.0, word, *for_ever(SILENT[kind])) as world:
            got = await world.ask()
            assert got.text.strip().endswith(FALLBACK_TEXT)
            assert got.text.startswith("One moment.One moment.")
            assert FALLBACK_S - 1 <= got.ended_s - 3.0 <= FALLBACK_S

    async def test_words_go_on_for_long(self) -> None:
        """A reply whose words keep coming is never cut, however slow it is."""
        slow = [data(says("word ")), 6.9] * 10
        async with opened(*slow, data(STOP), DONE) as world:
            assert (await world.ask()).text == "word " * 10

    async def test_after_the_last_word(self) -> None:
        """A server that holds its connection open, or breaks it, after the end changes nothing."""
        for rest in ([60.0], [DONE, 60.0], [LlmError("broke off")], [60.0, data(USAGE)]):
            async with opened(data(says("Bye."), STOP), *rest) as world:
                got = await world.ask()
                assert got.text == "Bye."
                assert got.ended_s <= 1.0

    async def test_a_server_that_breaks_off(self) -> None:
        """A reply cut off in the middle is ended with the fallback."""
        async with opened(data(says("One ")), LlmError("broke off")) as world:
            assert (await world.ask()).text == f"One  {FALLBACK_TEXT}"

    async def test_the_first_word_waits_for_nothing(self) -> None:
        """Words go out at once, also after thought of which nothing went out."""
        async with opened(data(ROLE, THOUGHT), 5.0, data(says("Yes.")), 2.0, data(STOP)) as world:
            got = await world.ask()
            assert [round(at_s, 1) for at_s, _ in got.pieces] == [5.0, 7.0, 7.0]
