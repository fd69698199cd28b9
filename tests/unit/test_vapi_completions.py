"""VAPI's model endpoint as an ASGI application on fakes, in virtual time."""

import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from typing_extensions import override

from sidecar.access.deliveries import Deliveries
from sidecar.access.door import REPLAY_WINDOW_S, Credential, Door
from sidecar.channels.vapi.bodies import about
from sidecar.channels.vapi.completions import (
    FALLBACK_TEXT,
    OVER_BUDGET_TEXT,
    Completions,
    Policy,
)
from sidecar.channels.vapi.control import Control
from sidecar.channels.vapi.limits import Budget, RateCap
from sidecar.errors import LlmError
from sidecar.llm.dialects import Refusal
from tests.llm.answers import (
    ANSWERS,
    CALLS,
    CUT,
    DONE,
    PLAIN,
    ROLE,
    STOP,
    THOUGHT,
    USAGE,
    call,
    chunk,
    data,
    lines,
    says,
)
from tests.unit.test_vapi_call import VapiBench

pytestmark = [pytest.mark.unit, pytest.mark.anyio, pytest.mark.backend("virtual-time")]

CALL = {"id": "1", "type": "inboundPhoneCall", "customer": {"number": "+14155550123"}}
FALLBACK_S = 8.0
PING = b": ping\n\n"


def unended(frame: dict[str, Any]) -> bytes:
    """A frame whose line never ends."""
    return data(frame).rstrip()


class Scripted:
    """A model's server that follows a script: bytes to send, seconds to wait, errors to raise.

    Args:
        script: Returns the steps of the answer to a request's body.
    """

    def __init__(self, script: Callable[[dict[str, Any]], Sequence[Any]]) -> None:
        self.script = script
        self.asked: list[dict[str, Any]] = []

    async def ask(self, body: bytes, traceparent: str = "") -> "ScriptedReply":
        asked: dict[str, Any] = {}
        with contextlib.suppress(RecursionError):
            asked = json.loads(body)
        self.asked.append(asked)
        steps = list(self.script(asked))
        if steps and isinstance(steps[0], LlmError):
            raise steps[0]
        return ScriptedReply(steps)

    async def warm(self) -> None: ...

    async def aclose(self) -> None: ...


class ScriptedReply:
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
        """What VAPI would say; fails if VAPI would end the call."""
        *frames, end, rest = self.body.decode("utf-8", "replace").split("\n\n")
        assert (end, rest) == ("data: [DONE]", "")
        chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def answer(self) -> str:
        """What VAPI would say of a whole answer."""
        return json.loads(self.body)["choices"][0]["message"]["content"]


class Endpoint(VapiBench):
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
async def opened(*steps: Any, **limits: Any) -> AsyncGenerator[Endpoint]:
    """The endpoint before a model that takes these steps whatever it is asked."""
    async with served(Scripted(lambda _: steps), **limits) as bench:
        yield bench


@asynccontextmanager
async def served(upstream: Scripted, **limits: Any) -> AsyncGenerator[Endpoint]:
    bench = Endpoint(upstream, **limits)
    async with trio.open_nursery() as nursery:
        for part in (bench.snapshots, bench.calls, bench.vapi):
            await nursery.start(part.run)
        yield bench
        nursery.cancel_scope.cancel()


class TestGuidance:
    async def test_guidance_is_in_every_prompt_until_the_call_ends(self) -> None:
        """Guidance is in each prompt once, before the caller's last words, even if VAPI adds it."""
        rules = {"role": "system", "content": "Be kind."}
        words = {"role": "user", "content": "Hello"}
        guidance = {"role": "system", "content": "Offer a call back."}
        async with opened(data(says("Hi.")) + DONE) as bench:
            sent: list[str] = []

            async def post(url: str, command: Mapping[str, Any]) -> int:
                sent.append(url + command["type"])
                return 200

            bench.vapi.control = Control(emit=bench.telemetry.emit, post=post)
            url = "https://phone.vapi.ai/1/"
            named = about({"call": {**CALL, "monitor": {"controlUrl": url}}}, trust_web=False)
            found = await bench.vapi.of("acme", named)
            assert found is not None
            live = found.call.live
            live.guide("Offer a call back.")
            await trio.sleep(1.0)
            assert sent == [url + "add-message"]
            await bench.ask(messages=[rules, guidance, words])
            live.guide("Offer a call back.")
            await bench.ask(messages=[rules, guidance, words, {"role": "assistant"}, words])
            live.guide("Be brief.")
            await bench.ask(messages=[rules, words])
            await trio.sleep(1.0)
            assert sent == [url + "add-message"]
            guidance = {"role": "system", "content": live.guidance.text}
            first, second, third = (asked["messages"] for asked in bench.upstream.asked)
            assert first[0] == rules
            assert [m["role"] for m in first] == ["system", "system", "user"]
            assert second == [rules, words, {"role": "assistant"}, first[1], words]
            assert third == [rules, guidance, words]
            assert str(third).count("Offer a call back.") == 1

    async def test_a_body_that_names_nobody_gets_none(self) -> None:
        """Guidance is only in prompts whose body names the call's caller."""
        async with opened(data(says("Hi.")) + DONE) as bench:
            (await bench.call()).live.guide("She owes us 300.")
            await bench.ask(call={"id": "1", "type": "inboundPhoneCall"})
            assert "300" not in str(bench.upstream.asked)


class TestAnswers:
    @pytest.mark.parametrize("size", [1, 7, 1 << 20])
    @pytest.mark.parametrize("name", sorted(ANSWERS))
    async def test_a_caller_hears_words_or_the_fallback(self, name: str, size: int) -> None:
        """Every kind of answer, cut anywhere, is heard as its words or else as the fallback."""
        body, heard, _ = ANSWERS[name]
        pieces = [body[n : n + size] for n in range(0, min(len(body), 4_000), size)]
        async with opened(*pieces) as bench:
            got = await bench.ask()
            assert got.status == 200
            assert got.text == (FALLBACK_TEXT if heard is None else heard)
            assert got.ended_s < 1.0
            assert bench.telemetry.counts["reply_failed"] == (heard is None)

    @pytest.mark.parametrize("name", sorted(ANSWERS))
    async def test_whole_answers(self, name: str) -> None:
        """A request that does not stream is answered with the same words, whole."""
        async with opened(ANSWERS[name].body) as bench:
            got = await bench.ask(stream=False)
            heard = ANSWERS[name].heard
            assert (got.status, got.answer) == (200, FALLBACK_TEXT if heard is None else heard)

    @pytest.mark.parametrize("size", [1, 7, 1 << 20])
    @pytest.mark.parametrize("name", sorted(CUT))
    async def test_a_reply_that_stops_in_the_middle(self, name: str, size: int) -> None:
        """A reply that stops in the middle is heard as far as it came, then one fallback."""
        body, heard, _ = CUT[name]
        async with opened(*(body[n : n + size] for n in range(0, len(body), size))) as bench:
            got = await bench.ask()
            assert got.text == f"{heard} {FALLBACK_TEXT}"
            assert got.ended_s < 1.0
            assert b"transfer" not in got.body
            assert b"canary" not in got.body
            assert got.body.replace(b": ", b":").count(b'"finish_reason":"') == 1
            assert bench.telemetry.counts["reply_failed"] == 1

    @pytest.mark.parametrize("name", sorted(CUT))
    async def test_a_whole_answer_that_stops_in_the_middle(self, name: str) -> None:
        """A request that does not stream is answered with the same words, whole."""
        async with opened(CUT[name].body) as bench:
            assert (await bench.ask(stream=False)).answer == f"{CUT[name].heard} {FALLBACK_TEXT}"

    @pytest.mark.parametrize(
        "finish", ["model_length", "SAFETY", "insufficient_system_resource", "sensitive", "abort"]
    )
    async def test_each_server_has_names_for_a_stop(self, finish: str) -> None:
        """Every name for a stop is known, and half a sentence or nothing gets the fallback."""
        for first, heard in ((data(says("Half a")), "Half a "), (b"", "")):
            async with opened(first, data(chunk({}, finish)), DONE) as bench:
                assert (await bench.ask()).text == f"{heard}{FALLBACK_TEXT}"

    @pytest.mark.parametrize("finish", ["length", "content_filter", "MAX_TOKENS"])
    @pytest.mark.parametrize(
        "text", ["Done.", "Done!", "Was it “this?”", "Ende. 👋", "好的。", "हाँ।"]
    )
    async def test_a_reply_that_stops_after_a_sentence(self, text: str, finish: str) -> None:
        """A reply that was stopped after a whole sentence gets no fallback."""
        async with opened(data(says(text), chunk({}, finish)), DONE) as bench:
            got = await bench.ask()
            assert (got.text, got.ended_s) == (text, 0.0)
            assert bench.telemetry.counts["reply_failed"] == 0

    @pytest.mark.parametrize("name", sorted(CALLS))
    async def test_a_tool_call_is_an_answer(self, name: str) -> None:
        """A tool call is passed to VAPI at once, without a fallback."""
        async with opened(CALLS[name].body) as bench:
            got = await bench.ask()
            assert b'"endCall"' in got.body
            assert got.text == ""
            assert bench.telemetry.counts["reply_failed"] == 0


class TestThought:
    async def test_thought_that_no_tag_begins_is_learnt(self) -> None:
        """A reply whose thought only ends teaches to keep the thought of the next, by model."""
        thought = data(ROLE, says("Let me see."), says("</think>"), says("\n\nYes."), STOP) + DONE
        async with opened(*(thought[n : n + 30] for n in range(0, len(thought), 30))) as world:
            assert (await world.ask()).text == "Let me see.\n\nYes."
            assert world.telemetry.counts["model_dialect_learnt"] == 1
            assert (await world.ask()).text == "Yes."
            assert (await world.ask(stream=False)).answer == "Yes."
            assert world.telemetry.counts["model_dialect_learnt"] == 1

    async def test_a_model_that_stops_thinking_is_heard(self) -> None:
        """A reply without thought is heard at its end, and the next at its first word again."""
        thought = [data(says("Hm."), says("</think>"), says("Yes."), STOP) + DONE]
        plain = [data(says("It ")), 0.5, data(says("is.")), 0.5, data(STOP) + DONE]
        replies = [thought, plain, plain]
        async with served(Scripted(lambda _: replies.pop(0))) as world:
            await world.ask()
            for first_s in (1.0, 0.0):
                got = await world.ask()
                assert (got.text, got.pieces[0][0]) == ("It is.", first_s)

    async def test_a_tag_that_a_caller_asks_for_delays_nobody(self) -> None:
        """A model that speaks without thought does so after a reply that has a tag in its words."""
        plain = [data(says("It ")), 0.5, data(says("is.")), 0.5, data(STOP) + DONE]
        asked_for = [data(says("Here: ")), data(says("</think>")), data(says(" Yes."), STOP) + DONE]
        replies = [plain, asked_for, plain]
        async with served(Scripted(lambda _: replies.pop(0))) as world:
            for text in ("It is.", "Here:  Yes.", "It is."):
                got = await world.ask()
                assert (got.text, got.pieces[0][0]) == (text, 0.0)
            assert world.telemetry.counts["model_dialect_learnt"] == 0

    async def test_a_reply_that_breaks_off_shows_nothing_of_its_model(self) -> None:
        """Thought that broke off before its tag does not pass for a reply without thought."""
        broken = [data(says("Let me")), b'data: {"choices": [{"ind']
        thought = data(says("Let me see."), says("</think>"), says("Yes."), STOP) + DONE
        replies = [broken, [thought], [thought]]
        async with served(Scripted(lambda _: replies.pop(0))) as world:
            await world.ask()
            await world.ask()
            assert (await world.ask()).text == "Yes."

    async def test_thought_that_takes_too_long_is_not_spoken(self) -> None:
        """A model known to think gets the fallback in time, and when its thought was cut."""
        thought = [data(says("Hm."), says("</think>"), says("Yes."), STOP) + DONE]
        slow = [data(says("Let me see. ")), 20.0, data(says("</think>Yes."))]
        cut = [data(says("Let me see. "), chunk({}, "length")) + DONE]
        replies = [thought, slow, cut, thought]
        async with served(Scripted(lambda _: replies.pop(0))) as world:
            await world.ask()
            assert (await world.ask()).text == FALLBACK_TEXT
            assert (await world.ask()).text == FALLBACK_TEXT
            assert (await world.ask()).text == "Yes."


def for_ever(piece: bytes, every_s: float = 0.05) -> list[Any]:
    """A model that repeats one piece for a minute."""
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
        """Frames that a caller can't hear do not delay the fallback."""
        async with opened(*for_ever(SILENT[kind])) as bench:
            got = await bench.ask()
            assert got.text == FALLBACK_TEXT
            assert got.pieces[0][0] == pytest.approx(FALLBACK_S, abs=0.1)

    @pytest.mark.parametrize("kind", SILENT)
    async def test_between_two_words(self, kind: str) -> None:
        """After a word, the line is silent no longer than the limit, whatever frames come."""
        word = data(says("One moment."))
        async with opened(word, 3.0, word, *for_ever(SILENT[kind])) as bench:
            got = await bench.ask()
            assert got.text.strip().endswith(FALLBACK_TEXT)
            assert got.text.startswith("One moment.One moment.")
            assert FALLBACK_S - 1 <= got.ended_s - 3.0 <= FALLBACK_S

    async def test_words_go_on_for_long(self) -> None:
        """A reply whose words keep coming is never cut, however slow it is."""
        slow = [data(says("word ")), 6.9] * 10
        async with opened(*slow, data(STOP), DONE) as bench:
            assert (await bench.ask()).text == "word " * 10

    async def test_after_the_last_word(self) -> None:
        """After the end of a reply, an open or broken connection changes nothing."""
        for rest in ([60.0], [DONE, 60.0], [LlmError("broke off")], [60.0, data(USAGE)]):
            async with opened(data(says("Bye."), STOP), *rest) as bench:
                got = await bench.ask()
                assert got.text == "Bye."
                assert got.ended_s <= 1.0

    async def test_a_server_that_breaks_off(self) -> None:
        """A reply cut off in the middle is ended with the fallback."""
        async with opened(data(says("One ")), LlmError("broke off")) as bench:
            assert (await bench.ask()).text == f"One  {FALLBACK_TEXT}"

    async def test_a_tool_call_goes_out_whole_or_not_at_all(self) -> None:
        """A tool call is sent once its arguments are complete, and words don't wait for it."""
        begun = data(call('{"to":', "transfer", id="t1"))
        rest = [1.0, data(call(' "+49"}')), 1.0, data(chunk({}, "tool_calls")), DONE]
        async with opened(data(says("One moment.")), begun, *rest) as bench:
            got = await bench.ask()
            assert [round(at_s, 1) for at_s, _ in got.pieces] == [0.0, 2.0, 2.0]
            assert (
                got.body.index(b"transfer")
                < got.body.index(b"+49")
                < got.body.index(b'tool_calls"}')
            )
        async with opened(begun, 60.0) as bench:
            got = await bench.ask()
            assert (got.text, got.ended_s) == (FALLBACK_TEXT, FALLBACK_S)
            assert b"transfer" not in got.body

    async def test_a_long_tool_call_is_not_kept_from_vapi(self) -> None:
        """A slow tool call is sent to VAPI in time as far as it came, as VAPI would give up."""
        slow = [1.0, data(call("1, "))] * 30
        ends = [data(call("1]"), chunk({}, "tool_calls")), DONE]
        async with opened(data(ROLE, call("[", "sum", id="t1")), *slow, *ends) as bench:
            got = await bench.ask()
            assert got.pieces[0][0] <= FALLBACK_S
            assert got.body.count(b'"arguments"') == 32
            assert got.text == ""

    async def test_the_first_word_waits_for_nothing(self) -> None:
        """Words are sent at once, even after thoughts of which nothing was sent."""
        async with opened(data(ROLE, THOUGHT), 5.0, data(says("Yes.")), 2.0, data(STOP)) as bench:
            got = await bench.ask()
            assert [round(at_s, 1) for at_s, _ in got.pieces] == [5.0, 7.0, 7.0]


class TestBudgets:
    @staticmethod
    async def together(bench: Endpoint, requests: int, **more: Any) -> list[Heard]:
        got: list[Heard] = []

        async def one(number: int) -> None:
            call = {**CALL, "id": str(number)}
            asked: dict[str, Any] = {"call": call, **more}
            got.append(await bench.ask(f"Hello {number}", **asked))

        async with trio.open_nursery() as nursery:
            for number in range(requests):
                nursery.start_soon(one, number)
        return got

    async def test_a_hundred_at_once_spend_no_more_than_a_day_has(self) -> None:
        """However many requests come at once, they spend no more than is left of the day."""
        usage: dict[str, Any] = {"choices": [], "usage": {"total_tokens": 1_000}}
        reply = [1.0, data(says("Fine."), STOP, usage), DONE]
        async with opened(*reply, day_tokens=2_000, max_tokens=1_000) as bench:
            got = await self.together(bench, 100)
            texts = [one.text for one in got]
            assert texts.count("Fine.") == len(bench.upstream.asked) == 1
            assert texts.count(OVER_BUDGET_TEXT) == 99
            assert bench.budget.used("acme", now_s=bench.clock()) == 1_000
            assert (await bench.ask()).text == OVER_BUDGET_TEXT  # 1,000 left are too few

    async def test_a_call_too(self) -> None:
        """Requests of one call at the same moment share its budget."""
        async with opened(1.0, PLAIN, call_tokens=250, max_tokens=100) as bench:
            got = await self.together(bench, 10, call=CALL)
            assert sum(one.text == OVER_BUDGET_TEXT for one in got) == 8
            assert len(bench.upstream.asked) == 2

    @pytest.mark.parametrize(
        "steps", [[LlmError("cannot be reached")], [Refusal(503)], [Refusal(400, b"no")]]
    )
    async def test_a_failure_gives_back_what_was_set_aside(self, steps: list[Any]) -> None:
        """A request that a server refused or never got costs nothing of any budget."""
        async with opened(*steps, day_tokens=2_000, call_tokens=2_000, max_tokens=1_500) as bench:
            for _ in range(3):
                assert (await bench.ask()).text == FALLBACK_TEXT
            assert bench.budget.used("acme", now_s=bench.clock()) == 0

    async def test_what_is_not_counted_is_estimated(self) -> None:
        """Without the server's count, prompt, chunks and images are estimated."""
        image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        content = [{"type": "text", "text": "What is it?"}, image]
        for steps in ([PLAIN], [data(says("Fine")), LlmError("broke off")], [60.0]):
            async with opened(*steps, day_tokens=100_000) as bench:
                await bench.ask(messages=[{"role": "user", "content": content}])
                assert 48_169 < bench.budget.used("acme", now_s=bench.clock()) < 48_300

    async def test_what_the_server_counts_is_the_cost(self) -> None:
        """A file is reserved at its greatest cost, and costs what the server counts."""
        part = {"type": "file", "file": {"file_id": "f-1"}}
        messages = [{"role": "user", "content": [part]}]
        async with opened(PLAIN.replace(DONE, data(USAGE) + DONE), day_tokens=500_000) as bench:
            for _ in range(3):
                assert (await bench.ask(messages=messages)).text == "Fine, thanks."
            assert bench.upstream.asked[0]["stream_options"] == {"include_usage": True}
            assert bench.budget.used("acme", now_s=bench.clock()) == 45
        async with opened(PLAIN, day_tokens=400_000) as bench:
            assert (await bench.ask(messages=messages)).text == OVER_BUDGET_TEXT
            assert bench.upstream.asked == []


class TestRequests:
    async def test_a_dialect_is_learnt_from_a_refusal(self) -> None:
        """Each refusal of a server is learnt once, and each turn gets its words."""

        def script(asked: dict[str, Any]) -> list[Any]:
            if "max_tokens" in asked:
                said = b'{"error": {"message": "Unsupported parameter", "param": "max_tokens"}}'
                return [Refusal(400, said)]
            roles = [message["role"] for message in asked["messages"]]
            if roles != ["system", "user"]:
                return [Refusal(500, b'{"error": {"message": "roles must alternate"}}')]
            return [PLAIN]

        messages = [
            {"role": role, "content": role} for role in ("system", "user", "system", "user")
        ]
        upstream = Scripted(script)
        async with served(upstream) as bench:
            for _ in range(3):
                assert (await bench.ask(messages=messages)).text == "Fine, thanks."
            assert len(upstream.asked) == 5
            assert upstream.asked[-1]["max_completion_tokens"] == 1_024
            assert [m["content"] for m in upstream.asked[-1]["messages"]] == [
                "system\n\nsystem",
                "user\n\nuser",
            ]
            assert bench.telemetry.counts["model_dialect_learnt"] == 2

    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("status", [None, 400, 422, 500])
    @pytest.mark.parametrize("wrap", [data, lines, unended])
    async def test_a_dialect_is_learnt_from_an_error_in_place_of_words(
        self, wrap: Callable[[dict[str, Any]], bytes], status: int | None, stream: bool
    ) -> None:
        """A refusal sent as an error with status 200 is learnt like any other."""
        said = "Error rendering prompt with jinja template: roles must alternate"

        def script(asked: dict[str, Any]) -> list[Any]:
            if [message["role"] for message in asked["messages"]] != ["user"]:
                return [PING, wrap({"error": {"message": said, "code": status}})]
            return [PLAIN]

        messages = [{"role": "user", "content": word} for word in ("One", "Two")]
        upstream = Scripted(script)
        async with served(upstream) as bench:
            for _ in range(2):
                got = await bench.ask(messages=messages, stream=stream)
                assert (got.text if stream else got.answer) == "Fine, thanks."
            assert len(upstream.asked) == 3
            assert bench.telemetry.counts["reply_failed"] == 0

    @pytest.mark.parametrize("status", [429, 502, "rate_limit"])
    async def test_an_error_that_is_no_refusal_is_not_asked_again(self, status: object) -> None:
        """An error that is no refusal fails the reply, before words or after them."""
        failed = data({"error": {"message": "max_tokens unsupported", "code": status}})
        for first in (b"", data(says("One"))):
            async with opened(first, failed) as bench:
                assert (await bench.ask()).text.endswith(FALLBACK_TEXT)
                assert len(bench.upstream.asked) == (1 if first or status != "rate_limit" else 2)

    async def test_learning_takes_no_longer_than_the_fallback(self) -> None:
        """A server that refuses slowly again and again does not delay the fallback."""

        class Slow(Scripted):
            @override
            async def ask(self, body: bytes, traceparent: str = "") -> ScriptedReply:
                await trio.sleep(3.0)
                return await super().ask(body, traceparent)

        named = ["max_tokens", "temperature", "top_p", "seed", "stop"]
        refusals = [Refusal(400, f"{name} is not supported".encode()) for name in named]
        upstream = Slow(lambda asked: [refusals[len(upstream.asked) - 1]] if asked else [])
        async with served(upstream) as bench:
            got = await bench.ask(temperature=1, top_p=1, seed=1, stop="x")
            assert (got.text, got.ended_s) == (FALLBACK_TEXT, FALLBACK_S)

    async def test_what_the_owner_did_not_allow_is_left_out_and_said(self) -> None:
        """Server-run tools and the effort setting are removed unless the owner allowed them."""
        tools = [{"type": "web_search"}, {"type": "function", "function": {"name": "endCall"}}]
        for allow, passed, said in (((), 1, 1), (("web_search", "reasoning_effort"), 2, 0)):
            async with opened(PLAIN, allow=allow) as bench:
                assert (await bench.ask(tools=tools, reasoning_effort="high")).text
                (asked,) = bench.upstream.asked
                assert len(asked["tools"]) == passed
                assert ("reasoning_effort" in asked) is bool(allow)
                assert bench.telemetry.counts["vapi_held_back"] == said

    async def test_what_cannot_be_written_again_is_refused(self) -> None:
        """A body too deeply nested to be written again is refused, and causes no fault."""
        messages = '[{"role": "user", "content": "Hi"}]'
        async with opened(PLAIN) as bench:
            statuses: list[int] = []
            for depth in range(700, 1_010):
                stop = "[" * depth + "]" * depth
                got = await bench.ask_raw(f'{{"messages": {messages}, "stop": {stop}}}'.encode())
                statuses.append(got.status)
            assert set(statuses) <= {200, 400}
            assert statuses[-1] == 400
