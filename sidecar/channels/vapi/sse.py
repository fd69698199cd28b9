"""Chat completions as server-sent events: what we say ourselves, and what was said. Pure.

The stream of the model's server goes through untouched, line by line; these functions write the
frames of a spoken fallback and read the copy of a stream once it has ended.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec

DONE = b"data: [DONE]\n\n"
# A delta that gives the caller something to hear, or VAPI a tool to run.
_HEARD = re.compile(rb'"content"\s*:\s*"[^"]|"tool_calls"\s*:\s*\[\s*\{')
_FAILED = re.compile(rb'(?:^|\n)data:\s*\{\s*"error"')
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Told:
    """What a stream came to.

    Attributes:
        text: What would be spoken.
        tokens: As the model's server counted them; 0 where it did not.
        ended: It has a finish reason or ended with `[DONE]`.
        tools: Whether tools were called.
    """

    text: str
    tokens: int
    ended: bool
    tools: bool


def is_heard(chunk: bytes) -> bool:
    """Whether a piece of a stream holds a first word or a tool call; a role alone is none."""
    return _HEARD.search(chunk) is not None


def is_failure(chunk: bytes) -> bool:
    """Whether a piece of a stream is the server's error in place of a chunk."""
    return b'"error"' in chunk and _FAILED.search(chunk) is not None


def read(stream: bytes) -> Told:
    """Read a stream's copy, whole or cut off anywhere."""
    text: list[str] = []
    tokens = 0
    ended = tools = False
    for line in stream.splitlines():
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            ended = True
            continue
        try:
            chunk = _decode(data)
        except msgspec.DecodeError:
            continue
        if not isinstance(chunk, dict):
            continue
        told = read_answer(cast("dict[str, Any]", chunk), part="delta")
        text.append(told.text)
        tokens = told.tokens or tokens
        ended, tools = ended or told.ended, tools or told.tools
    return Told("".join(text), tokens, ended, tools)


def read_answer(answer: Mapping[str, Any], *, part: str = "message") -> Told:
    """Read a whole answer, or one chunk (`part="delta"`)."""
    usage = answer.get("usage")
    total: object = (
        cast("dict[str, object]", usage).get("total_tokens") if isinstance(usage, dict) else 0
    )
    tokens = total if isinstance(total, int) else 0
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return Told("", tokens, ended=False, tools=False)
    choice = cast("dict[str, Any]", choices[0])
    said: object = choice.get(part)
    spoken = cast("dict[str, object]", said) if isinstance(said, dict) else {}
    content = spoken.get("content")
    return Told(
        content if isinstance(content, str) else "",
        tokens,
        ended=choice.get("finish_reason") is not None,
        tools=bool(spoken.get("tool_calls")),
    )


def spoken(text: str, *, model: str, created_s: float, answer_id: str) -> bytes:
    """Return the frames that make VAPI speak `text` and end the turn.

    Each has an iterable `choices`: VAPI ends the call on a frame without.
    """
    frames = [
        delta(
            {"role": "assistant", "content": text},
            None,
            model=model,
            created_s=created_s,
            answer_id=answer_id,
        )
    ]
    frames.append(delta({}, "stop", model=model, created_s=created_s, answer_id=answer_id))
    return b"".join(frames) + DONE


def delta(
    content: Mapping[str, Any],
    finish: str | None,
    *,
    model: str,
    created_s: float,
    answer_id: str,
) -> bytes:
    """Return one frame."""
    return (
        b"data: "
        + msgspec.json.encode(
            {
                "id": answer_id,
                "object": "chat.completion.chunk",
                "created": int(created_s),
                "model": model,
                "choices": [{"index": 0, "delta": content, "finish_reason": finish}],
            }
        )
        + b"\n\n"
    )


def answer(text: str, *, model: str, created_s: float, answer_id: str) -> bytes:
    """Return a whole answer that says `text`, for a request that does not stream."""
    return msgspec.json.encode(
        {
            "id": answer_id,
            "object": "chat.completion",
            "created": int(created_s),
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
    )
