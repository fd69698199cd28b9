"""Where in a stretch of a report those turns are that windows showed apart. Pure; costs n."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from sidecar.channels.vapi.alignment import words_of
from sidecar.channels.vapi.history import Stretch

_ENDS_SENTENCE = re.compile(r"[.!?\u2026\u3002\uff01\uff1f]\W*\Z")
_TRIES = 8


def begins_sentence(tokens: Sequence[str], place: int) -> bool:
    """Whether a sentence may begin at a word of a text: anywhere where nothing shows sentences."""
    ends = _ends(tokens)
    return not ends or not place or place in ends


def _ends(tokens: Sequence[str]) -> set[int]:
    """Return the places after which a sentence has ended."""
    return {n + 1 for n, token in enumerate(tokens) if _ENDS_SENTENCE.search(token)}


class Joined:
    """A stretch, read from its beginning to its end.

    A turn in it reaches from a sentence's beginning to a sentence's end. Where nothing shows
    sentences, it may begin and end at any word.
    """

    def __init__(self, stretch: Stretch) -> None:
        self._stretch = stretch
        self._tokens = stretch.text.split()
        heard = [(n, said) for n, token in enumerate(self._tokens) for said in words_of(token)]
        self._token_of = [*(n for n, _ in heard), len(self._tokens)]
        self._words = f" {' '.join(said for _, said in heard)} "
        self._offsets = list(accumulate((len(said) + 1 for _, said in heard), initial=0))
        self._ends = _ends(self._tokens)
        self._read = 0  # tokens

    def take(self, turn: Stretch, *, is_open: bool) -> tuple[Stretch, ...]:
        """Read up to the end of a turn; empty, and nothing is read, where it is not there.

        Args:
            turn: What to look for.
            is_open: It is still open, so it becomes all that is left of the stretch.

        Returns:
            What was said before the turn, if anything, and then the turn.
        """
        said = words_of(turn.text)
        if turn.speaker != self._stretch.speaker or self._read == len(self._tokens):
            return ()
        if not self._read and said == words_of(self._stretch.text):
            return self.rest()
        found = self._found(said) if said else None
        if found is None:
            return ()
        if is_open:
            return self.rest()
        begin, end = found
        parts = (*self._part(self._read, begin), *self._part(begin, end))
        self._read = end
        return parts

    def rest(self) -> tuple[Stretch, ...]:
        """Read what is left, if anything."""
        parts = self._part(self._read, len(self._tokens))
        self._read = len(self._tokens)
        return parts

    def _found(self, said: Sequence[str]) -> tuple[int, int] | None:
        """Return the first and the last token of words, the last not included."""
        looked_for = f" {' '.join(said)} "
        at = self._offsets[bisect_left(self._token_of, self._read)]
        for _ in range(_TRIES):
            at = self._words.find(looked_for, at)
            if at < 0:
                return None
            word = bisect_left(self._offsets, at)
            begin, end = self._token_of[word], self._token_of[word + len(said)]
            if self._is_border(begin) and self._is_border(end):
                return begin, end
            at += 1
        return None

    def _is_border(self, token: int) -> bool:
        return not self._ends or token in {self._read, len(self._tokens)} or token in self._ends

    def _part(self, begin: int, end: int) -> tuple[Stretch, ...]:
        if begin == end:
            return ()
        if end - begin == len(self._tokens):
            return (self._stretch,)
        return (replace(self._stretch, text=" ".join(self._tokens[begin:end])),)
