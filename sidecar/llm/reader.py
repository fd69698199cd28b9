"""Reads the wire format of chat completions, for every path: bytes in, words out. Pure.

Servers differ in what they write: another content type or none, a whole answer in place of a
stream, lines or an array of JSON in place of events, frames without `choices`, `"error": null` in
each, an `error` beside `choices`, no blank line between two frames, neither `finish_reason` nor
`[DONE]`, thought between tags, a refusal in place of words. The content of an answer decides, never
its headers. And only what a caller can hear, or a tool to run, counts as a reply: roles, blanks,
comments and thought do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from sidecar.llm.aloud import Aloud, ends_a_sentence, is_cut, without_thought
from sidecar.llm.frames import (
    PLAIN_WORD,
    code_of,
    finish_of,
    first_choice,
    frame_of,
    json_of,
    object_or_none,
    parsed,
    text_of,
)
from sidecar.llm.objects import Lines, Objects
from sidecar.llm.tool_calls import ToolCalls

ANSWER_BYTES: Final = 4 << 20
"""A longer answer has failed."""
FRAME_BYTES: Final = 1 << 18
"""A longer frame, or a longer whole answer, has failed: it is read at once, and all calls wait."""
NO_END: Final = "the language model's answer has no end"
NO_STREAM: Final = "the language model's answer is no stream"
NO_JSON: Final = "the language model's answer is not JSON"
NO_OBJECT: Final = "the language model's answer is not a JSON object"
NO_COMPLETION: Final = "the language model's answer is no chat completion"
FAILED: Final = "the language model failed while it spoke"
BROKE_OFF: Final = "the language model broke off in the middle of a reply"
CUT: Final = "the language model was cut off in the middle of a sentence"
HALF_A_CALL: Final = "the language model broke off in the arguments of a tool call"
NOTHING: Final = "the language model gave an empty reply"
_DONE: Final = b"[DONE]"
_BOM: Final = b"\xef\xbb\xbf"
_BLANKS: Final = b" \t\r\n"


@dataclass(slots=True)
class Chunk:
    """One frame of a stream, or a part of a whole answer.

    Attributes:
        data: JSON that every client can read; empty if it has nothing for a client.
        text: The words it adds.
        tools: It calls tools, or goes on with a call.
        last: It says why the reply ends.
    """

    data: bytes
    text: str = ""
    tools: bool = False
    last: bool = False


def is_audible(text: str) -> bool:
    """Whether a text has anything to speak: a letter or a digit."""
    return any(map(str.isalnum, text))


class ChatReader:
    """Reads the answer to one request for a chat completion, streamed or whole.

    Args:
        thinks: What was learnt of the model: see `Aloud`.

    Attributes:
        tokens: As the server counted them; 0 if it did not.
        frames: How many chunks came.
        answer: A whole answer that came in place of a stream, as every client can read it.
        words: There was something to hear.
        tools: There were tools to run.
        moved: Grows with each chunk that holds something to hear, or a tool to run.
        ended: A finish reason came, or the end.
        done: The end came; nothing after it is read.
        failure: Why it is not a reply, or not all of one, without any of its words; empty if it
            is one. Nothing after a failure is read.
        refusal: What the server said about an error; it may teach (see `dialects`). It may repeat
            words of the conversation: it is read, and never shown.
    """

    def __init__(self, *, thinks: bool = False) -> None:
        self.tokens = 0
        self.frames = 0
        self.answer: Mapping[str, Any] | None = None
        self.words = self.tools = False
        self.moved = 0
        self.ended = self.done = False
        self.failure = ""
        self.refusal = b""
        self._finish = ""
        self._text: list[str] = []
        self._aloud = Aloud(thinks=thinks)
        self._thinks = thinks
        self._calls = ToolCalls()
        self._begun = self._chosen = False
        self._bytes = 0
        self._buffer = bytearray()
        self._part: Lines | None = None
        self._event = b""
        self._sentence = False
        self._objects: Objects | None = None

    @property
    def text(self) -> str:
        """All words so far."""
        return "".join(self._text)

    @property
    def hushed(self) -> bool:
        """Whether the model thinks in its text, or may have begun to."""
        return self._aloud.hushed

    @property
    def thinks(self) -> bool | None:
        """What the reply shows of its model: see `Aloud.thinks`. Half of one has no last tag."""
        shown = self._aloud.thinks
        return None if self.failure and not shown else shown

    @property
    def unfinished(self) -> str:
        """The finish reason that a client wants and the server did not give; empty if it did."""
        return "" if self._finish else "tool_calls" if self.tools else "stop"

    @property
    def between_lines(self) -> bool:
        """Whether everything that came was read, up to the end of a line."""
        return not (self._buffer or self._part or self._event or self._objects)

    def feed(self, came: bytes) -> list[Chunk]:
        """Read what came; a line that has not ended is kept for the next time."""
        self._bytes += len(came)
        if self.failure or self.done:
            return []
        if self._bytes > ANSWER_BYTES:
            self.failure = NO_END
            return []
        if not self._begun:
            self._buffer += came
            self._begin()
            if not self._begun or self.failure:
                return []
            came = bytes(self._buffer)
            self._buffer.clear()
        if self._objects is not None:
            chunks = self._values(self._objects.feed(came))
            if self._objects.open_bytes > FRAME_BYTES:
                self.failure = self.failure or NO_END
            return chunks
        self._buffer += came
        # Searched backwards, and only what is new: a long line costs no more than its length.
        end = max(came.rfind(b"\n"), came.rfind(b"\r")) + 1
        if not end:
            if len(self._buffer) > FRAME_BYTES:
                self.failure = NO_END
            return []
        end += len(self._buffer) - len(came)
        block = bytes(self._buffer[:end])
        del self._buffer[:end]
        return self._lines(block)

    def close(self) -> list[Chunk]:
        """Read what is left once the body has ended; `failure` says whether it was a reply.

        An answer whose body ended as HTTP says is complete, even without any mark of its end.
        """
        rest, self._buffer = bytes(self._buffer), bytearray()
        if self.failure:
            return []
        chunks = self._lines(rest)
        if not self.failure and not self.ended:
            if self._part or (self._objects is not None and self._objects.open_bytes):
                self.failure = BROKE_OFF
            elif self.tools and not self._calls.whole:
                self.failure = HALF_A_CALL
            chunks += self._rest_of_words()
        if not self.failure and not self.words and not self.tools:
            self.failure = NO_COMPLETION if self._objects and not self._chosen else self.empty
        return chunks

    @property
    def empty(self) -> str:
        """Why nothing came that a caller can hear, for the person who set the model up."""
        return f"{NOTHING}: {self._finish}" if PLAIN_WORD.fullmatch(self._finish) else NOTHING

    @property
    def cut(self) -> str:
        """What `failure` says of a reply that its server cut in the middle of a sentence."""
        return f"{CUT}: {self._finish.lower()}"

    def _begin(self) -> None:
        """Tell events from JSON by the first character."""
        first = bytes(self._buffer[:3])
        if first == _BOM:
            del self._buffer[:3]
        elif _BOM.startswith(first):
            return
        start = bytes(self._buffer.lstrip(_BLANKS)[:1])
        if start:
            self._begun = True
            if start in {b"{", b"["}:
                self._objects = Objects()
            elif start == b"<":
                self.failure = NO_STREAM
        else:
            # One blank stands for all, or each piece would cost all before it.
            del self._buffer[:-1]

    def _values(self, values: list[bytes]) -> list[Chunk]:
        """Read objects that came one after another."""
        chunks: list[Chunk] = []
        for value in values:
            if self.done or self.failure:
                break
            if len(value) > FRAME_BYTES:
                self.failure = NO_END
                break
            try:
                frame, data = parsed(value)
            except ValueError:
                self.failure = NO_JSON
                break
            choice = first_choice((frame or {}).get("choices"))
            if not self.frames and choice is not None and "delta" not in choice and frame:
                chunks += self._answer(frame, choice)
            elif frame is not None:
                chunks += self._frame(frame, data)
        return chunks

    def _lines(self, block: bytes) -> list[Chunk]:
        chunks: list[Chunk] = []
        for line in block.splitlines():
            if self.done or self.failure:
                break
            if line.startswith(b"data:"):
                chunks += self._data(line[5:].strip())
            elif not line:
                self._event = b""
                if self._part:
                    self.failure = NO_JSON
            elif line.startswith(b"{"):
                chunks += self._data(line)  # some servers write their errors without `data:`
            elif line.startswith(b"event:"):
                self._event = line[6:].strip()
        return chunks

    def _data(self, data: bytes) -> list[Chunk]:
        """Read one line of data; a frame may have several, so a broken one waits for the next."""
        if data == _DONE:
            rest = self._rest_of_words()
            if self.tools and not self.ended and not self._calls.whole:
                self.failure = HALF_A_CALL
            self.ended = self.done = True
            return rest
        part = self._part
        if len(data) > FRAME_BYTES:
            self.failure = NO_END
            return []
        if part is None and not data.startswith((b"{", b"[")):
            return []  # a keep-alive
        whole = data if part is None else part.feed(data)
        try:
            frame, whole = parsed(whole) if whole else (None, b"")
        except ValueError:
            frame, whole = None, b""
        if whole:
            self._part = None
            if frame is not None:
                return self._frame(frame, whole)
            self.failure = NO_OBJECT
            return []
        if part is None:
            self._part = part = Lines()
            part.feed(data)
        if part.length > FRAME_BYTES:
            self.failure = NO_END
        return []

    def _frame(self, frame: Mapping[str, Any], data: bytes) -> list[Chunk]:
        self.frames += 1
        if "usage" in frame:
            self._count(frame)
        choices: object = frame.get("choices")
        choice = first_choice(choices)
        finish = finish_of(choice) if choice is not None else None
        if finish == "error" or frame.get("error") or self._is_error(frame):
            self._fail(frame, data)
            return []
        if choice is None:
            return [Chunk(data)] if choices == [] else []  # a client would fail on it
        self._chosen = True
        message: object = choice.get("delta")
        if not isinstance(message, dict):
            message, data = object_or_none(choice.get("message")) or {}, b""
        if len(cast("list[object]", choices)) > 1:
            data = b""
        return self._delta(frame, cast("dict[str, Any]", message), finish, data)

    def _delta(
        self, frame: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None, data: bytes
    ) -> list[Chunk]:
        """Read what a frame adds; `data` is empty if it can't pass as it came."""
        written: object = delta.get("content")
        content = written or delta.get("refusal")
        text = text_of(content) if content else ""
        text = self._aloud.feed(text)
        if finish:
            text += self._aloud.close(cut=is_cut(finish))
        tools = "tool_calls" in delta and self._calls.go_on(delta)
        self._take(text, tools=tools)
        if finish == "stop" and self.tools:
            finish, data = "tool_calls", b""
        if finish and self._end(finish):
            finish, data = None, b""
        if text != (written or "") or not isinstance(written, str | None):
            data = b""
            if not text and not tools and not finish and (self.hushed or self.failure):
                return []
        if data and not (tools and (text or self._calls.mended)):
            return [Chunk(data, text, tools, bool(finish))]
        calls = {"tool_calls": self._calls.newest}
        if tools and text:
            said = Chunk(frame_of(frame, _said(delta, text), None), text)
            return [said, Chunk(frame_of(frame, calls, finish), "", tools, bool(finish))]
        added = {**_said(delta, text), **(calls if tools else {})}
        return [Chunk(frame_of(frame, added, finish), text, tools, bool(finish))]

    def _answer(self, answer: Mapping[str, Any], choice: Mapping[str, Any]) -> list[Chunk]:
        """Read a whole answer, as the frames of a stream."""
        self.frames = 1
        self._count(answer)
        if answer.get("error") or finish_of(choice) == "error":
            self._fail(answer, json_of(answer))
            return []
        message = object_or_none(choice.get("message"))
        if message is None:
            self.failure = NO_COMPLETION
            return []
        self._chosen = True
        finish = finish_of(choice)
        text, self._aloud.thinks = without_thought(
            text_of(message.get("content") or message.get("refusal")),
            thinks=self._thinks,
            cut=is_cut(finish or ""),
        )
        tools = self._calls.go_on(message)
        delta: dict[str, Any] = {"role": "assistant", "content": text}
        if tools:
            delta["tool_calls"] = self._calls.newest
        whole = {**choice, "message": {**message, "content": text or None}}
        self.answer = {**answer, "choices": [whole]}
        self._take(text, tools=tools)
        self._finish = finish or ""
        if not self.words and not self.tools:
            self.failure = self.empty
            return []
        if finish and self._end(finish):
            return [Chunk(frame_of(answer, _said(delta, text), None), text)]
        self.ended = self.done = True
        ends = "tool_calls" if tools else finish or "stop"
        last = Chunk(frame_of(answer, {}, ends), last=True)
        return [Chunk(frame_of(answer, delta, None), text, tools), last]

    def _rest_of_words(self) -> list[Chunk]:
        """Return what was buffered as a possible beginning of thought, once no more is to come."""
        text = self._aloud.close()
        if not text:
            return []
        chunk = Chunk(frame_of({}, {"content": text}, None), text)
        self._take(text, tools=False)
        return [chunk]

    def _take(self, text: str, *, tools: bool) -> None:
        if text:
            self._text.append(text)
            self._sentence = ends_a_sentence(text, before=self._sentence)
            if is_audible(text):
                self.words = True
                self.moved += 1
        if tools:
            self.tools = True
            self.moved += 1

    def _end(self, finish: str) -> bool:
        """Note why the reply ends; return whether it ends too early."""
        self.ended = True
        self._finish = finish
        if self.tools and not self._calls.whole:
            self.failure = HALF_A_CALL
        elif self.words and not self.tools and is_cut(finish) and not self._sentence:
            self.failure = self.cut
        return bool(self.failure)

    def _is_error(self, frame: Mapping[str, Any]) -> bool:
        named, self._event = self._event == b"error", b""
        return named or "error" in (frame.get("object"), frame.get("type"))

    def _fail(self, frame: Mapping[str, Any], data: bytes) -> None:
        error: object = frame.get("error")
        self.failure = FAILED + code_of(error or frame)
        self.refusal = data

    def _count(self, frame: Mapping[str, Any]) -> None:
        usage = object_or_none(frame.get("usage"))
        total = usage.get("total_tokens") if usage is not None else None
        if isinstance(total, int) and not isinstance(total, bool) and total > 0:
            self.tokens = total


def _said(delta: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return what a delta adds, with these words and without tools."""
    rest = {name: delta[name] for name in delta if name not in {"refusal", "tool_calls"}}
    return {**rest, "content": text}
