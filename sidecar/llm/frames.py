"""The JSON of chat completions: reads what servers write, writes what any client reads. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from sidecar.llm.failures import says_too_large
from sidecar.llm.refusals import REFUSAL_BYTES
from sidecar.untrusted import MALFORMED, whole_characters

PLAIN_WORD: Final = re.compile(r"[\w.-]{1,64}")
"""The words of a server that may be shown: no sentence, which could repeat a caller's."""
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def parsed(raw: bytes) -> tuple[Mapping[str, Any] | None, bytes]:
    """Return a JSON object, or None for another JSON value, and JSON of it for any client.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return object_or_none(_decode(raw)), raw
    except MALFORMED:
        pass
    try:  # a server of Python writes NaN, which msgspec refuses
        value: object = json.loads(whole_characters(raw))
    except MALFORMED as error:
        raise ValueError("this is not JSON") from error
    return object_or_none(value), json_of(value)


def frame_of(about: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None) -> bytes:
    """Return the JSON of one frame.

    Args:
        about: Holds its `id`, `created` and `model`; other fields are left out.
        delta: What the frame adds to the reply.
        finish: Why the reply ends with this frame; None if it does not.
    """
    head = {name: about[name] for name in ("id", "created", "model") if name in about}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json_of({**head, "object": "chat.completion.chunk", "choices": [choice]})


def json_of(value: object) -> bytes:
    """Return JSON of a value; half a character in a text becomes a replacement character."""
    try:
        return _encode(value)
    except (UnicodeEncodeError, OverflowError):
        return _whole(json.dumps(value, ensure_ascii=False)).encode()


def object_or_none(value: object) -> Mapping[str, Any] | None:
    """Return a JSON object; None for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def first_choice(choices: object) -> Mapping[str, Any] | None:
    """Return the first choice with index 0 or no index: nobody asks for more than one."""
    for one in cast("Sequence[object]", choices) if isinstance(choices, list) else ():
        choice = object_or_none(one)
        if choice is not None and choice.get("index") in (0, None):
            return choice
    return None


def finish_of(choice: Mapping[str, Any]) -> str | None:
    """Return why a reply ends with this choice; None if it goes on."""
    finish: object = choice.get("finish_reason")
    return str(finish) if finish else None


def text_of(content: object) -> str:
    """Return the words of a message's content, which may come in parts."""
    if isinstance(content, str):
        return _whole(content)
    if not isinstance(content, list):
        return ""
    parts = [object_or_none(part) or {} for part in cast("list[object]", content)]
    texts: list[object] = [p.get("text") for p in parts if p.get("type") in {"text", None}]
    return _whole("".join(text for text in texts if isinstance(text, str)))


def code_of(error: object) -> str:
    """Return a provider's error code if it is a plain word; its message may hold prompts."""
    said = object_or_none(error) or {"message": error}
    code: object = said.get("code")
    message: object = said.get("message")
    if isinstance(message, str) and says_too_large(message[:REFUSAL_BYTES]):
        code = "context_length_exceeded"
    if isinstance(code, int) and not isinstance(code, bool):
        code = str(code)
    return f": {code}" if isinstance(code, str) and PLAIN_WORD.fullmatch(code) else ""


def _whole(text: str) -> str:
    """Return text without halves of characters, which can't be written as UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
