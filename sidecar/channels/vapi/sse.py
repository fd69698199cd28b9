"""Chat completions as server-sent events, as VAPI reads them: what we write ourselves. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.llm.frames import frame_of

DONE = b"data: [DONE]\n\n"


def frame(data: bytes) -> bytes:
    """Return one event of this JSON."""
    return b"data: " + data + b"\n\n"


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
    about = {"id": answer_id, "created": int(created_s), "model": model}
    return frame(frame_of(about, content, finish))


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
