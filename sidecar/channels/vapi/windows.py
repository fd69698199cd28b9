"""Where in a call a window of its history belongs. Pure; costs (length of the window)².

An assistant may send the model only the last few messages (`lastNMessages`, squads without
context). A window is one piece of the call that ends at the newest turn. Callers and assistants
repeat the same words, so words alone do not show where a window lies: each way to lay it onto the
end of the known call is scored, and the best one is used. A placement that adds nothing is
preferred to one that would double words, because the report of the whole call adds what is missing
but removes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sidecar.channels.vapi.alignment import Pair, alike, window, words_of
from sidecar.channels.vapi.history import Stretch
from sidecar.channels.vapi.joined import begins_sentence

LIMIT = 24
"""A window of more stretches is placed by its words alone: repeats as long as that are rare."""
_BEFORE = 8
_PIECE = 3
_COMPARED = 100
"""How many words of two turns are compared where the turns are not the same."""
_GUESSED = 4
"""How many words the next guess may replace by entirely other ones."""
_NEVER = float("-inf")

_SAME = 2.0
_SAME_TIME = 3.0
_MORE = 1.0
_CUT = 1.1
_ALIKE_OPEN = 0.5
_ALIKE = -0.5
_ANOTHER_GUESS = -1.0
_BOTH_BEGIN = 1.5
_NOT_SHOWN = -2.0
_NOT_SHOWN_OPEN = -1.0
_NOT_KNOWN = -2.0
_LATER_KNOWN = -3.0
_LATER_KNOWN_OPEN = -1.0
_LATER_KNOWN_LATE = -0.5
_LATE_BY_TURNS = -4.0


@dataclass(frozen=True, slots=True)
class Sighting:
    """A history that came.

    Attributes:
        stretches: The stretches of the history, never empty.
        asked: It asks for a reply.
        fresh: The reply to the newest turn that was asked about had been sent completely, so the
            caller's last words came after that turn, even if they are the same words.
        late: It names no time: it may be older than what is known.
        astray: It names no time, and its last reply is not the one that was sent last.
        heard: How many final transcripts of the caller's last words have come so far.
        ends: It is a report, so it reaches the end of the call.
    """

    stretches: tuple[Stretch, ...]
    asked: bool = False
    fresh: bool = False
    late: bool = False
    astray: bool = False
    heard: int = 0
    ends: bool = False


@dataclass(frozen=True, slots=True)
class CallSoFar:
    """What is known of a call when a history comes.

    Attributes:
        stretches: The call so far.
        open_at: From this place on, turns are open: a history may extend them.
        asked_at: The place of the newest turn that was asked about, -1 where unknown.
        is_final: The caller's open words come from a final transcript: they are not a guess.
        windowed: Earlier histories were windows of the call.
    """

    stretches: Sequence[Stretch]
    open_at: int
    asked_at: int = -1
    is_final: bool = False
    windowed: bool = False


def placed(known: CallSoFar, shown: Sighting) -> list[Pair]:
    """Return pairs of places, both rising, at which the call and a history are the same turn.

    Args:
        known: The call.
        shown: A history of at most `LIMIT` stretches.
    """
    start = _start(known.stretches, shown.stretches)
    laid = _Laid(known, shown, start)
    rows, columns = len(laid.old), len(laid.new)
    score = [[_NEVER] * (columns + 1) for _ in range(rows + 1)]
    step = [[""] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows + 1):
        score[i][0] = 0.0
        for j in range(columns + 1):
            here = score[i][j]
            if i < rows and j < columns and (at := here + laid.same(i, j)) > score[i + 1][j + 1]:
                score[i + 1][j + 1], step[i + 1][j + 1] = at, "same"
            if i < rows and j and (at := here + laid.not_shown(i, j)) > score[i + 1][j]:
                score[i + 1][j], step[i + 1][j] = at, "known"
            if j < columns and (at := here + laid.not_known(i, j)) >= score[i][j + 1]:
                score[i][j + 1], step[i][j + 1] = at, "shown"
    pairs: list[Pair] = []
    i, j = rows, columns
    while j:
        way = step[i][j]
        i -= way != "shown"
        j -= way != "known"
        if way == "same":
            pairs.append((start + i, j))
    return pairs[::-1]


def _start(known: Sequence[Stretch], shown: Sequence[Stretch]) -> int:
    """Return the place from which on a history is laid onto the call."""
    return max(0, len(known) - len(shown) - _BEFORE)


class _Laid:
    """The score of each step when a history is laid onto the end of a call.

    Places begin at `start`.
    """

    def __init__(self, known: CallSoFar, shown: Sighting, start: int) -> None:
        stretches = shown.stretches
        self._known = known
        self._shown = shown
        self._start = start
        self.old = [(stretch, words_of(stretch.text)) for stretch in known.stretches[start:]]
        self.new = [(stretch, words_of(stretch.text)) for stretch in stretches]
        callers = [n for n, stretch in enumerate(stretches) if stretch.speaker == "caller"]
        self._last = callers[-1] if callers else -1
        self._after = -1  # the caller's last words come after this place
        self._is_window = known.windowed and len(stretches) < len(known.stretches)
        if shown.fresh and callers:
            self._after = known.asked_at
        if (
            self._is_window
            and callers
            and shown.heard > _heard_times(known.stretches, self.new[self._last][1])
        ):
            self._after = len(known.stretches) - 1

    def _is_open(self, place: int) -> bool:
        """Whether a turn may still grow, because nobody has answered it yet."""
        return place >= max(self._known.open_at, len(self._known.stretches) - 1)

    def same(self, i: int, j: int) -> float:
        """Score of: both have the same turn."""
        place = self._start + i
        is_open = self._is_open(place)
        likeness = _likeness(self.old[i], self.new[j], is_open=is_open, cut=j == 0)
        if j == self._last and place <= self._after and likeness != _MORE:
            if place == self._after or not self._shown.late:
                return _NEVER
            return likeness + _LATE_BY_TURNS
        if likeness == _ANOTHER_GUESS and self._known.is_final:
            return _NEVER
        if place == j == 0 and not self._known.windowed:
            return likeness + _BOTH_BEGIN
        return likeness

    def not_shown(self, i: int, j: int) -> float:
        """Score of: the history lacks a turn that is known."""
        is_open = self._is_open(self._start + i)
        if j < len(self.new):
            passed = self._start + i == self._after  # answered, so a window would show it
            return _NOT_SHOWN_OPEN if is_open and not passed else _NOT_SHOWN
        if self._shown.astray:
            return 0.0
        if self._shown.late:
            return _LATER_KNOWN_LATE
        return _LATER_KNOWN_OPEN if is_open and not self._shown.ends else _LATER_KNOWN

    def not_known(self, i: int, j: int) -> float:
        """Score of: the history has a turn that is not known yet."""
        place = self._start + i
        if j >= self._last and place <= self._after and self._is_window:
            return _NEVER
        if place == 0 or i == len(self.old):
            return 0.0
        stretches = self._known.stretches
        gap = stretches[place - 1].speaker == stretches[place].speaker
        return 0.0 if gap else _NOT_KNOWN


def shown_before(known: Sequence[Stretch], shown: Sequence[Stretch]) -> list[Pair]:
    """Return pairs of places if a history is a piece of the call that `placed` does not reach.

    It has the same words; only the last may be an earlier guess. Fewer than three stretches may
    have been said again: they are no such piece. Of several pieces the newest is used.
    """
    end = _start(known, shown) + len(shown) - 1
    if len(shown) < _PIECE or end < len(shown):
        return []
    place, length = window(
        [(one.speaker, one.text) for one in known[:end]],
        [(one.speaker, one.text) for one in shown[:-1]],
    )
    end = place + len(shown) - 1
    if length < len(shown) - 1 or not goes_on(shown[-1], known[end]):
        return []
    return [(place + n, n) for n in range(len(shown))]


def goes_on(begun: Stretch, said: Stretch) -> bool:
    """Whether a speaker's words are those of an earlier guess, or more."""
    words = words_of(begun.text)
    return begun.speaker == said.speaker and words_of(said.text)[: len(words)] == words


def begins_within(known: Stretch, shown: Stretch, *, agreed: bool) -> bool:
    """Whether a history that shows the call's first turn as `shown` lacks the beginning of it.

    Args:
        known: The first turn.
        shown: The first stretch of the history.
        agreed: A later turn of the history is known.
    """
    was, now = words_of(known.text), words_of(shown.text)
    if len(now) >= len(was):
        return False
    return was[-len(now) :] == now or (was[: len(now)] == now and not agreed)


def heard_again(known: Stretch, shown: Stretch) -> Stretch:
    """Return an open turn updated by a window's version; if that is a part of it, unchanged."""
    was, now = words_of(known.text), words_of(shown.text)
    if now[: len(was)] == was:
        return shown
    if len(now) < len(was) and (was[: len(now)] == now or was[-len(now) :] == now):
        return known
    if shared := _overlap(known, was, now):
        text = " ".join([known.text, *shown.text.split()[shared:]])
        return replace(known, text=text, interrupted=shown.interrupted)
    return shown


def _overlap(known: Stretch, was: Sequence[str], now: Sequence[str]) -> int:
    """Return how many words at the end of `was`, whole sentences, are also the beginning of `now`.

    `was` are the words of `known`.
    """
    shorter = min(len(was), len(now), _COMPARED)
    shared = (n for n in range(shorter, 0, -1) if was[-n:] == now[:n])
    tokens = known.text.split()
    return next((n for n in shared if begins_sentence(tokens, max(0, len(tokens) - n))), 0)


def _heard_times(known: Sequence[Stretch], said: Sequence[str]) -> int:
    """Return how often the caller is known to have said these words in a row."""
    return sum(_times(said, words_of(one.text)) for one in known if one.speaker == "caller")


def _times(said: Sequence[str], words: Sequence[str]) -> int:
    count = n = 0
    while said and n + len(said) <= len(words):
        found = list(words[n : n + len(said)]) == list(said)
        count += found
        n += len(said) if found else 1
    return count


_Heard = tuple[Stretch, list[str]]


def _likeness(old: _Heard, new: _Heard, *, is_open: bool, cut: bool) -> float:
    (known, was), (shown, now) = old, new
    if known.speaker != shown.speaker:
        return _NEVER
    if was == now:
        return _SAME_TIME if known.at_s is not None and known.at_s == shown.at_s else _SAME
    if is_open and now[: len(was)] == was:
        return _MORE
    # A window may begin within what one speaker said.
    if cut and (was[-len(now) :] == now or (is_open and _overlap(known, was, now))):
        return _CUT
    if alike(was[:_COMPARED], now[:_COMPARED]):
        return _ALIKE_OPEN if is_open else _ALIKE
    guessed = is_open and (len(was) <= _GUESSED or 3 * len(set(was) & set(now)) >= len(set(was)))
    return _ANOTHER_GUESS if guessed else _NEVER
