"""The wire of chat completions, read once for every path: bytes in, words out. Pure.

Servers differ in what they write: another content type or none, a whole answer in place of a
stream, frames without `choices`, `"error": null` in each, an `error` beside `choices`, no blank line
between two frames, neither `finish_reason` nor `[DONE]`. What an answer holds decides, never its
headers. And what counts as a reply is what a caller can hear, or a tool to run: roles, blanks,
comments and reasoning are none.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec

from sidecar.llm.failures import says_too_large

ANSWER_BYTES: Final = 4 << 20
"""No answer is longer."""
NO_END: Final = "the language model's answer has no end"
NO_STREAM: Final = "the language model's answer is no stream"
NO_JSON: Final = "the language model's answer is no JSON"
NO_OBJECT: Final = "the language model's answer is no JSON object"
FAILED: Final = "the language model failed while it spoke"
BROKE_OFF: Final = "the language model broke off in the middle of a reply"
NOTHING: Final = "the language model gave an empty reply"
_DONE: Final = b"[DONE]"
_BOM: Final = b"\xef\xbb\xbf"
_BLANKS: Final = b" \t\r\n"
_PART_BYTES: Final = 1 << 20
_WORD = re.compile(r"[\w.-]{1,64}")
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Chunk:
    """One frame of a stream, or a whole answer.

    Attributes:
        data: JSON that every client can read; empty where there is nothing for one in it.
        text: The words it adds.
        tools: It calls tools, or goes on with a call.
    """

    data: bytes
    text: str = ""
    tools: bool = False


def is_audible(text: str) -> bool:
    """Whether a voice has anything to say of it: a letter or a digit."""
    return any(map(str.isalnum, text))


class ChatReader:
    """Reads the answer to one request for a chat completion, streamed or whole.

    Attributes:
        tokens: As the server counted them; 0 where it did not.
        frames: How many chunks came.
        whole: The answer is one JSON object, no stream.
        words: There was something to hear.
        tools: There were tools to run.
        moved: Grows with each chunk that holds something to hear, or a tool to run.
        ended: A finish reason came, or the end.
        done: The end came; nothing after it is read.
        failure: Why it is no reply, without a word of it; empty when it is one. Nothing after it
            is read.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.frames = 0
        self.whole = False
        self.words = self.tools = False
        self.moved = 0
        self.ended = self.done = False
        self.failure = ""
        self._finish = ""
        self._text: list[str] = []
        self._begun = False
        self._bytes = 0
        self._held = bytearray()
        self._part = b""

    @property
    def text(self) -> str:
        """All words so far."""
        return "".join(self._text)

    @property
    def unfinished(self) -> str:
        """The finish reason that a client wants and the server did not give; empty: it did."""
        return "" if self._finish else "tool_calls" if self.tools else "stop"

    @property
    def between_lines(self) -> bool:
        """Whether everything that came was read, up to the end of a line."""
        return not self._held and not self._part

    def feed(self, came: bytes) -> list[Chunk]:
        """Read what came; a line that has not ended is kept for the next time."""
        self._bytes += len(came)
        if self._bytes > ANSWER_BYTES:
            self.failure = self.failure or NO_END
            return []
        self._held += came
        if not self._begun:
            self._begin()
        if self.whole or not self._begun or self.failure or self.done:
            return []
        # Searched from behind and in what is new alone: a long line costs no more than its length.
        end = max(came.rfind(b"\n"), came.rfind(b"\r")) + 1
        if not end:
            return []
        end += len(self._held) - len(came)
        block = bytes(self._held[:end])
        del self._held[:end]
        return self._lines(block)

    def close(self) -> list[Chunk]:
        """Read what is left once the body has ended; `failure` says whether it was a reply.

        An answer whose body ended as HTTP says is whole, also without any mark of its end.
        """
        rest, self._held = bytes(self._held), bytearray()
        if self.failure:
            return []
        if self.whole:
            return self._answer(rest) if not self.done else []
        chunks = self._lines(rest)
        if not self.failure and self._part and not self.ended:
            self.failure = BROKE_OFF
        if not self.failure and not self.words and not self.tools:
            self.failure = self.empty
        return chunks

    @property
    def empty(self) -> str:
        """Why nothing came that a caller can hear, for one who set the model up."""
        return f"{NOTHING}: {self._finish}" if _WORD.fullmatch(self._finish) else NOTHING

    def _begin(self) -> None:
        """Tell a stream from a whole answer by its first character."""
        first = bytes(self._held[:3])
        if first == _BOM:
            del self._held[:3]
        elif _BOM.startswith(first):
            return
        start = bytes(self._held.lstrip(_BLANKS)[:1])
        if start:
            self._begun = True
            self.whole = start == b"{"
            if start in {b"<", b"["}:
                self.failure = NO_STREAM

    def _lines(self, block: bytes) -> list[Chunk]:
        chunks: list[Chunk] = []
        for line in block.splitlines():
            if self.done or self.failure:
                break
            if line.startswith(b"data:"):
                chunk = self._data(line[5:].strip())
                if chunk is not None:
                    chunks.append(chunk)
            elif not line and self._part:
                self.failure = NO_JSON
        return chunks

    def _data(self, data: bytes) -> Chunk | None:
        """Read one line of data; a frame may have several, so a broken one waits for the next."""
        if data == _DONE:
            self.ended = self.done = True
            return None
        if self._part:
            data = self._part + b" " + data
        elif not data.startswith((b"{", b"[")):
            return None  # a keep-alive
        try:
            frame, data = parsed(data)
        except ValueError:
            self._part = data
            if len(data) > _PART_BYTES:
                self.failure = NO_JSON
            return None
        self._part = b""
        if frame is None:
            self.failure = NO_OBJECT
            return None
        return self._frame(frame, data)

    def _frame(self, frame: Mapping[str, Any], data: bytes) -> Chunk | None:
        self.frames += 1
        if "usage" in frame:
            self._count(frame)
        choices: object = frame.get("choices")
        choice = _first(choices)
        finish: object = choice.get("finish_reason") if choice is not None else None
        if finish == "error" or frame.get("error"):
            self.failure = FAILED + _code_of(frame.get("error"))
            return None
        if choice is None:
            return Chunk(data) if choices == [] else None  # a client would fail on it
        if finish:
            self._end(choice)
        message: object = choice.get("delta")
        if isinstance(message, dict):
            delta = cast("dict[str, Any]", message)
        else:
            delta = _object(choice.get("message")) or {}
            data = b""
        content: object = delta.get("content")
        text = _text_of(content) if content else ""
        if not data or not isinstance(content, str | None):
            data = frame_of(frame, {**delta, "content": text}, _finish_of(choice))
        chunk = Chunk(data, text, "tool_calls" in delta and _calls(delta))
        self._take(chunk)
        return chunk

    def _answer(self, raw: bytes) -> list[Chunk]:
        """Read a whole answer, as the frame of a stream."""
        try:
            answer, _ = parsed(raw)
        except ValueError:
            self.failure = NO_JSON
            return []
        if answer is None:
            self.failure = NO_OBJECT
            return []
        self.frames = 1
        self._count(answer)
        choice = _first(answer.get("choices"))
        if answer.get("error") or (choice is not None and choice.get("finish_reason") == "error"):
            self.failure = FAILED + _code_of(answer.get("error"))
            return []
        message = _object(choice.get("message")) if choice is not None else None
        if choice is None or message is None:
            self.failure = "the language model's answer is no chat completion"
            return []
        self._end(choice)
        text = _text_of(message.get("content"))
        delta: dict[str, Any] = {"role": "assistant", "content": text}
        if _calls(message):
            delta["tool_calls"] = _numbered(message["tool_calls"])
        chunk = Chunk(frame_of(answer, delta, None), text, _calls(message))
        self._take(chunk)
        if not self.words and not self.tools:
            self.failure = self.empty
            return []
        self.ended = self.done = True
        return [chunk, Chunk(frame_of(answer, {}, self._finish or self.unfinished))]

    def _take(self, chunk: Chunk) -> None:
        if chunk.text:
            self._text.append(chunk.text)
            if is_audible(chunk.text):
                self.words = True
                self.moved += 1
        if chunk.tools:
            self.tools = True
            self.moved += 1

    def _end(self, choice: Mapping[str, Any]) -> None:
        finish = _finish_of(choice)
        if finish is not None:
            self.ended = True
            self._finish = finish

    def _count(self, frame: Mapping[str, Any]) -> None:
        usage = _object(frame.get("usage"))
        total = usage.get("total_tokens") if usage is not None else None
        if isinstance(total, int) and not isinstance(total, bool) and total > 0:
            self.tokens = total


def parsed(raw: bytes) -> tuple[Mapping[str, Any] | None, bytes]:
    """Return a JSON object, None for another JSON value, and JSON of it that any client can read.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return _object(_decode(raw)), raw
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    # Half a character, as bytes or as an escape, costs no more than itself.
    try:
        value: object = json.loads(raw.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return _object(value), json_of(value)


def frame_of(about: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None) -> bytes:
    """Return the JSON of one frame.

    Args:
        about: Its `id`, `created` and `model`, among whatever else.
        delta: What it adds.
        finish: Why it is the last one of a reply; None: it is not.
    """
    head = {name: about[name] for name in ("id", "created", "model") if name in about}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json_of({**head, "object": "chat.completion.chunk", "choices": [choice]})


def json_of(value: object) -> bytes:
    """Return JSON of a value; half a character in a text becomes a mark of one."""
    try:
        return _encode(value)
    except (UnicodeEncodeError, OverflowError):
        return _whole(json.dumps(value, ensure_ascii=False)).encode()


def _object(value: object) -> Mapping[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _first(choices: object) -> Mapping[str, Any] | None:
    listed = cast("Sequence[object]", choices) if isinstance(choices, list) else ()
    return _object(listed[0]) if listed else None


def _finish_of(choice: Mapping[str, Any]) -> str | None:
    finish: object = choice.get("finish_reason")
    return str(finish) if finish else None


def _calls(message: Mapping[str, Any]) -> bool:
    """Whether there is a part of a tool call: a name, or some of its arguments."""
    calls: object = message.get("tool_calls")
    listed = cast("list[object]", calls) if isinstance(calls, list) else ()
    parts = [_object(part) for call in listed for part in (_object(call) or {}).values()]
    return any(any(part.values()) for part in parts if part is not None)


def _numbered(calls: object) -> list[dict[str, Any]]:
    """Return the tool calls of a whole answer as those of a stream."""
    listed = cast("list[object]", calls)
    return [{"index": n, **cast("Any", c)} for n, c in enumerate(listed) if isinstance(c, dict)]


def _text_of(content: object) -> str:
    """Return the words of a message's content, which may come in parts."""
    if isinstance(content, str):
        return _whole(content)
    if not isinstance(content, list):
        return ""
    parts = [_object(part) or {} for part in cast("list[object]", content)]
    texts: list[object] = [p.get("text") for p in parts if p.get("type") in {"text", None}]
    return _whole("".join(text for text in texts if isinstance(text, str)))


def _whole(text: str) -> str:
    """Return text without halves of characters, which can't be written as UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _code_of(error: object) -> str:
    """Return a provider's error code where it is a plain word; its message may hold prompts."""
    told = _object(error) or {"message": error}
    code: object = told.get("code")
    if isinstance(message := told.get("message"), str) and says_too_large(message):
        code = "context_length_exceeded"
    if isinstance(code, int) and not isinstance(code, bool):
        code = str(code)
    return f": {code}" if isinstance(code, str) and _WORD.fullmatch(code) else ""
