"""Which part of a reply is spoken, and whether it ends where a sentence does. Pure.

Thought is not spoken. A server that recognises its model's thought sends it apart (`reasoning`,
`reasoning_content`, parts of the type `thinking`). Others leave it in the text, between tags, where
a voice would read it out. Some leave only the tag at its end, since their template writes the first
one: their first reply is spoken with its thought, and from then on words wait for that tag. A model
may also write such a tag because a caller asked for it, so `sidecar.llm.dialects` believes that of
a model which spoke without thought only after several replies.
"""

import re
from collections.abc import Iterable
from typing import Final

MOST_CHARS: Final = 1 << 18
"""What goes on for longer without a tag is thought for good: to read it again would take the loop
from all calls."""
_THOUGHTS: Final[dict[str, str]] = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<thoughts>": "</thoughts>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "\u25c1think\u25b7": "\u25c1/think\u25b7",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|start_thinking|>": "<|end_thinking|>",
    "<|channel|>analysis": "<|channel|>final<|message|>",
    "<|channel|>commentary": "<|channel|>final<|message|>",
}
"""What ends the thought that each tag begins; case does not matter."""
_IN_BRACKETS: Final = {"[think]": "[/think]"}
"""The same, for tags that are nothing else only before the first word."""
_FRAMES: Final = (
    *("<|start|>assistant", "<|return|>", "<|end|>", "<|im_end|>"),
    *("<|start_response|>", "<|end_response|>", "<|begin_of_solution|>", "<|end_of_solution|>"),
)
"""Tags around words that are spoken."""
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


def _any_of(marks: Iterable[str]) -> re.Pattern[str]:
    """Return what finds any of these tags."""
    return re.compile(_branches(marks), re.IGNORECASE)


def _branches(marks: Iterable[str]) -> str:
    """Return an expression that decides by one character after the other.

    Tags that are tried one by one would cost 20 times as much where a sign begins none.
    """
    by_first: dict[str, list[str]] = {}
    for mark in filter(None, marks):
        by_first.setdefault(mark[0], []).append(mark[1:])
    each = [
        re.escape(first) + (_branches(rest) if any(rest) else "")
        for first, rest in by_first.items()
    ]
    return f"(?:{'|'.join(each)})" if len(each) > 1 else each[0]


_THOUGHT_MARKS: Final = (*_THOUGHTS, *dict.fromkeys(_THOUGHTS.values()))
_MARKS: Final = (*_THOUGHT_MARKS, *_FRAMES)
_FIRST_MARKS: Final = (*_IN_BRACKETS, *_IN_BRACKETS.values())
_LONGEST: Final = max(map(len, _MARKS))
_MARK: Final = _any_of(_MARKS)
_THOUGHT_MARK: Final = _any_of(_THOUGHT_MARKS)
_FIRST_MARK: Final = re.compile(rf"\s*(?:{'|'.join(map(re.escape, _FIRST_MARKS))})", re.IGNORECASE)
_END_OF: Final = _THOUGHTS | _IN_BRACKETS
_END: Final = {end: re.compile(re.escape(end), re.IGNORECASE) for end in {*_END_OF.values()}}
_ANY_END: Final = re.compile("|".join(map(re.escape, _END)), re.IGNORECASE)
_SIGNS: Final = re.compile("[<\u25c1]")


class Aloud:
    """The words of one reply as they come, without thought in tags and without the tags.

    A reply's thought may also begin without a tag, if a template of the server's wrote that tag.
    That shows only at its end, when it has been spoken. So such a reply is heard whole, without
    the tag, and `thinks` says to read the next of the same model with `thinks=True`.

    Args:
        thinks: The reply begins with thought. If no tag ends it, `close` returns it as words,
            unless it is longer than `MOST_CHARS`.

    Attributes:
        thinks: What this reply shows of its model: whether its thought begins without a tag, once
            it is closed; None if it shows nothing new.
    """

    def __init__(self, *, thinks: bool = False) -> None:
        self.thinks: bool | None = None
        self._end = _ANY_END if thinks else None
        self._thought_so_far: list[str] | None = list[str]() if thinks else None
        self._thought_chars = 0
        self._buffer: str = ""
        self._begun = self._tagged = self._thought = False

    @property
    def hushed(self) -> bool:
        """Whether thought goes on, or may have begun."""
        return self._end is not None or bool(self._buffer)

    def feed(self, text: str) -> str:
        """Take what the model wrote; return what to speak of it now."""
        if not text:
            return ""  # what is buffered is not looked at again until more of it comes
        if self._begun and not self.hushed and not _SIGNS.search(text):
            return text
        text, self._buffer = self._buffer + text, ""
        said: list[str] = []
        at = 0
        while True:
            if self._end is not None:
                found = self._end.search(text, at)
                if found is None:
                    self._buffer_thought(text, at, max(at, len(text) - _LONGEST + 1))
                    break
                at, self._end, self._thought_so_far = found.end(), None, None
                self._tagged = self._thought = True
            mark = None if self._begun else _FIRST_MARK.match(text, at)
            mark = mark or _MARK.search(text, at)
            if mark is None:
                until = _begun_at(text, at, begun=self._begun)
                said.append(self._words(text[at:until]))
                self._buffer = text[until:]
                break
            said.append(self._words(text[at : mark.start()], before_a_tag=True))
            at = mark.end()
            self._mark(mark[0].strip().lower())
        return "".join(said)

    def close(self, *, cut: bool = False) -> str:
        """Return buffered words: what only looked like a tag's beginning, or like thought.

        Args:
            cut: The reply was cut (see `is_cut`), so the tag that ends its thought may be missing.
        """
        buffered, self._buffer = self._buffer, ""
        if self._thought_so_far is None or cut:
            said = "" if self._end is not None else self._words(buffered)
            if self._begun and not (self._thought or cut):
                self.thinks = False
            return said
        whole, self._thought_so_far, self._end = (
            "".join([*self._thought_so_far, buffered]),
            None,
            None,
        )
        said, _ = without_thought(whole)
        if said.strip():
            self.thinks = False
        return self._words(said)

    def _buffer_thought(self, text: str, at: int, until: int) -> None:
        """Buffer the end of thought: it may begin its tag; the rest may turn out to be words."""
        if self._thought_so_far is not None:
            self._thought_so_far.append(text[at:until])
            self._thought_chars += until - at
            if self._thought_chars + len(text) - until > MOST_CHARS:
                self._thought_so_far = None
        self._buffer = text[until:]

    def _mark(self, mark: str) -> None:
        if mark in _END_OF:
            self._end = _END[_END_OF[mark]]
        elif mark in _END and self._begun and not self._thought:
            self.thinks = True
        self._thought = self._thought or mark not in _FRAMES
        self._tagged = True

    def _words(self, text: str, *, before_a_tag: bool = False) -> str:
        """Return words to speak; blanks between a tag and the first word are none of them."""
        if not self._begun:
            if self._tagged or before_a_tag:
                text = text.lstrip()
            self._begun = bool(text.strip())
        return text


def _begun_at(text: str, at: int, *, begun: bool) -> int:
    """Return where a tag may have begun at the end of a text; its length if nowhere."""
    if not begun:
        first = text[at:].lstrip().lower()
        if first and any(mark.startswith(first) for mark in _FIRST_MARKS):
            return at
    for sign in _SIGNS.finditer(text, max(at, len(text) - _LONGEST + 1)):
        tail = text[sign.start() :].lower()
        if any(mark.startswith(tail) for mark in _MARKS):
            return sign.start()
    return len(text)


def without_thought(
    text: str, *, thinks: bool = False, cut: bool = False
) -> tuple[str, bool | None]:
    """Return a whole reply without thought, and what it shows of its model: see `Aloud`."""
    first = None if _FIRST_MARK.match(text) else _THOUGHT_MARK.search(text)
    alone = first is not None and first[0].lower() in _END and bool(text[: first.start()].strip())
    aloud = Aloud(thinks=thinks or alone)
    said = aloud.feed(text) + aloud.close(cut=cut)
    return said, True if alone else aloud.thinks


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
