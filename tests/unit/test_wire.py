"""The reader of chat completions: every kind of answer, in whatever pieces it comes."""

import gc
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.llm.aloud import MOST_CHARS, Aloud, ends_a_sentence, without_thought
from sidecar.llm.objects import Nesting
from sidecar.llm.openai import PIECE_BYTES
from sidecar.llm.passing import Passing
from sidecar.llm.port import Reply, ToolCall
from sidecar.llm.reader import ANSWER_BYTES, FRAME_BYTES, ChatReader, is_audible
from sidecar.llm.writer import ChatWriter
from tests.cpu_time import at_most, is_within
from tests.llm.answers import (
    ANSWERS,
    CALL,
    CALLS,
    DONE,
    ROLE,
    STOP,
    THOUGHT,
    USAGE,
    call,
    chunk,
    data,
    says,
    whole,
)

pytestmark = pytest.mark.unit

NAMES = sorted(ANSWERS)
PIECE_S = 0.1
"""The CPU time of what is read at once: several times what it takes."""
GREEDY: dict[str, Callable[[int], bytes]] = {
    "braces for arguments": lambda n: data(call("{" * n, "f", id="t1")),
    "texts for arguments": lambda n: data(call('{"' + '""' * (n // 4), "f", id="t1")),
    "pairs for arguments": lambda n: data(call("{}" * (n // 2), "f", id="t1")),
    "arguments": lambda n: data(call(json.dumps([{"b": 1}] * (n // 14)), "f", id="t1")),
    "calls": lambda n: data(chunk({"tool_calls": [CALL] * (n // 90)})),
    "calls in a whole answer": lambda n: whole({"tool_calls": [CALL] * (n // 90)}),
    "an array of objects": lambda n: b"[" + b"{}," * (n // 3),
    "objects": lambda n: b"{}" * (n // 2),
    "open objects": lambda n: b"[" + b"{" * n,
    "texts in an object": lambda n: b"[{" + b'""' * (n // 2),
    "events": lambda n: b"data:{}\n" * (n // 8),
    "blank lines": lambda n: b"x\n" + b"\n" * n,
    "choices": lambda n: data({"choices": [None] * (n // 6)}),
    "parts": lambda n: data(chunk({"content": [1] * (n // 4)})),
    "no numbers": lambda n: b'data: {"a":[' + b"NaN," * (n // 4) + b"1]}\n\n",
    "halves of characters": lambda n: (
        b'data: {"choices":[{"delta":{"content":"' + rb"\ud83d" * (n // 6) + b'"}}]}\n\n'
    ),
    "tags": lambda n: data(says("<think></think>" * (n // 16))),
    "signs of tags": lambda n: data(says("<" * n)),
    "marks": lambda n: data(says("." * n)),
}
"""Answers that cost much to read, each of about so many bytes."""
CPU_S = 0.5
"""The CPU time of a long answer: several times what it takes, and a fraction of its square."""
LONG = {
    "an event in lines": b'data: {"choices":[\n' + b"data: 1,\n" * 32_000,
    "an event in lines with braces": b'data: {"choices":[\n' + b'data: {"}":"]"},\n' * 16_000,
    "an event in lines after an end": b"data: {}}\n" + b"data: {}\n" * 32_000,
    "blanks, and half a tag": data(says(" " * 200_000 + "<th")) + data(says("")) * 4_000,
    "signs of tags": data(says("<" * 200_000)) + data(says("a <|channel|")) * 4_000,
    "thought of many pieces": data(says("<think>")) + data(says("</thin")) * 30_000,
    "signs, and many ends": (
        data(says("a.")) + data(says(")" * 200_000)) + data(chunk({}, finish="length")) * 1_000
    ),
    "blanks": b" " * 3_000_000,
    "an object that does not end": b"[" + b'{"a":' * 100_000,
    "a long error": data({"error": {"message": "exceeds " * 400_000}}),
}


def pieces_of(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    """A body cut at these places."""
    ends = [*sorted({cut % (len(body) + 1) for cut in cuts}), len(body)]
    return [piece for a, b in zip([0, *ends], ends, strict=False) if (piece := body[a:b])]


def read(pieces: Iterable[bytes]) -> ChatReader:
    reader = ChatReader()
    for piece in pieces:
        reader.feed(piece)
    reader.close()
    return reader


def passed(pieces: Iterable[bytes]) -> tuple[bytes, Passing]:
    """What is sent on of a stream, and the `Passing` that read it."""
    passing = Passing()
    out = [passing.feed(piece) for piece in pieces]
    return b"".join([*out, passing.close()]), passing


def spoken(stream: bytes) -> str:
    """What VAPI would say; fails if VAPI would end the call."""
    *frames, end, rest = stream.decode("utf-8", "replace").split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    assert all(isinstance(chunk["choices"], list) for chunk in chunks)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class TestReading:
    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_heard_of_it(self, name: str) -> None:
        """Each kind of answer is read as its words, or fails with a reason that repeats none."""
        answer = ANSWERS[name]
        reader = read([answer.body])
        assert bool(reader.failure) is (answer.heard is None)
        assert "canary" not in reader.failure
        assert reader.words is (answer.heard is not None)
        assert answer.heard in {None, reader.text}

    @given(st.sampled_from(NAMES), st.lists(st.integers(0, 4_000), max_size=40))
    def test_the_pieces_do_not_matter(self, name: str, cuts: list[int]) -> None:
        """An answer is read the same wherever it is cut, even within a character."""
        body = ANSWERS[name].body
        one, other = read([body]), read(pieces_of(body, cuts))
        assert (one.text, one.failure, one.tokens) == (other.text, other.failure, other.tokens)

    @given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
    def test_any_bytes(self, body: bytes, cuts: list[int]) -> None:
        """Any bytes are read without an error, and are no reply unless they hold one."""
        reader = read(pieces_of(body, cuts))
        assert reader.failure or reader.words or reader.tools

    @pytest.mark.parametrize("name", CALLS)
    def test_tools(self, name: str) -> None:
        """A tool call is an answer without words."""
        reader = read([CALLS[name].body])
        assert (reader.tools, reader.words, reader.failure) == (True, False, "")

    def test_what_it_cost(self) -> None:
        """The server's token count is read wherever it is, and invalid ones are ignored."""
        usages: tuple[Any, ...] = (None, {"total_tokens": True}, {"total_tokens": -1}, [], "x")
        for usage in usages:
            body = data(says("Hi."), {**USAGE, "usage": usage}, USAGE, STOP)
            assert read([body]).tokens == 15
            assert read([data(says("Hi."), {**USAGE, "usage": usage})]).tokens == 0

    def test_the_last_word_is_the_last(self) -> None:
        """A reply that was finished counts, even if the rest of the stream is broken."""
        for rest in (b"data: {", b'data: {"choices": [], "us', b"data: {broken}\n"):
            assert read([data(says("Bye."), STOP) + rest]).failure == ""

    @given(st.lists(st.text('a{}[]"\\ü, \n', min_size=1, max_size=9), min_size=1, max_size=5))
    def test_frames_in_lines(self, words: list[str]) -> None:
        """Frames in several lines are read where each ends, with or without a blank line."""
        frames = [json.dumps(says(f"x{word}"), indent=1).splitlines() for word in words]
        said = "".join(f"x{word}" for word in words)
        for end in ("\n", ""):
            lines = ["".join(f"data: {line}\n" for line in frame) + end for frame in frames]
            reader = ChatReader()
            moved: list[int] = []
            for line in lines:
                reader.feed(line.encode())
                moved.append(reader.moved)
            reader.close()
            assert (reader.failure, reader.text) == ("", said)
            assert moved == list(range(1, len(words) + 1))

    def test_a_list_in_lines(self) -> None:
        """An event in lines that is no object is a failure, and so is one that is no JSON."""
        assert "not a JSON object" in read([b'data: [{"choices": [\ndata: ]}]\n\n']).failure
        assert read([b'data: {"choices": [\ndata: ]}}\ndata: {}\n\n']).failure.endswith("not JSON")

    @pytest.mark.parametrize("body", LONG.values(), ids=LONG)
    @pytest.mark.parametrize("kind", [ChatReader, Passing])
    def test_long_answers_hold_nobody(self, kind: type[ChatReader | Passing], body: bytes) -> None:
        """Each part of an answer is looked at once, however the answer is broken up."""
        reader = kind()
        with at_most(CPU_S):
            for at in range(0, len(body), 4096):
                reader.feed(body[at : at + 4096])
            reader.close()

    @pytest.mark.parametrize("size", [FRAME_BYTES - 2_000, 2 * FRAME_BYTES])
    @pytest.mark.parametrize("kind", [ChatReader, Passing])
    @pytest.mark.parametrize("answer", GREEDY.values(), ids=GREEDY)
    def test_no_piece_holds_the_loop(
        self, answer: Callable[[int], bytes], kind: type[ChatReader | Passing], size: int
    ) -> None:
        """What a server may write costs little at once, and what would cost much is no reply."""
        reader, body = kind(), answer(size)
        took_s: list[float] = []
        gc.disable()  # it would look at whatever earlier tests left
        try:
            for at in range(0, len(body), PIECE_BYTES):
                began_s = time.thread_time()
                reader.feed(body[at : at + PIECE_BYTES])
                took_s.append(time.thread_time() - began_s)
            began_s = time.thread_time()
            reader.close()
            took_s.append(time.thread_time() - began_s)
        finally:
            gc.enable()
        assert is_within(max(took_s), PIECE_S)

    @given(
        st.lists(st.sampled_from(["{", "}", '"', "\\", "a", '{"a":', "[1]", r"\\", r"\""])),
        st.lists(st.integers(0, 40), max_size=6),
    )
    def test_arguments_that_stop_in_an_object(self, parts: list[str], cuts: list[int]) -> None:
        """Arguments are open or whole the same wherever they are cut, and JSON is whole."""
        text = "".join(parts)
        whole, cut = Nesting(), Nesting()
        whole.feed(text.encode())
        for piece in cut_up(text, cuts):
            cut.feed(piece.encode())
        assert (whole.depth, whole.in_text) == (cut.depth, cut.in_text)
        as_text = Nesting()
        as_text.feed(json.dumps({"a": {"b": text}}).encode())
        assert (as_text.depth, as_text.in_text) == (0, False)
        as_text.feed(json.dumps({"a": text}).encode()[:-1])
        assert as_text.depth == 1

    @pytest.mark.parametrize("size", [FRAME_BYTES - 200, FRAME_BYTES + 200])
    def test_a_frame_without_end(self, size: int) -> None:
        """A frame, or a whole answer, that is longer than its limit is no reply."""
        for body in (data(says("a" * size)), whole({"content": "a" * size})):
            for pieces in ([body], pieces_of(body, range(0, len(body), PIECE_BYTES))):
                assert ("no end" in read(pieces).failure) is (size > FRAME_BYTES)

    def test_an_answer_without_end(self) -> None:
        """A line or a reply that is too long ends the reading."""
        assert "no end" in read([b"data: {" + b"x" * ANSWER_BYTES]).failure
        endless = [data(says("word " * 1_000))] * (ANSWER_BYTES // 5_000 + 1)
        assert "no end" in read(endless).failure

    @pytest.mark.parametrize("text", ["", " ", "\n", "…", "--", "\u200b", "!?", '"'])
    def test_what_no_voice_says(self, text: str) -> None:
        """Blanks and punctuation alone are not audible."""
        assert not is_audible(text)
        assert is_audible(f"{text}a")


THOUGHTS = {
    "<think>": "</think>",
    "<Thinking>": "</THINKING>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "\u25c1think\u25b7": "\u25c1/think\u25b7",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel|>analysis<|message|>": "<|end|><|start|>assistant<|channel|>final<|message|>",
    "<|channel|>commentary to=user<|message|>": "<|channel|>final<|message|>",
}
cut_at = st.lists(st.integers(0, 400), max_size=12)


def cut_up(text: str, cuts: Iterable[int]) -> list[str]:
    ends = [*sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def said_of(pieces: Iterable[str], *, thinks: bool = False) -> tuple[str, bool | None]:
    aloud = Aloud(thinks=thinks)
    said = "".join([*map(aloud.feed, pieces), aloud.close()])
    return said, aloud.thinks


class TestAloud:
    @given(
        st.lists(
            st.sampled_from(
                [
                    *("<think>", "</Think>", "[THINK]", "[/THINK]", "<", " ", "a", "\n", "\u25c1"),
                    *("[th", "<|channel|>", "analysis", "final<|message|>", "<|end|>", "<|"),
                ]
            )
        ),
        cut_at,
        st.booleans(),
    )
    def test_the_pieces_do_not_matter(
        self, parts: list[str], cuts: list[int], thinks: bool
    ) -> None:
        """However thoughts and words are cut, the same words are said."""
        text = "".join(parts)
        whole, other = (
            (said.strip(), learnt)
            for said, learnt in (
                said_of([text], thinks=thinks),
                said_of(cut_up(text, cuts), thinks=thinks),
            )
        )
        assert whole == other
        assert "<think>" not in whole[0]
        assert not whole[0].startswith("[THINK]")

    @given(
        st.sampled_from(sorted(THOUGHTS)),
        st.text("ab <[\n", max_size=20),
        st.text("ab 12<\n.", max_size=20),
        cut_at,
    )
    def test_thought_is_never_said_and_words_always(
        self, tag: str, thought: str, words: str, cuts: list[int]
    ) -> None:
        """Between any tags, in any case and any pieces, thought is left out and no word is."""
        for text in (tag + thought + THOUGHTS[tag] + words, f" {tag}{THOUGHTS[tag]}\n{words}"):
            for cased in (text, text.upper(), text.lower()):
                said, learnt = said_of(cut_up(cased, cuts))
                assert said.strip().lower() == words.strip()
                assert learnt is None

    @given(st.text("abc.,<>|[]/ \u25c1\u25b7", max_size=60), cut_at)
    def test_signs_that_make_no_tag_are_words(self, words: str, cuts: list[int]) -> None:
        """Words without a tag are said as they are, each at once unless a tag may begin."""
        shown = False if words.strip() else None
        assert said_of(cut_up(words, cuts)) == (words, shown)
        aloud = Aloud()
        assert aloud.feed("Hello there,") == "Hello there,"
        assert aloud.feed(" Ada [1] / 2.") == " Ada [1] / 2."

    @pytest.mark.parametrize("end", sorted({*THOUGHTS.values()} - {"[/THINK]"}))
    @given(cuts=cut_at)
    def test_thought_that_no_tag_began(self, end: str, cuts: list[int]) -> None:
        """A reply whose thought only ends is said without the tag; the next keeps its thought."""
        text = f"Let me see.{end}\nYes."
        tagless, learnt = said_of(cut_up(text, cuts))
        assert tagless == "Let me see.\nYes."
        assert learnt
        assert said_of(cut_up(text, cuts), thinks=True) == ("Yes.", None)
        assert without_thought(text)[0] == "Yes."

    def test_a_model_that_stops_thinking_is_heard(self) -> None:
        """A reply that was to begin with thought and has no tag is said at its end, unless cut."""
        assert said_of(["So ", "it is", " <th"], thinks=True) == ("So it is <th", False)
        assert said_of(["<think>", "Hm."], thinks=True) == ("", None)
        assert said_of([], thinks=True) == ("", None)
        aloud = Aloud(thinks=True)
        assert aloud.feed("Let me") + aloud.close(cut=True) == ""
        assert aloud.thinks is None

    def test_thought_without_end_is_never_words(self) -> None:
        """Thought longer than any reply is not read again at its end, and none of it stays."""
        for length, said in ((MOST_CHARS, MOST_CHARS), (MOST_CHARS + 1, 0)):
            aloud = Aloud(thinks=True)
            assert not any(map(aloud.feed, cut_up("a" * length, range(0, length, 1_000))))
            assert len(aloud.close()) == said
            assert aloud.thinks is (False if said else None)
        aloud = Aloud(thinks=True)
        assert aloud.feed("a" * (MOST_CHARS + 1)) + aloud.feed("</think>Yes.") == "Yes."

    @pytest.mark.parametrize(
        ("text", "ends"),
        [
            ("Yes.", True),
            ("Yes!”", True),
            ("(Yes.)", True),
            ("Bye! 👋 ", True),
            ("**Yes.**", True),
            ("はい。", True),
            ("نعم؟", True),
            ("Half a", False),
            ("First, ", False),
            ("Dr. Mey", False),
            ("The list:", False),
            ("", False),
        ],
    )
    def test_where_a_sentence_ends(self, text: str, ends: bool) -> None:
        """Quotes, brackets and signs may follow the mark that ends a sentence."""
        assert ends_a_sentence(text) is ends


class TestPassing:
    @pytest.mark.parametrize("name", NAMES)
    def test_vapi_is_given_what_it_can_read(self, name: str) -> None:
        """Every reply is sent on as frames that VAPI can read, and anything else is not sent."""
        answer = ANSWERS[name]
        out, passing = passed([answer.body])
        assert bool(passing.reader.failure) is (answer.heard is None)
        assert (spoken(out) if out else None) == answer.heard

    @given(st.sampled_from(NAMES), st.lists(st.integers(0, 4_000), max_size=40))
    def test_the_pieces_do_not_matter(self, name: str, cuts: list[int]) -> None:
        """Wherever an answer is cut, the same words are sent on and read."""
        answer = ANSWERS[name]
        out, passing = passed(pieces_of(answer.body, cuts))
        assert (spoken(out) if out else None) == answer.heard
        assert passing.reader.text == read([answer.body]).text

    @given(st.lists(st.sampled_from([says("a word"), THOUGHT, says(""), USAGE, says(" ")])))
    def test_what_passes_unread_is_counted(self, frames: list[dict[str, object]]) -> None:
        """The words that were sent on unread are the words that are read later."""
        said = [json.loads(json.dumps(frame)) for frame in frames]
        out, passing = passed([data(says("First.")), *(data(frame) for frame in said), DONE])
        words = [f["choices"][0]["delta"].get("content", "") for f in said if f["choices"]]
        assert spoken(out) == passing.reader.text == "First." + "".join(words)

    def test_nothing_goes_out_before_a_word(self) -> None:
        """Nothing is sent before a word, and then all buffered frames are sent with it."""
        passing = Passing()
        buffered = data(chunk({"role": "assistant"}), THOUGHT, USAGE, says(" "), says("…"))
        assert passing.feed(b": ping\n\n" + buffered) == b""
        assert not passing.heard
        assert passing.feed(data(says("Hi"))) == buffered + data(says("Hi"))
        assert passing.heard

    @pytest.mark.parametrize("name", CALLS)
    def test_a_tool_for_vapi_to_run(self, name: str) -> None:
        """A tool call is sent at once, with whole arguments, and its stream is ended."""
        out, passing = passed([CALLS[name].body])
        assert passing.heard
        assert spoken(out) == ""
        assert b'"endCall"' in out
        assert b'"finish_reason":"tool_calls"' in out.replace(b": ", b":")
        arguments: dict[int, str] = {}
        for frame in out.decode().split("\n\n")[:-2]:
            for choice in json.loads(frame.removeprefix("data: "))["choices"]:
                for part in choice["delta"].get("tool_calls") or ():
                    so_far = arguments.get(part["index"], "")
                    arguments[part["index"]] = so_far + part["function"]["arguments"]
        assert arguments
        assert all(isinstance(json.loads(text or "{}"), dict) for text in arguments.values())

    @pytest.mark.parametrize(
        "arguments", ["", "null", "{'why': 'bye'}", '{"a": 1}}', '{"b": "\\"}"}']
    )
    def test_a_call_that_its_model_ended_goes_out_as_it_is(self, arguments: str) -> None:
        """A tool call that the model ended is sent unchanged, even if it is no JSON."""
        out, passing = passed([data(call(arguments, "endCall", id="t1"), chunk({}, "tool_calls"))])
        assert passing.reader.failure == ""
        (frame, _) = out.decode().split("\n\n", 1)
        (made,) = json.loads(frame.removeprefix("data: "))["choices"][0]["delta"]["tool_calls"]
        assert made["function"]["arguments"] == arguments

    @pytest.mark.parametrize(
        "odd",
        [
            {"choices": [None]},
            {"choices": [{"index": 0}]},
            {"choices": [{"index": 0, "delta": None}]},
            chunk({"content": 5}),
            chunk({"content": {"text": "x"}}),
        ],
    )
    @pytest.mark.parametrize("ends", [(), (STOP,), ({"choices": [{"finish_reason": "stop"}]},)])
    def test_every_frame_has_a_delta_and_one_is_the_last(
        self, odd: dict[str, Any], ends: tuple[dict[str, Any], ...]
    ) -> None:
        """However a server ends a reply, each frame has a text delta and one a finish reason."""
        for end in (DONE, b""):
            out, _ = passed([data(odd), data(says("Hi.")), data(odd, *ends) + end])
            assert spoken(out) == "Hi."
            assert out.replace(b": ", b":").count(b'"finish_reason":"stop"') == 1

    @pytest.mark.parametrize("call", [{}, None, {"index": 0, "function": {"arguments": ""}}])
    def test_an_empty_part_of_a_tool_call(self, call: Any) -> None:
        """A part of a tool call without a name or arguments does not count as heard."""
        passing = Passing()
        assert passing.feed(data(chunk({"tool_calls": [call]}))) == b""
        assert not passing.heard
        passing.feed(data(says("One moment.")))
        passing.feed(data(chunk({"tool_calls": [call]})))
        assert not passing.look()

    def test_a_tag_never_passes_unread(self) -> None:
        """After the first word a frame with a tag, or part of one, is read before it is sent."""
        passing = Passing()
        out = b"".join(
            passing.feed(data(says(text)))
            for text in ("One", " <", "/th", "ink>", " two", " \u25c1", "think\u25b7no", " [1]")
        )
        assert b"think" not in out
        assert b"no" not in out.replace(b"null", b"")
        passing.feed(data(says("\u25c1/think\u25b7 three")))
        passing.look()
        assert passing.reader.text == "One  two  three"

    def test_usual_frames_pass_as_they_came(self) -> None:
        """After the first word the model's own bytes are passed on, several frames at once, too."""
        passing = Passing()
        passing.feed(data(says("One")))
        for came in (data(says(" two")), data(says(" three"), says(" {four}\n\n data: "))):
            assert passing.feed(came) is came
        assert passing.reader.text == ""
        assert passing.look()
        assert passing.reader.text == "One two three {four}\n\n data: "

    @pytest.mark.parametrize(
        ("came", "heard"),
        [
            (data(says("word")), True),
            (data(says("word"), says("")), True),
            (data(says(" ")), False),
            (data(THOUGHT), False),
            (data(USAGE), False),
            (data(chunk({"content": None, "reasoning": {"content": "hm"}})), False),
            (b": ping\n\n", False),
            (data(chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]})), True),
        ],
    )
    def test_what_a_caller_hears(self, came: bytes, heard: bool) -> None:
        """A look tells whether the newest frames hold something to hear."""
        passing = Passing()
        passing.feed(data(says("One")))
        passing.feed(data(says(" two")))
        passing.feed(came)
        assert passing.look() is heard
        assert passing.look() is heard

    @pytest.mark.parametrize(
        ("frames", "goes_out"),
        [
            ([ROLE], False),
            ([ROLE, says("Hi")], True),
            ([ROLE, says("你好")], True),
            ([says("你好")], True),
            ([says("…")], False),
            (
                [
                    chunk({"content": "", "tool_calls": [{"index": 0, "function": {"name": "f"}}]}),
                    STOP,
                ],
                True,
            ),
            ([chunk({"role": "assistant", "content": "Hi"})], True),
            ([chunk({"content": '"1"'})], True),
            ([chunk({"reasoning": {"content": "hm"}, "content": None})], False),
        ],
    )
    def test_the_first_frames(self, frames: list[dict[str, Any]], goes_out: bool) -> None:
        """A word in any script, and a tool call, is sent with the frame it comes in."""
        assert bool(Passing().feed(data(*frames))) is goes_out

    def test_an_error_after_words(self) -> None:
        """Words that came with an error are sent, but neither the error nor an end is."""
        out, passing = passed([data(says("One")), data(says(" two"), {"error": {"code": "x"}})])
        assert out == data(says("One"), says(" two"))
        assert passing.reader.failure.endswith(": x")


REPLIES = {
    "words": Reply("Hello Ada. Grüß dich 🎉."),
    "a word": Reply("Yes."),
    "a call": Reply("", (ToolCall("c1", "endCall", "{}"),)),
    "words and calls": Reply(
        "One moment.", (ToolCall("c1", "weather", '{"in": "Köln"}'), ToolCall("c2", "time", "{}"))
    ),
}


class TestFrames:
    @pytest.mark.parametrize("whole", [False, True], ids=["streamed", "whole"])
    @pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
    def test_what_we_write_we_read(self, reply: Reply, whole: bool) -> None:
        """Words, tool calls and usage that we write are read unchanged, streamed or whole."""
        writer = ChatWriter("m", created_s=1.0, answer_id="x")
        usage = {"total_tokens": 15}
        if whole:
            reader = read([writer.whole(reply, usage=usage)])
        else:
            events = [*writer.events(reply, usage=usage), DONE]
            reader = read(events)
            *frames, end, _ = b"".join(events).decode().split("\n\n")
            assert end == "data: [DONE]"
            assert all("choices" in json.loads(f.removeprefix("data: ")) for f in frames)
            out, passing = passed(events)
            assert passing.reader.text == reply.text
            assert all(call.call_id in out.decode() for call in reply.tool_calls)
        assert (reader.failure, reader.text, reader.tokens) == ("", reply.text, 15)
        assert reader.tools is bool(reply.tool_calls)

    def test_what_we_say_has_choices_in_every_frame(self) -> None:
        """A spoken fallback consists of frames that VAPI can read, with an end."""
        assert spoken(ChatWriter("m", created_s=1.0, answer_id="x").spoken("Sorry?")) == "Sorry?"
