"""What a history adds to the known turns of a call, and what it corrects. Pure.

A history that begins with the call corrects what was misheard; a window only adds; the report of
the whole call overrides both. No turn is removed because a history lacks it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from sidecar.channels.vapi.alignment import Pair, Runs, align, alike, words_of
from sidecar.channels.vapi.history import UNCONFIRMED_NOTE, Stretch
from sidecar.channels.vapi.joined import Joined
from sidecar.channels.vapi.stored import Entry
from sidecar.channels.vapi.windows import LIMIT, CallSoFar, Sighting, goes_on, heard_again, placed

_NEAR = 8


def continued(
    stored: Sequence[Entry],
    tail: Sequence[Entry],
    stretches: Sequence[Stretch],
    pairs: Sequence[Pair],
) -> list[Entry]:
    """Merge a history that begins with the call; its version of the open turns is used."""
    agreed = [
        (i, j) for i, j in pairs if i < len(stored) and same_words(stored[i].stretch, stretches[j])
    ]
    merged = _between(stored, stretches, agreed, last_word=False)
    if not tail:
        return merged
    place = max((n for n, entry in enumerate(merged) if entry.number), default=-1) + 1
    after = merged[place:]
    same = {stretches[j]: i for i, j in pairs if i >= len(stored)}
    if after and (same or after[0].stretch.speaker == tail[0].stretch.speaker):
        if not same:
            same = {after[0].stretch: tail[0].place}
        return [
            *merged[:place],
            *(replace(one, place=same.get(one.stretch, one.place)) for one in after),
        ]
    return [*merged[:place], *tail, *after]


def extended(
    known: Sequence[Entry], stretches: Sequence[Stretch], pairs: Sequence[Pair], *, open_at: int
) -> list[Entry]:
    """Add the turns that a window has between and after the known ones."""
    merged: list[Entry] = []
    i = j = 0
    for next_i, next_j in [*pairs, (len(known), len(stretches))]:
        merged += known[i:next_i]
        merged += (Entry(0, stretch) for stretch in stretches[j:next_j])
        if next_i < len(known):
            entry, stretch = known[next_i], stretches[next_j]
            if same_words(entry.stretch, stretch):
                merged.append(_agreed(entry, stretch, last_word=False))
            elif next_i >= max(open_at, len(known) - 1):
                merged.append(replace(entry, stretch=heard_again(entry.stretch, stretch)))
            else:
                merged.append(entry)
        i, j = next_i + 1, next_j + 1
    return merged


def reported_end(known: Sequence[Entry], report: Sequence[Stretch], *, open_at: int) -> list[Entry]:
    """Add the turns of a report of only a part of the call: it corrects nothing."""
    about = CallSoFar([entry.stretch for entry in known], open_at, windowed=True)
    report = in_parts(known, report)
    shown = Sighting(tuple(report), ends=True)
    pairs = pairs_of(known, report) if len(report) > LIMIT else placed(about, shown)
    return extended(known, report, pairs, open_at=open_at)


def as_reported(stored: Sequence[Entry], report: Sequence[Stretch]) -> list[Entry]:
    """Merge the report of the whole call; turns that it lacks stay as they are."""
    return _between(stored, report, pairs_of(stored, report), last_word=True)


def _between(
    stored: Sequence[Entry],
    stretches: Sequence[Stretch],
    pairs: Sequence[Pair],
    *,
    last_word: bool,
) -> list[Entry]:
    """Keep every stored turn and add the new ones, which get the number 0."""
    merged: list[Entry] = []
    i = j = 0
    for next_i, next_j in [*pairs, (len(stored), len(stretches))]:
        old = stored[i:next_i]
        merged += _beside(old, _whole_in_parts(old, stretches[j:next_j]), last_word=last_word)
        if next_i < len(stored):
            merged.append(_agreed(stored[next_i], stretches[next_j], last_word=last_word))
        i, j = next_i + 1, next_j + 1
    return merged


def pairs_of(stored: Sequence[Entry], stretches: Sequence[Stretch]) -> list[tuple[int, int]]:
    """Return the places in `stored` and in `stretches` that hold the same turn, both rising."""
    same = common_start(stored, stretches)
    old, new = stored[same:], stretches[same:]
    pairs = [(n, n) for n in range(same)]
    if old and new:
        aligned = align(
            [one.stretch.key for one in old],
            [one.key for one in new],
            newest=not same,
        )
        pairs += [(i + same, j + same) for i, j in aligned]
    return pairs


def in_step(known: Sequence[Entry], report: Sequence[Stretch]) -> bool:
    """Whether a report has each known turn at its place, heard better or worse.

    It begins as the call does and has the same speakers in the same order. A report that goes on
    longer than what is known also agrees with half of that.
    """
    turns = list(zip(known, report, strict=False))
    if len(known) < 2 or len(report) < len(known):  # noqa: PLR2004 - one turn is no order
        return False
    if any(entry.stretch.speaker != stretch.speaker for entry, stretch in turns):
        return False
    agreeing = [_alike(entry.stretch, stretch) for entry, stretch in turns]
    return agreeing[0] and (len(report) == len(known) or 2 * sum(agreeing) >= len(known))


def reported_in_step(known: Sequence[Entry], report: Sequence[Stretch]) -> list[Entry]:
    """Merge a report that is `in_step`: its words are used for every known turn."""
    there, after = report[: len(known)], report[len(known) :]
    pairs = [
        (n, n)
        for n, (entry, stretch) in enumerate(zip(known, there, strict=True))
        if same_words(entry.stretch, stretch)
    ]
    merged = _between(known, there, pairs, last_word=True)
    return [*merged, *(Entry(0, stretch) for stretch in after)]


def parted(
    known: Sequence[Entry], tail: Sequence[Stretch], shown: Sequence[Stretch]
) -> tuple[list[Stretch], list[Pair]] | None:
    """Return a history in parts that are the known turns, and the pairs; None where it lacks one.

    A stored turn may be some sentences of a stretch, because a whole history joins what windows
    showed apart.

    Args:
        known: The turns, in order.
        tail: What the history must go on with, with more words or as many.
        shown: The history.
    """
    parts: list[Stretch] = []
    pairs: list[Pair] = []
    stretches = map(Joined, shown)
    stretch = next(stretches)
    for place, entry in enumerate(known):
        while not (taken := stretch.take(entry.stretch, is_open=not entry.number)):
            parts += stretch.rest()
            if (after := next(stretches, None)) is None:
                return None
            stretch = after
        parts += taken
        pairs.append((place, len(parts) - 1))
    later = len(parts)
    parts += stretch.rest()
    for stretch in stretches:
        parts += stretch.rest()
    after = parts[later:]
    if len(after) < len(tail) or not all(map(goes_on, tail, after)):
        return None
    return parts, pairs


def covered_by(
    known: Sequence[Entry], report: Sequence[Stretch], *, tail: Sequence[Stretch] = ()
) -> list[Entry] | None:
    """Merge a report that has each known turn, in order; None where it lacks one, as `parted`.

    The result has the report's words, each once.
    """
    found = parted(known, tail, report)
    return _between(known, *found, last_word=True) if found else None


def is_whole(stored: Sequence[Entry], stretches: Sequence[Stretch]) -> bool:
    """Whether a report begins with the call and agrees with most of what is stored.

    It also does where it has all of the caller's words and lacks replies: VAPI discards a reply
    that nobody heard, and joins the caller's words before and after it.
    """
    pairs = pairs_of(stored, stretches)
    if not pairs or not begins(pairs, stored, stretches):
        return False
    return len(pairs) * 2 >= len(stored) or _has_all_of_the_caller(stored, stretches)


def _has_all_of_the_caller(stored: Sequence[Entry], stretches: Sequence[Stretch]) -> bool:
    known = [word for entry in stored for word in _callers_words(entry.stretch)]
    shown = [word for stretch in stretches for word in _callers_words(stretch)]
    return bool(known) and shown[: len(known)] == known


def _callers_words(stretch: Stretch) -> Sequence[str]:
    return words_of(stretch.text) if stretch.speaker == "caller" else ()


def begins(pairs: Sequence[Pair], stored: Sequence[Entry], stretches: Sequence[Stretch]) -> bool:
    """Whether a history begins with the call, or before the first turn that is known."""
    if not pairs or pairs[0][0] == 0:
        return bool(pairs) or _alike(stored[0].stretch, stretches[0])
    return pairs[0][0] == pairs[0][1] and _alike(stored[0].stretch, stretches[0])


def _agreed(entry: Entry, stretch: Stretch, *, last_word: bool) -> Entry:
    """Merge two turns with the same words; the whole report also sets spelling and time."""
    was = entry.stretch
    interrupted = was.interrupted or stretch.interrupted
    note = stretch.note or (was.note if was.note != UNCONFIRMED_NOTE else "")
    if not last_word:
        return replace(entry, stretch=replace(was, interrupted=interrupted, note=note))
    at_s = was.at_s if stretch.at_s is None else stretch.at_s
    return replace(entry, stretch=replace(stretch, at_s=at_s, interrupted=interrupted, note=note))


def in_parts(old: Sequence[Entry], new: Sequence[Stretch]) -> Sequence[Stretch]:
    """Return stretches, split into the turns as which they are stored.

    Windows may leave two neighbouring turns of one speaker stored apart, with no reply between
    them; another history has them as one stretch. Each text is read once.
    """
    if not any(one.stretch.speaker == other.stretch.speaker for one, other in pairwise(old)):
        return new
    stored = Runs([(entry.stretch.speaker, words_of(entry.stretch.text)) for entry in old])
    parted: list[Stretch] = []
    start = 0
    for stretch in new:
        words = words_of(stretch.text)
        begin, end = stored.first(stretch.speaker, words, start)
        if begin == end:
            parted.append(stretch)
            continue
        parted += [replace(stretch, text=entry.stretch.text) for entry in old[begin:end]]
        if rest := len(words) - sum(len(said) for _, said in stored.turns[begin:end]):
            if not old[end - 1].number:  # still open: it goes on
                rest += len(stored.turns[end - 1][1])
                del parted[-1]
            parted.append(replace(stretch, text=" ".join(stretch.text.split()[-rest:])))
        start = end
    return parted


def _whole_in_parts(old: Sequence[Entry], new: Sequence[Stretch]) -> Sequence[Stretch]:
    """Return stretches of a whole history in parts, which may join turns around a discarded reply.

    VAPI discards a reply that nobody heard.
    """
    speakers = {stretch.speaker for stretch in new}
    if len(speakers) == 1:
        old = [entry for entry in old if entry.stretch.speaker in speakers]
    return in_parts(old, new)


def _beside(old: Sequence[Entry], new: Sequence[Stretch], *, last_word: bool) -> list[Entry]:
    """Merge the turns between two agreed ones.

    No turn of `old` is removed; some may be misheard versions of turns in `new`.
    """
    if not old or not new:
        return [*old, *(Entry(0, stretch) for stretch in new)]
    in_step = last_word and [one.stretch.speaker for one in old] == [one.speaker for one in new]
    said = [] if in_step else [words_of(stretch.text) for stretch in new]
    merged: list[Entry] = []
    start = 0
    for place, entry in enumerate(old):
        was = entry.stretch
        if in_step:
            match = place
        else:
            heard = words_of(was.text)
            near = range(start, min(start + _NEAR, len(new)))
            match = next(
                (
                    n
                    for n in near
                    if new[n].speaker == was.speaker
                    and (was.note == UNCONFIRMED_NOTE or alike(heard, said[n]))
                ),
                -1,
            )
        if match < 0:
            merged.append(entry)
            continue
        merged += [Entry(0, stretch) for stretch in new[start:match]]
        stretch = new[match]
        start = match + 1
        unsure = not last_word and was.note != UNCONFIRMED_NOTE
        if unsure and len(stretch.text) < len(was.text):
            merged.append(entry)  # never replace known words by fewer
        else:
            at_s = was.at_s if stretch.at_s is None else stretch.at_s
            merged.append(replace(entry, stretch=replace(stretch, at_s=at_s)))
    return [*merged, *(Entry(0, stretch) for stretch in new[start:])]


def _alike(old: Stretch, new: Stretch) -> bool:
    return old.speaker == new.speaker and alike(words_of(old.text), words_of(new.text))


def common_start(stored: Sequence[Entry], stretches: Sequence[Stretch]) -> int:
    """Return how many turns are the same from the beginning."""
    same = 0
    for entry, stretch in zip(stored, stretches, strict=False):
        if not same_words(entry.stretch, stretch):
            break
        same += 1
    return same


def same_words(old: Stretch, new: Stretch) -> bool:
    """Whether both have the same speaker and words, apart from case, spacing and punctuation."""
    if old.text == new.text:  # spares the fingerprint of almost every stretch
        return old.speaker == new.speaker
    return old.key == new.key
