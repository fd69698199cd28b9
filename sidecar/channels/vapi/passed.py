"""Which parts of VAPI's request are passed on to the model, and what they may cost. Pure."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from sidecar.channels.vapi.limits import CHARS_PER_TOKEN
from sidecar.llm.guidance import CallGuidance
from sidecar.llm.placement import placed_in_chat
from sidecar.llm.refusals import LIMITS

REASONING: Final = "reasoning_effort"
FUNCTION: Final = "function"
MEDIA_TOKENS: Final[Mapping[str, int]] = {
    # OpenAI, images and vision: gpt-4o-mini counts 2,833 and 5,667 for each of at most 8 tiles; no
    # other model counts nearly as many.
    "image": 2_833 + 8 * 5_667,
    # Gemini API, audio: 32 a second, and at most 9.5 hours in a prompt.
    "audio": 32 * 34_200,
    # Gemini API, video: about 300 a second, and one hour fits into a window of a million tokens.
    "video": 300 * 3_600,
    # Anthropic, PDF support: at most 100 pages, each of 3,000 as text and 1,600 as an image.
    # Gemini's 1,000 pages of 258 are fewer.
    "file": 100 * 4_600,
}
"""The most tokens that a part of a message other than text may cost, by kind.

An image whose data is inside the request costs this, and its data is not counted as text. Any other
data inside the request is counted as text instead, because it has more characters than it costs
tokens.
"""
_KIND = re.compile(r"(?:\A|_)(image|audio|video|file|document|pdf)(?:_|\Z)")
_TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "reasoning"})
_PARTS = b'"content":['
# Fields that are passed on to the model's server; all others in a request are VAPI's own.
_PASSED = (
    "messages",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "presence_penalty",
    "frequency_penalty",
    REASONING,
    "stream",
    "stream_options",
)
_WITH_TOOLS = ("tool_choice", "parallel_tool_calls")


def passed_on(
    asked: Mapping[str, Any],
    memory: str,
    *,
    guidance: CallGuidance | None = None,
    model: str,
    max_tokens: int,
    allow: Collection[str] = (),
) -> dict[str, Any]:
    """Return what is sent to the model: the request with memory, without VAPI's own fields.

    Guidance and memory are inserted where `sidecar.llm.placement` says, just before the caller's
    last message. What `not_passed_on` names is left out. Where a message holds more than text, the
    server is asked to report what a stream cost.

    Args:
        asked: The request as it came.
        memory: The fenced text; empty inserts nothing.
        guidance: The owner's, for this call. Pieces of it that VAPI was given before, and repeats
            in the history, are left out of the history.
        model: The model to ask.
        max_tokens: Limit of the reply; the request's own limit is used where it is lower.
        allow: What the owner lets pass although it costs beyond the limit of a reply:
            `reasoning_effort`, and types of tools that the model's server runs itself.
    """
    body: dict[str, Any] = {"model": model}
    body |= {name: asked[name] for name in _PASSED if asked.get(name) is not None}
    if REASONING not in allow:
        body.pop(REASONING, None)
    if "tools" in body:
        tools = [tool for tool in _listed(body["tools"]) if _passes(tool, allow)]
        body["tools"] = tools
        if not tools:
            body = {n: v for n, v in body.items() if n != "tools" and n not in _WITH_TOOLS}
    choice = body.get("tool_choice")
    if not isinstance(choice, str) and not _passes(choice, allow):
        body.pop("tool_choice", None)
    limits = [asked.get(name) for name in LIMITS]
    named = [n for n in limits if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    wanted = "max_tokens" if asked.get("max_completion_tokens") is None else "max_completion_tokens"
    body[wanted] = min([*named, max_tokens])
    if body.get("stream") is True and any(map(_kind_of, _parts(body))):
        # Only the server knows what these cost.
        body["stream_options"] = {**_object(body.get("stream_options")), "include_usage": True}
    pieces = guidance.pieces if guidance else ()
    if pieces or memory:
        messages = asked["messages"]
        if pieces:
            messages = [message for message in messages if not _repeats(message, pieces)]
        text = guidance.text if guidance else ""
        body["messages"] = placed_in_chat(messages, guidance=text, memory=memory)
    return body


def _repeats(message: Mapping[str, Any], pieces: Sequence[str]) -> bool:
    """Whether a message of a history is guidance that VAPI got from `Control.guide`."""
    return message.get("role") == "system" and message.get("content") in pieces


def not_passed_on(asked: Mapping[str, Any], allow: Collection[str]) -> tuple[str, ...]:
    """Return what is not passed on because the owner did not allow it, spelled as in `allow`."""
    names = [REASONING] if asked.get(REASONING) is not None and REASONING not in allow else []
    for tool in _listed(asked.get("tools")):
        if not _passes(tool, allow):
            kind = _type_of(tool)
            names.append(kind if isinstance(kind, str) and kind else "a tool without a type")
    return tuple(dict.fromkeys(names))


def prompt_tokens(body: Mapping[str, Any], raw: bytes) -> int:
    """Return an estimate of what a request will cost, without its reply.

    Args:
        body: As it is sent to the model.
        raw: Its JSON.
    """
    if _PARTS not in raw:
        return len(raw) // CHARS_PER_TOKEN
    chars, tokens = len(raw), 0
    for part in _parts(body):
        kind, data_chars = _kind_of(part), _data_chars(part)
        if kind == "image":
            chars -= data_chars
        if kind == "image" or (kind and not data_chars):
            tokens += MEDIA_TOKENS[kind]
    return max(0, chars) // CHARS_PER_TOKEN + tokens


def _parts(body: Mapping[str, Any]) -> Iterator[object]:
    """Yield the parts of messages whose content is a list of parts."""
    for message in _listed(body.get("messages")):
        if isinstance(message, dict):
            content: object = cast("dict[str, object]", message).get("content")
            if isinstance(content, list):
                yield from cast("list[object]", content)


def _kind_of(part: object) -> str:
    """Return what a part is, as in `MEDIA_TOKENS`; empty for text. An unknown part is a file."""
    if not isinstance(part, dict):
        return ""
    fields = cast("dict[str, object]", part)
    kind = fields.get("type")
    for name in (kind, *fields):
        if isinstance(name, str) and (found := _KIND.search(name)):
            return found[1] if found[1] in MEDIA_TOKENS else "file"
    is_text = "text" in fields or (isinstance(kind, str) and kind in _TEXTS)
    return "" if is_text else "file"


def _passes(tool: object, allow: Collection[str]) -> bool:
    """Whether a tool, or the choice of one, is run by VAPI, or allowed."""
    kind = _type_of(tool)
    return kind == FUNCTION or (isinstance(kind, str) and kind in allow)


def _data_chars(part: object) -> int:
    """Return the length of a part's file data, where that is inside the request itself."""
    fields = _object(part)
    inner = [_object(field) for field in fields.values()]
    texts = [
        text
        for one in (fields, *inner)
        for name, text in one.items()
        if isinstance(text, str) and (text.startswith("data:") or name in {"data", "file_data"})
    ]
    return sum(map(len, texts))


def _type_of(value: object) -> object:
    return _field(value, "type")


def _field(value: object, name: str) -> object:
    return _object(value).get(name)


def _object(value: object) -> Mapping[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _listed(value: object) -> Sequence[object]:
    return cast("list[object]", value) if isinstance(value, list) else ()
