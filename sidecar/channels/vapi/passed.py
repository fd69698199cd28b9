"""What of VAPI's request goes on to the model, and what it may cost. Pure."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, cast

from sidecar.channels.vapi.limits import CHARS_PER_TOKEN

REASONING: Final = "reasoning_effort"
FUNCTION: Final = "function"
IMAGE_TOKENS: Final = 1_500
"""What an image costs at the most common models; its data is not counted as text."""
_IMAGES = frozenset({"image_url", "input_image", "image"})
# What goes on to the model's server; everything else in a request is VAPI's own.
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
    model: str,
    max_tokens: int,
    allow: Collection[str] = (),
) -> dict[str, Any]:
    """Return what goes to the model: the request without VAPI's own fields, memory put in.

    Memory stands after the first system message: the assistant's own words stay a cacheable prefix.
    What `held_back` names is left out.

    Args:
        asked: As it came.
        memory: The fenced text; empty puts nothing in.
        model: Which is asked.
        max_tokens: The request's own limit counts where it is lower.
        allow: Of what costs beyond the limit of a reply, what may pass: `reasoning_effort`, and types
            of tools that the model's server runs itself.
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
    limits = [asked.get(name) for name in ("max_tokens", "max_completion_tokens")]
    named = [n for n in limits if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    wanted = "max_tokens" if asked.get("max_completion_tokens") is None else "max_completion_tokens"
    body[wanted] = min([*named, max_tokens])
    if memory:
        messages = list(asked["messages"])
        systems = [i for i, message in enumerate(messages) if message.get("role") == "system"]
        place = systems[0] + 1 if systems else 0
        # Role user: it stems from callers' words, which get no system message's authority.
        messages.insert(place, {"role": "user", "content": memory})
        body["messages"] = messages
    return body


def held_back(asked: Mapping[str, Any], allow: Collection[str]) -> tuple[str, ...]:
    """Return what does not go on for want of the owner's leave, as it would stand in `allow`."""
    names = [REASONING] if asked.get(REASONING) is not None and REASONING not in allow else []
    for tool in _listed(asked.get("tools")):
        if not _passes(tool, allow):
            kind = _type_of(tool)
            names.append(kind if isinstance(kind, str) and kind else "a tool without a type")
    return tuple(dict.fromkeys(names))


def prompt_tokens(body: Mapping[str, Any], raw: bytes) -> int:
    """Return what a request is about to cost, without its reply: an estimate.

    Args:
        body: As it goes to the model.
        raw: Its JSON.
    """
    if b"image" not in raw:
        return len(raw) // CHARS_PER_TOKEN
    images = [
        part
        for message in _listed(body.get("messages"))
        for part in _listed(_field(message, "content"))
        if _type_of(part) in _IMAGES
    ]
    data_chars = sum(map(_data_chars, images))
    return max(0, len(raw) - data_chars) // CHARS_PER_TOKEN + IMAGE_TOKENS * len(images)


def _passes(tool: object, allow: Collection[str]) -> bool:
    """Whether a tool, or the choice of one, is VAPI's to run, or allowed."""
    kind = _type_of(tool)
    return kind == FUNCTION or (isinstance(kind, str) and kind in allow)


def _data_chars(image: object) -> int:
    """Return the length of an image that stands in the request itself."""
    named: object = _field(image, "image_url")
    url = named if isinstance(named, str) else _field(named, "url")
    return len(url) if isinstance(url, str) and url.startswith("data:") else 0


def _type_of(value: object) -> object:
    return _field(value, "type")


def _field(value: object, name: str) -> object:
    return cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None


def _listed(value: object) -> Sequence[object]:
    return cast("list[object]", value) if isinstance(value, list) else ()
