"""Which stretches of two histories of one call are the same. Pure; costs n log n.

Two texts are the same if the same was said. Case, spacing and sentence punctuation come from the
transcriber and are ignored; signs, decimal points, combining marks, apostrophes within a word, what
stands between two digits and the dots of a mail address were spoken and are compared.
"""

import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice, pairwise

Pair = tuple[int, int]

_AHEAD = 8
_MINUS = "-\u2212"
_APOSTROPHES = "'\u2019\u02bc\uff07"
_IN_NUMBERS = "'\"\u2032\u2033*\u00b7\u2026\u066c"
"""Between two digits: feet and inches, a product, a decimal point, a range."""
_AS = {0x066A: "%", 0x066B: ".", 0x2030: "\u2030", **{0xFF01 + n: chr(0x21 + n) for n in range(94)}}
"""Arabic and full-width forms, by what they mean."""


class _Marks(dict[int, int | None]):
    """Keeps letters, digits, marks and symbols and drops other characters; filled on demand."""

    def __missing__(self, code: int) -> int | None:
        char = _AS.get(code, chr(code))
        kind = unicodedata.category(char)
        if char in _MINUS or kind == "Pd":
            char = "-"
        elif char in _APOSTROPHES:
            char = "'"
        elif kind[0] not in "LNMS" and char not in f".,:/%_@#\u2030{_IN_NUMBERS}":
            char = ""
        self[code] = ord(char) if char else None
        return self[code]


_MARKS = _Marks()


def words_of(text: str) -> list[str]:
    """Return the words of a text in the form in which they are compared."""
    return list(_words_in(text))


def first_words(text: str, limit: int) -> list[str]:
    """Return the first words of `words_of`, without reading the others."""
    return list(islice(_words_in(text), limit))


def _words_in(text: str) -> Iterator[str]:
    sign = ""
    for raw in text.casefold().split():
        if raw in _MINUS:  # a sign that stands apart from its number
            sign = "-"
            continue
        if word := _word(sign + raw if sign and _is_amount(raw) else raw):
            yield word
        sign = ""


def _is_amount(raw: str) -> bool:
    return raw[:1].isdigit() or (unicodedata.category(raw[0]) == "Sc" and raw[1:2].isdigit())


def _word(raw: str) -> str:
    if raw.isalnum() and raw.isascii():
        return raw
    spelled = unicodedata.normalize("NFC", raw).translate(_MARKS)
    if spelled.isalnum():
        return spelled
    return "".join(char for n, char in enumerate(spelled) if _counts(spelled, n))


def _counts(word: str, n: int) -> bool:
    """Whether the character at `n` was spoken, and is not mere spelling."""
    if word[n] not in f".,:/-_{_IN_NUMBERS}":
        return True
    before = word[n - 1] if n else ""
    after = word[n + 1] if n + 1 < len(word) else ""
    if before.isdigit() and after.isdigit():
        return True
    if word[n] == "'":
        return before.isalpha() and after.isalpha()
    if word[n] in _IN_NUMBERS:
        return False
    if before and unicodedata.category(before) == "Sc":  # "$-5", "$.50"
        before = word[n - 2] if n > 1 else ""
    if after and unicodedata.category(after) == "Sc":  # "-$50"
        after = word[n + 2 : n + 3]
    if "@" in word and before and after:  # a mail address is spelled out
        return True
    if word[n] == "-":
        return not before and (after.isdigit() or (after == "." and word[n + 2 : n + 3].isdigit()))
    return word[n] == "." and before in {"", "-", "+"} and after.isdigit()


def fingerprint(text: str) -> str:
    """Return a key that is equal for two texts in which the same was said.

    It is empty only for a blank text.
    """
    said: list[str] = []
    for word in words_of(text):
        if said and said[-1][-1].isdigit() and not word[0].isalpha():
            said.append(" ")
        said.append(word)
    return "".join(said) or text.strip()


def alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two texts, as words, are clearly two transcriptions of one utterance."""
    short, long = sorted((one, other), key=len)
    if not short:
        return False
    if list(long[: len(short)]) == list(short):
        return True
    shared = sum((Counter(short) & Counter(long)).values())
    return shared * 3 >= len(long) * 2


class Runs:
    """Runs of neighbouring turns by one speaker, found by the words of a run's first two turns.

    Attributes:
        turns: The speaker and the words of each turn of the call.
    """

    def __init__(self, turns: Sequence[tuple[Hashable, Sequence[str]]]) -> None:
        self.turns = turns
        self._places: dict[tuple[Hashable, tuple[str, ...]], list[int]] = {}
        for n, ((speaker, said), (other, more)) in enumerate(pairwise(turns)):
            if speaker == other:
                self._places.setdefault((speaker, (*said, *more)), []).append(n)
        self._lengths = sorted({len(words) for _, words in self._places})

    def first(self, speaker: Hashable, words: Sequence[str], start: int) -> Pair:
        """Return begin and end of the first run, from `start` on, that `words` begin with.

        A run has two turns or more; where there is none, begin and end are equal.
        """
        begin = len(self.turns)
        for length in self._lengths:
            if length > len(words):
                break
            places = self._places.get((speaker, tuple(words[:length])), ())
            later = bisect_left(places, start)
            begin = min([begin, *places[later : later + 1]])
        end, at = begin, 0
        while end < len(self.turns):
            one, said = self.turns[end]
            if one != speaker or words[at : at + len(said)] != said:
                break
            at += len(said)
            end += 1
        return begin, end


def align(old: Sequence[Hashable], new: Sequence[Hashable], *, newest: bool) -> list[Pair]:
    """Return pairs of places that hold the same turn, both rising.

    Args:
        old: The known turns, from the beginning.
        new: A history that may lack its beginning.
        newest: `new` may be a window: one piece of the call that reaches at least as far as `old`,
            unless all of it is known. A match that would end earlier is rejected.
    """
    head = _common(old, new)
    if head in {len(old), len(new)}:
        return [(n, n) for n in range(head)]
    if not head and newest:
        place, length = _window(old, new)
        if length:
            return [(place + n, n) for n in range(length)]
    tail = _common(old[head:][::-1], new[head:][::-1])
    pairs = [(n, n) for n in range(head)]
    pairs += _anchored(old, new, head, len(old) - tail, head, len(new) - tail)
    pairs += [(len(old) - n, len(new) - n) for n in range(tail, 0, -1)]
    if not head and newest:
        pairs = [(i, j) for i, j in pairs if len(old) - i <= len(new) - j]
    return pairs


def _common(old: Sequence[Hashable], new: Sequence[Hashable]) -> int:
    same = 0
    for one, other in zip(old, new, strict=False):
        if one != other:
            break
        same += 1
    return same


def _window(old: Sequence[Hashable], new: Sequence[Hashable]) -> Pair:
    """Return the place in `old` and the length of the longest beginning of `new`.

    It is all of `new`, or as much as reaches the end of `old`.
    """
    back = [0] * len(new)
    matched = 0
    for n in range(1, len(new)):
        while matched and new[n] != new[matched]:
            matched = back[matched - 1]
        matched += new[n] == new[matched]
        back[n] = matched
    matched = 0
    whole = -1
    for n, key in enumerate(old):
        while matched and (matched == len(new) or key != new[matched]):
            matched = back[matched - 1]
        matched += key == new[matched]
        if matched == len(new):
            whole = n + 1 - matched
    return (whole, len(new)) if whole >= 0 else (len(old) - matched, matched)


def _anchored(  # noqa: PLR0917 - two ranges
    old: Sequence[Hashable], new: Sequence[Hashable], i1: int, i2: int, j1: int, j2: int
) -> list[Pair]:
    """Align two ranges by turns that each range holds once, and grow the match from those.

    Of these anchors the longest rising run is used.
    """
    if i1 == i2 or j1 == j2:
        return []
    where_old, where_new = _once(old, i1, i2), _once(new, j1, j2)
    anchors = _rising([(where_old[k], j) for k, j in where_new.items() if k in where_old])
    pairs: list[Pair] = []
    i, j = i1, j1
    for anchor_i, anchor_j in [*anchors, (i2, j2)]:
        if anchor_i < i:  # already matched from the anchor before it
            continue
        back = 0
        while anchor_i - back > i and anchor_j - back > j:
            if old[anchor_i - back - 1] != new[anchor_j - back - 1]:
                break
            back += 1
        pairs += _near(old, new, i, anchor_i - back, j, anchor_j - back)
        pairs += [(anchor_i - n, anchor_j - n) for n in range(back, 0, -1)]
        i, j = anchor_i, anchor_j
        while i < i2 and j < j2 and old[i] == new[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
    return pairs


def _once(keys: Sequence[Hashable], start: int, end: int) -> dict[Hashable, int]:
    counts = Counter(keys[start:end])
    return {keys[n]: n for n in range(start, end) if counts[keys[n]] == 1}


def _rising(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the longest run of pairs, ordered by their second place, whose first places rise."""
    ends: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for n, (i, _) in enumerate(pairs):
        place = bisect_left(ends, i)
        before.append(last[place - 1] if place else -1)
        ends[place : place + 1] = [i]
        last[place : place + 1] = [n]
    run: list[Pair] = []
    n = last[-1] if last else -1
    while n >= 0:
        run.append(pairs[n])
        n = before[n]
    return run[::-1]


def _near(  # noqa: PLR0917 - two ranges
    old: Sequence[Hashable], new: Sequence[Hashable], i1: int, i2: int, j1: int, j2: int
) -> list[Pair]:
    """Align ranges that have no anchor: take the nearest equal pair within `_AHEAD` places."""
    pairs: list[Pair] = []
    i, j = i1, j1
    while i < i2 and j < j2:
        best = min(
            (
                (di + dj, di, dj)
                for di in range(min(_AHEAD, i2 - i))
                for dj in range(min(_AHEAD, j2 - j))
                if old[i + di] == new[j + dj]
            ),
            default=None,
        )
        if best is None:
            i, j = i + _AHEAD // 2, j + _AHEAD // 2
            continue
        i, j = i + best[1], j + best[2]
        pairs.append((i, j))
        i, j = i + 1, j + 1
    return pairs
