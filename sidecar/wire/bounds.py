"""Bounds what a channel sends over the link: ids, hints and texts. Pure."""

import hashlib

from sidecar.wire.frames import MAX_FRAME_BYTES, Hints

MAX_ID_CHARS = 256
MAX_HINT_CHARS = 1024
# A character takes at most six bytes of JSON (an escaped control); the rest is for other fields.
MAX_TURN_CHARS = MAX_FRAME_BYTES // 8
_TURN_BYTES = 1 << 10
"""What a turn takes in memory besides its text."""


def bounded_hints(hints: Hints) -> Hints:
    """Leave out a hint that the link can't carry: cut short it might name somebody else."""

    def fitting(value: str) -> str:
        return "" if len(value) > MAX_HINT_CHARS or _has_surrogates(value) else value

    return Hints(
        caller=fitting(hints.caller),
        phone=fitting(hints.phone),
        identity=fitting(hints.identity),
        agent_id=fitting(hints.agent_id),
        consent=hints.consent,
    )


def bounded_call_id(raw: str) -> str:
    """Return the id of a call on the link; a long one is replaced by its hash."""
    return _bounded(raw, MAX_ID_CHARS)


def bounded_item_id(raw: str) -> str:
    """Return the id of an utterance, with room for the mark of a part (`#12`)."""
    return _bounded(raw, MAX_ID_CHARS - 8)


def sendable(text: str) -> str:
    """Return a text that UTF-8 can encode; a character that it can't is replaced."""
    return text.encode("utf-8", "replace").decode() if _has_surrogates(text) else text


def turn_bytes(text: str) -> int:
    """Return the most bytes that a turn of this text takes in memory.

    A character that is not ASCII takes up to four bytes, and as many again once it was encoded.
    """
    return len(text) * (1 if text.isascii() else 8) + _TURN_BYTES


def _bounded(raw: str, limit_chars: int) -> str:
    """Keep an id that fits; another is replaced by its hash, never cut (it would collide)."""
    if 0 < len(raw) <= limit_chars and not _has_surrogates(raw):
        return raw
    return hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()


def _has_surrogates(text: str) -> bool:
    """Whether a text can't be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
