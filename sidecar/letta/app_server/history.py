"""What a conversation on the App Server shows of one batch. Pure.

The server stores a user message when its turn begins, not when it ends. So a batch in the history
may still be undigested: its turn failed, was cancelled, or lost the socket that its tools were
called over. Only an answer of the agent after it shows that it was digested.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sidecar.letta.port import Post

# How the server begins a tool's answer when the call did not reach us or its turn was aborted.
_TOOL_CUT = ("External tool", "Interrupted by user")
_TRANSCRIPT = "<transcript "


@dataclass(frozen=True, slots=True)
class Trace:
    """What a conversation holds of a batch.

    Attributes:
        stored: How often its message is stored. The server itself repeats a message when it
            begins a turn again.
        digested: The agent has answered it, and each of its tool calls reached us.
        last: No other batch comes after it.
        stored_at_s: When its newest message was stored, Unix time of the server; 0 without one.
    """

    stored: int = 0
    digested: bool = False
    last: bool = False
    stored_at_s: float = 0.0


def trace_of(post: Post, messages: Iterable[Mapping[str, Any]]) -> Trace:
    """Return what a conversation's messages, oldest first, show of a post."""
    stored, digested, cut, last = 0, False, False, False
    stored_at_s = 0.0
    for message in messages:
        kind = message.get("message_type")
        if kind == "user_message":
            text = text_of(message)
            if message.get("otid") == post.batch_id or post.batch_id in text:
                stored += 1
                stored_at_s = _unix_s(message.get("date"))
                digested, cut, last = False, False, True
            elif _TRANSCRIPT in text:
                last = False
            elif last and not digested:
                cut = False  # asked once more: only its tool calls from here on count
        elif not last:
            continue
        elif kind == "tool_return_message":
            cut = cut or str(message.get("tool_return", "")).startswith(_TOOL_CUT)
        elif kind == "assistant_message":
            digested = digested or not cut
    return Trace(stored, digested, last, stored_at_s)


def _unix_s(date: object) -> float:
    try:
        return datetime.fromisoformat(str(date)).timestamp()
    except ValueError:
        return 0.0


def text_of(message: Mapping[str, Any]) -> str:
    """Return a message's text, without the parts that the server puts before it."""
    content: object = message.get("content")
    if isinstance(content, str):
        return content
    parts = cast("list[object]", content) if isinstance(content, list) else []
    texts = [
        str(cast("Mapping[str, Any]", p).get("text", "")) for p in parts if isinstance(p, dict)
    ]
    return "\n".join(text for text in texts if not text.startswith("<system-reminder>"))
