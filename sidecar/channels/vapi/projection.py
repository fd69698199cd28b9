"""The history that VAPI sends → settled turns. Pure.

VAPI asks the model several times in one turn: on a guess at the end of the caller's words, again
with more of them, again after a time-out, again after each tool. Most of what is generated is
never heard. What each request does carry is the call so far *as it was spoken*, so the transcript
is a projection of the newest history and never a log of requests.

Theory of operation: a history is read as *blocks*, each one speaker's words until the other speaks
(VAPI merges neighbouring messages at will, so the border between two messages of one speaker means
nothing). All blocks before the caller's last one are settled: nobody can add to them. `plan` aligns
them with the turns that are stored and says what to add, and which of them were misheard. What a
history merely lacks was said all the same: windows, hand-offs between assistants and late bodies
all lack something. A turn in a batch is on its way to Letta and never changes: what is learnt later
about one is *appended*, as a correction that names it. Stored turns alone are enough to go on from,
so a restarted process carries on with the next history.

A stored text is its words on one line; a first line in square brackets is a note of ours.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from sidecar.channels.vapi.alignment import align, alike, words_of
from sidecar.channels.vapi.history import UNCONFIRMED_NOTE, VOICEMAIL_NOTE, Block
from sidecar.model import Turn

Reach: TypeAlias = Literal["part", "end", "all"]
"""How much of a call a history holds: `all` of it, as the last word on it; up to its `end`, though
its beginning may be lost; or a `part`, after which something may be stored already."""

_ITEM = re.compile(r"p(?P<n>\d+)(?:\.(?P<kind>fix|drop|before)(?P<arg>\d*))?")
_QUOTE_CHARS = 400
_NEAR = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What to store: keep the first `keep` stored turns, then `turns`."""

    keep: int
    turns: tuple[Turn, ...]


# Stored turns as blocks ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """One block as it stands after its corrections. `number` names it among the call's turns."""

    number: int
    block: Block


def transcript_of(turns: Iterable[Turn]) -> tuple[Block, ...]:
    """Return what a call's stored turns say once every correction in them is applied."""
    return tuple(entry.block for entry in _entries(turns))


def _entries(turns: Iterable[Turn]) -> list[_Entry]:
    entries: list[_Entry] = []
    fixed: dict[int, _Entry | None] = {}
    before: dict[int, list[_Entry]] = {}
    numbers: set[int] = set()
    for turn in turns:
        named = _ITEM.fullmatch(turn.item_id)
        if named is None:
            continue
        number, kind = int(named["n"]), named["kind"]
        note, text = _parted(turn.text)
        entry = _Entry(number, Block(turn.speaker, text, turn.at_s, turn.interrupted, note))
        machine = VOICEMAIL_NOTE if note.endswith(VOICEMAIL_NOTE) else ""
        unnoted = _Entry(number, replace(entry.block, note=machine))
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
    entries: Iterable[_Entry],
    fixed: Mapping[int, _Entry | None],
    before: Mapping[int, Sequence[_Entry]],
) -> Iterator[_Entry]:
    """Yield entries corrected, each after those that were said before it."""
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


# What to store -------------------------------------------------------------------------------


def plan(
    stored: Sequence[Turn],
    blocks: Sequence[Block],
    *,
    call: str,
    sealed: int,
    reach: Reach,
    now_s: float,
    voicemail: bool = False,
    seen: Sequence[Block] = (),
) -> Plan | None:
    """Say what to store so that the transcript is what `blocks` say; None when it is already.

    Args:
        stored: The call's turns as the journal has them.
        blocks: Settled blocks of a newer history, annotated.
        call: Key of the call.
        sealed: At least the first so many of `stored` are in batches.
        reach: How much of the call the history holds.
        now_s: Unix time, for blocks whose history names none.
        voicemail: A machine answered: whatever the caller's side said is its greeting.
        seen: The newest history before a report, its open end included; it counts where the
            report is not of the whole call.
    """
    if not blocks and not voicemail:
        return None
    before = _entries(stored)
    if seen and (len(blocks) < len(seen) or not _is_whole(before, blocks)):
        before = _merged(before, seen, reach="end")
    wanted = _merged(before, blocks, reach=reach) if blocks else before
    if voicemail:
        wanted = [_by_machine(entry) for entry in wanted]
    sent = _entries(stored[:sealed])
    pending = _pending(sent, wanted, stored, call=call, sealed=sealed, now_s=now_s)
    same = sealed
    for old, new in zip(stored[sealed:], pending, strict=False):
        if old != new:
            break
        same += 1
    if same == len(stored) and same == sealed + len(pending):
        return None
    return Plan(same, tuple(pending[same - sealed :]))


def _pending(
    sent: Sequence[_Entry],
    wanted: Sequence[_Entry],
    stored: Sequence[Turn],
    *,
    call: str,
    sealed: int,
    now_s: float,
) -> list[Turn]:
    """Return the turns that lead from what is sent to what is wanted."""
    sent_blocks = {entry.number: entry.block for entry in sent}
    numbers = [int(named["n"]) for turn in stored if (named := _ITEM.fullmatch(turn.item_id))]
    fresh = max(numbers, default=0)
    fixes = Counter(
        int(named["n"])
        for turn in stored[:sealed]
        if (named := _ITEM.fullmatch(turn.item_id)) and named["kind"] == "fix"
    )
    at_s = {turn.item_id: turn.at_s for turn in stored[sealed:]}

    def turn(item_id: str, block: Block, note: str = "") -> Turn:
        said = f"[{note}]\n{block.text}" if note else block.text
        when = block.at_s if block.at_s is not None else at_s.get(item_id, now_s)
        return Turn(call, item_id, 0, block.speaker, said, when, block.interrupted)

    later_of: dict[int, int] = {}  # by place in `wanted`: the next turn that is sent
    later = 0
    for index in range(len(wanted) - 1, -1, -1):
        later_of[index] = later
        later = wanted[index].number if wanted[index].number in sent_blocks else later
    pending: list[Turn] = []
    for index, entry in enumerate(wanted):
        block = entry.block
        was = sent_blocks.get(entry.number)
        if was is not None:
            machine = block.note == VOICEMAIL_NOTE != was.note
            if was.key != block.key or machine:
                note = f'correction: instead of "{_quoted(was.text)}", noted before, this was said'
                if machine:
                    note = f'correction: "{_quoted(was.text)}", noted before, was {VOICEMAIL_NOTE}'
                pending.append(turn(f"p{entry.number}.fix{fixes[entry.number] + 1}", block, note))
            continue
        number = entry.number
        if number == 0:
            fresh += 1
            number = fresh
        later = later_of[index]
        if not later:
            pending.append(turn(f"p{number}", block, block.note))
        else:
            quote = _quoted(sent_blocks[later].text)
            note = f'correction: this was said before "{quote}", noted before'
            if block.note == VOICEMAIL_NOTE:
                note = f"{note}; it is {VOICEMAIL_NOTE}"
            pending.append(turn(f"p{number}.before{later}", block, note))
    return pending


def _by_machine(entry: _Entry) -> _Entry:
    if entry.block.speaker != "caller":
        return entry
    return replace(entry, block=replace(entry.block, note=VOICEMAIL_NOTE))


def _merged(stored: Sequence[_Entry], blocks: Sequence[Block], *, reach: Reach) -> list[_Entry]:
    """Align, keep every stored turn, and add what is new. New blocks get the number 0."""
    pairs = _pairs(stored, blocks)
    # A report says what it does not hold of no turn; where it begins with the call and agrees
    # with most of it, it also has the last word on the turns between those it agrees with.
    whole = reach == "all" and _is_most(pairs, stored)
    if not pairs and stored and not _alike(stored[0].block, blocks[0]):
        return [*stored, *(_Entry(0, block) for block in blocks)]
    # A shorter report that does not begin with the call is of its end: what comes before that is
    # not what it misheard.
    ahead = pairs[0] if pairs else (len(stored), len(blocks))
    i = max(0, ahead[0] - ahead[1]) if reach == "all" and not whole else 0
    merged = [*stored[:i]]
    j = 0
    for next_i, next_j in [*pairs, (len(stored), len(blocks))]:
        merged += _beside(stored[i:next_i], blocks[j:next_j], reach=reach, whole=whole)
        if next_i < len(stored):
            merged.append(_agreed(stored[next_i], blocks[next_j], reach=reach))
        i, j = next_i + 1, next_j + 1
    return merged


def _pairs(stored: Sequence[_Entry], blocks: Sequence[Block]) -> list[tuple[int, int]]:
    same = _common_start(stored, blocks)
    old, new = stored[same:], blocks[same:]
    pairs = [(n, n) for n in range(same)]
    if old and new:
        aligned = align(
            [one.block.key for one in old],
            [one.key for one in new],
            newest=not same,
        )
        pairs += [(i + same, j + same) for i, j in aligned]
    return pairs


def _is_most(pairs: Sequence[tuple[int, int]], stored: Sequence[_Entry]) -> bool:
    return bool(pairs) and pairs[0][0] == 0 and len(pairs) * 2 >= len(stored)


def _is_whole(stored: Sequence[_Entry], blocks: Sequence[Block]) -> bool:
    """Whether a report begins with the call and agrees with most of what is stored."""
    return _is_most(_pairs(stored, blocks), stored)


def _agreed(entry: _Entry, block: Block, *, reach: Reach) -> _Entry:
    """Both say the same words: the last word on a call also has its spelling and its time."""
    was = entry.block
    interrupted = was.interrupted or block.interrupted
    note = block.note or (was.note if was.note != UNCONFIRMED_NOTE else "")
    if reach != "all":
        return _Entry(entry.number, replace(was, interrupted=interrupted, note=note))
    at_s = was.at_s if block.at_s is None else block.at_s
    return _Entry(entry.number, replace(block, at_s=at_s, interrupted=interrupted, note=note))


def _beside(
    old: Sequence[_Entry], new: Sequence[Block], *, reach: Reach, whole: bool
) -> list[_Entry]:
    """Merge what is between two agreed turns: none of `old` goes, some may be `new` misheard."""
    if not old or not new:
        return [*old, *(_Entry(0, block) for block in new)]
    in_step = whole and [one.block.speaker for one in old] == [one.speaker for one in new]
    said = [] if in_step else [words_of(block.text) for block in new]
    merged: list[_Entry] = []
    start = 0
    for place, entry in enumerate(old):
        was = entry.block
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
        merged += [_Entry(0, block) for block in new[start:match]]
        block = new[match]
        start = match + 1
        unsure = reach != "all" and was.note != UNCONFIRMED_NOTE
        if unsure and len(block.text) < len(was.text):
            merged.append(entry)  # never less than was known
        else:
            at_s = was.at_s if block.at_s is None else block.at_s
            merged.append(_Entry(entry.number, replace(block, at_s=at_s)))
    return [*merged, *(_Entry(0, block) for block in new[start:])]


def _alike(old: Block, new: Block) -> bool:
    return old.speaker == new.speaker and alike(words_of(old.text), words_of(new.text))


def _common_start(stored: Sequence[_Entry], blocks: Sequence[Block]) -> int:
    same = 0
    for entry, block in zip(stored, blocks, strict=False):
        if not _same_words(entry.block, block):
            break
        same += 1
    return same


def _same_words(old: Block, new: Block) -> bool:
    if old.text == new.text:  # spares the fingerprint of almost every block
        return old.speaker == new.speaker
    return old.key == new.key


# Texts ---------------------------------------------------------------------------------------


def _parted(text: str) -> tuple[str, str]:
    """Split our note from the words; words are on one line, so a line break tells."""
    head, broken, words = text.partition("\n")
    return (head.removeprefix("[").removesuffix("]"), words) if broken else ("", text)


def _quoted(text: str) -> str:
    return text if len(text) <= _QUOTE_CHARS else text[: _QUOTE_CHARS - 1] + "…"
