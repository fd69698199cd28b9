"""Which part of a reply is spoken, and whether it ends where a sentence does. Pure.

Thought is not spoken. A server that recognises its model's thought sends it apart (`reasoning`,
`reasoning_content`, parts of the type `thinking`). Others leave it in the text, between tags, where
a voice would read it out.
"""

import re
from typing import Final

_TAGS: Final[dict[str, str]] = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
}
_SENTENCE_ENDS: Final = frozenset(".!?\u2026\u3002\uff01\uff1f\uff0e\u061f\u06d4\u0964\u0965\u1362")
_CUTS: Final = frozenset(
    [
        "length",
        "max_tokens",
        "model_length",
        "model_context_window_exceeded",
        "content_filter",
        "content_filtered",
        "guardrail_intervened",
        "safety",
        "recitation",
        "blocklist",
        "prohibited_content",
        "spii",
        "sensitive",
        "abort",
        "network_error",
        "insufficient_system_resource",
    ]
)
"""Finish reasons of a reply that was cut while its model had more to say, in lower case.

As OpenAI, Anthropic, Mistral, Azure, Bedrock, Gemini, Zhipu, vLLM and DeepSeek name them.
"""
_LONGEST: Final = max(map(len, _TAGS))
_BLANKS: Final = re.compile(r"\s*")


class Aloud:
    """The words of one reply as they come; thought in tags before the first one is left out."""

    def __init__(self) -> None:
        self.over = False
        self._buffer: str = ""
        self._end: str = ""
        self._thought = False

    @property
    def hushed(self) -> bool:
        """Whether thought goes on, or may have begun."""
        return bool(self._end or self._buffer)

    def feed(self, text: str) -> str:
        """Take what the model wrote; return what to speak of it now. Once `over`, that is all."""
        if self.over or not text:
            return text  # what is buffered is not looked at again until more of it comes
        text, self._buffer = self._buffer + text, ""
        at = 0
        while True:
            if self._end:
                found = text.find(self._end, at)
                if found < 0:
                    self._buffer = text[max(at, len(text) - len(self._end) + 1) :]
                    return ""
                at, self._end = found + len(self._end), ""
            blanks = _BLANKS.match(text, at)
            start = blanks.end() if blanks else at
            tag = next((tag for tag in _TAGS if text.startswith(tag, start)), "")
            if tag:
                at, self._end, self._thought = start + len(tag), _TAGS[tag], True
                continue
            begun = text[start : start + _LONGEST]
            if begun and any(tag.startswith(begun) for tag in _TAGS):
                self._buffer = text[at:]
                return ""
            self.over = bool(begun)
            return text[start if self._thought else at :]

    def close(self) -> str:
        """Return buffered text that looked like the beginning of a tag and was not one."""
        said, self._buffer = "" if self._end else self._buffer, ""
        self.over = True
        return said


def without_thought(text: str) -> str:
    """Return a whole reply without thought; some templates leave the opening tag out."""
    aloud = Aloud()
    said = aloud.feed(text) + aloud.close()
    return next((said.rpartition(end)[2].lstrip() for end in _TAGS.values() if end in said), said)


def is_cut(finish: str) -> bool:
    """Whether a reply that ended for this reason was cut while its model had more to say."""
    return finish.lower() in _CUTS


def ends_a_sentence(text: str, *, before: bool = False) -> bool:
    """Whether words end where a sentence does, whatever quotes or signs follow it.

    Args:
        text: The words.
        before: The words before them do, which decides if these are only signs.
    """
    for sign in reversed(text):
        if sign in _SENTENCE_ENDS:
            return True
        if sign.isalnum():
            return False
    return before
