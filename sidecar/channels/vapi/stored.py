"""A VAPI call as the journal has it: turns, and turns that correct those already sent. Pure.

A turn in a batch is on its way to Letta and never changes: a later correction is *appended* as a
turn that names it. A stored text is its words on one line; a first line in square brackets is a
note of the sidecar's. Its `item_id`: `p7` is the seventh turn, `p7.fix1` what was said instead,
`p7.drop` that it was not said, `p9.before7` a turn that was said before the seventh.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sidecar.channels.vapi.alignment import said_otherwise
from sidecar.channels.vapi.history import VOICEMAIL_NOTE, Stretch
from sidecar.model import Turn

_ITEM = re.compile(r"p(?P<n>\d+)(?:\.(?P<kind>fix|drop|before)(?P<arg>\d*))?")


_QUOTE_CHARS = 400


@dataclass(frozen=True, slots=True)
class Entry:
    """One stretch after its corrections.

    Attributes:
        number: Identifies it among the call's turns, 0 for one that is not stored.
        stretch: What was said.
        place: Where it was before a history came, -1 for a stretch that the history brings.
    """

    number: int
    stretch: Stretch
    place: int = -1


def transcript_of(turns: Iterable[Turn]) -> tuple[Stretch, ...]:
    """Return what a call's stored turns say once every correction in them is applied."""
    return tuple(entry.stretch for entry in entries_of(turns))


def entries_of(turns: Iterable[Turn]) -> list[Entry]:
    """Return a call's stored turns with every correction in them applied."""
    entries: list[Entry] = []
    fixed: dict[int, Entry | None] = {}
    before: dict[int, list[Entry]] = {}
    numbers: set[int] = set()
    for turn in turns:
        named = _ITEM.fullmatch(turn.item_id)
        if named is None:
            continue
        number, kind = int(named["n"]), named["kind"]
        note, text = _parted(turn.text)
        entry = Entry(number, Stretch(turn.speaker, text, turn.at_s, turn.interrupted, note))
        machine = VOICEMAIL_NOTE if note.endswith(VOICEMAIL_NOTE) else ""
        unnoted = Entry(number, replace(entry.stretch, note=machine))
        if kind in {"fix", "drop"}:
            fixed[number] = None if kind == "drop" else unnoted
            continue
        if kind == "before" and int(named["arg"]) in numbers:
            before.setdefault(int(named["arg"]), []).append(unnoted)
        else:
            entries.append(entry)
        numbers.add(number)
    return list(_in_place(entries, fixed, before))


def _in_place(
    entries: Iterable[Entry],
    fixed: Mapping[int, Entry | None],
    before: Mapping[int, Sequence[Entry]],
) -> Iterator[Entry]:
    """Yield the corrected entries, each after those that a correction puts before it."""
    waiting = list(entries)[::-1]
    opened: set[int] = set()
    while waiting:
        entry = waiting.pop()
        earlier = before.get(entry.number)
        if earlier and entry.number not in opened:
            opened.add(entry.number)
            waiting += [entry, *earlier[::-1]]
            continue
        now = fixed.get(entry.number, entry)
        if now is not None:
            yield now


def turns_to(
    sent: Sequence[Entry],
    wanted: Sequence[Entry],
    stored: Sequence[Turn],
    *,
    key: str,
    sealed: int,
    now_s: float,
) -> list[Turn]:
    """Return the turns to store after the sealed ones, so that all together say what is wanted."""
    sent_stretches = {entry.number: entry.stretch for entry in sent}
    numbers = [int(named["n"]) for turn in stored if (named := _ITEM.fullmatch(turn.item_id))]
    fresh = max(numbers, default=0)
    fixes = Counter(
        int(named["n"])
        for turn in stored[:sealed]
        if (named := _ITEM.fullmatch(turn.item_id)) and named["kind"] == "fix"
    )
    at_s = {turn.item_id: turn.at_s for turn in stored[sealed:]}

    def turn(item_id: str, stretch: Stretch, note: str = "") -> Turn:
        said = f"[{note}]\n{stretch.text}" if note else stretch.text
        when = stretch.at_s if stretch.at_s is not None else at_s.get(item_id, now_s)
        return Turn(key, item_id, 0, stretch.speaker, said, when, stretch.interrupted)

    later_of: dict[int, int] = {}  # by place in `wanted`: number of the next turn that was sent
    later = 0
    for index in range(len(wanted) - 1, -1, -1):
        later_of[index] = later
        later = wanted[index].number if wanted[index].number in sent_stretches else later
    pending: list[Turn] = []
    for index, entry in enumerate(wanted):
        stretch = entry.stretch
        was = sent_stretches.get(entry.number)
        if was is not None:
            machine = stretch.note == VOICEMAIL_NOTE != was.note
            if machine or said_otherwise(was.text, stretch.text):
                note = f'correction: instead of "{_quoted(was.text)}", noted before, this was said'
                if machine:
                    note = f'correction: "{_quoted(was.text)}", noted before, was {VOICEMAIL_NOTE}'
                pending.append(turn(f"p{entry.number}.fix{fixes[entry.number] + 1}", stretch, note))
            continue
        number = entry.number
        if number == 0:
            fresh += 1
            number = fresh
        later = later_of[index]
        if not later:
            pending.append(turn(f"p{number}", stretch, stretch.note))
        else:
            quote = _quoted(sent_stretches[later].text)
            note = f'correction: this was said before "{quote}", noted before'
            if stretch.note == VOICEMAIL_NOTE:
                note = f"{note}; it is {VOICEMAIL_NOTE}"
            pending.append(turn(f"p{number}.before{later}", stretch, note))
    return pending


def _parted(text: str) -> tuple[str, str]:
    """Split the sidecar's note from the words, which never contain a line break."""
    head, broken, words = text.partition("\n")
    return (head.removeprefix("[").removesuffix("]"), words) if broken else ("", text)


def _quoted(text: str) -> str:
    return text if len(text) <= _QUOTE_CHARS else text[: _QUOTE_CHARS - 1] + "…"
