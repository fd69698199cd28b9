"""Writes the wire format of chat completions, for every path: replies in, bytes out. Pure."""

from collections.abc import Mapping
from typing import Any, Final

from sidecar.llm.frames import frame_of, json_of
from sidecar.llm.port import Reply, ToolCall

DONE: Final = b"data: [DONE]\n\n"
"""The event that ends a stream."""
NOT_COUNTED: Final[Mapping[str, int]] = {
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_tokens": 0,
}
"""The usage of an answer that no model wrote."""


def event(data: bytes) -> bytes:
    """Return one server-sent event of this JSON."""
    return b"data: " + data + b"\n\n"


class ChatWriter:
    """Writes one answer to a request for a chat completion, streamed or whole.

    Each frame has a list of `choices`: VAPI ends a call on a frame without one.

    Args:
        model: The name of the model, as the client knows it.
        created_s: Unix time.
        answer_id: Names the answer.
    """

    def __init__(self, model: str, *, created_s: float, answer_id: str) -> None:
        self._about = {"id": answer_id, "created": int(created_s), "model": model}

    def delta(self, added: Mapping[str, Any], finish: str | None = None) -> bytes:
        """Return one event of a stream.

        Args:
            added: What it adds to the message.
            finish: Why the reply ends with it; None if it does not.
        """
        return event(frame_of(self._about, added, finish))

    def spoken(self, text: str) -> bytes:
        """Return the events of a stream that says `text` at once, and ends."""
        said = self.delta({"role": "assistant", "content": text})
        return said + self.delta({}, "stop") + DONE

    def events(self, reply: Reply, *, usage: Mapping[str, int] | None = None) -> list[bytes]:
        """Return the events of a stream that gives a whole reply in pieces, without `DONE`.

        They are the role, each word, each tool call, the finish, and the usage if there is one.
        """
        words = reply.text.split(" ")
        deltas: list[dict[str, Any]] = [
            {"role": "assistant", "content": ""},
            *({"content": word if n == 0 else f" {word}"} for n, word in enumerate(words) if word),
            *({"tool_calls": [{"index": n, **_shape(c)}]} for n, c in enumerate(reply.tool_calls)),
        ]
        events = [self.delta(added) for added in deltas]
        events.append(self.delta({}, _finish_of(reply)))
        if usage is not None:
            choices: list[object] = []
            counted = {"object": "chat.completion.chunk", "choices": choices, "usage": usage}
            events.append(event(json_of({**self._about, **counted})))
        return events

    def whole(self, reply: Reply, *, usage: Mapping[str, int] = NOT_COUNTED) -> bytes:
        """Return the JSON of an answer to a request that does not stream."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
        if reply.tool_calls:
            message["tool_calls"] = [_shape(call) for call in reply.tool_calls]
        choice = {"index": 0, "message": message, "finish_reason": _finish_of(reply)}
        kind = "chat.completion"
        return json_of({**self._about, "object": kind, "choices": [choice], "usage": usage})


def _finish_of(reply: Reply) -> str:
    return "tool_calls" if reply.tool_calls else "stop"


def _shape(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}
