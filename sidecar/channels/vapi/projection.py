"""The history that VAPI sends → settled turns. Pure.

VAPI asks the model several times in one turn: on a guess at the end of the caller's words, again
with more of them, again after a time-out, again after each tool. Most of what is generated is
never heard. What each request does carry is the call so far *as it was spoken*, so the transcript
is a projection of the newest history and never a log of requests.

Theory of operation: all blocks of a history before the caller's last one are settled: nobody can
add to them. `follow` lays each history onto what is known of the call, says what it settles, and
keeps what is open. One that begins with the call also mends what was misheard; a window only adds
(`windows`). `conclude` stores the end: as reported, or as far as it was seen. What a history merely
lacks was said all the same: windows, hand-offs between assistants and late bodies all lack
something. A turn in a batch is on its way to Letta and never changes: what is learnt later about
one is *appended*, as a correction that names it. Stored turns alone are enough to go on from, so a
restarted process carries on with the next history.

A stored text is its words on one line; a first line in square brackets is a note of ours.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sidecar.channels.vapi.alignment import Pair, Runs, align, alike, words_of
from sidecar.channels.vapi.history import UNCONFIRMED_NOTE, VOICEMAIL_NOTE, Block, open_from
from sidecar.channels.vapi.windows import LIMIT, Known, Sighting, heard_again, placed
from sidecar.model import Turn

_ITEM = re.compile(r"p(?P<n>\d+)(?:\.(?P<kind>fix|drop|before)(?P<arg>\d*))?")
_QUOTE_CHARS = 400
_NEAR = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What to store: keep the first `keep` stored turns, then `turns`."""

    keep: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Followed:
    """What a history makes of a call.

    Attributes:
        plan: What to store; None: nothing.
        tail: What is said after the turns that are stored, still open.
        asked_at: The place of the newest turn that was asked about, -1 where unknown.
        windowed: A window of the call was among its histories.
    """

    plan: Plan | None
    tail: tuple[Block, ...] = ()
    asked_at: int = -1
    windowed: bool = False


# Stored turns as blocks ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """One block as it stands after its corrections.

    Attributes:
        number: Names it among the call's turns, 0 for one that is not stored.
        block: What was said.
        place: Where it was before a history came, -1 for what the history brings.
    """

    number: int
    block: Block
    place: int = -1


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


def conclude(
    stored: Sequence[Turn],
    tail: Sequence[Block],
    report: Sequence[Block],
    *,
    call: str,
    sealed: int,
    now_s: float,
    voicemail: bool = False,
) -> Plan | None:
    """Say what to store at the end of a call; None when all is stored already.

    Args:
        stored: The call's turns as the journal has them.
        tail: What was said after them, as far as it was seen.
        report: What VAPI reports, annotated; empty where it reports nothing. One that begins with
            the call and agrees with most of it has the last word on it; another adds.
        call: Key of the call.
        sealed: At least the first so many of `stored` are in batches.
        now_s: Unix time, for blocks whose history names none.
        voicemail: A machine answered: whatever the caller's side said is its greeting.
    """
    before = _entries(stored)
    ended = [*before, *(_Entry(0, block) for block in tail)]
    if not report:
        wanted = ended
    elif not _is_whole(before, report):
        wanted = _reported_end(ended, report, open_at=len(before))
    else:
        wanted = _merged(before if len(report) >= len(ended) else ended, report)
    if voicemail:
        wanted = [_by_machine(entry) for entry in wanted]
    return _planned(stored, wanted, call=call, sealed=sealed, now_s=now_s)


def _planned(
    stored: Sequence[Turn], wanted: Sequence[_Entry], *, call: str, sealed: int, now_s: float
) -> Plan | None:
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


def follow(
    stored: Sequence[Turn],
    before: Followed,
    shown: Sighting,
    *,
    call: str,
    sealed: int,
    now_s: float,
    is_final: bool = False,
) -> Followed:
    """Say what a history adds to a call, and what it settles.

    One that begins with the call also mends what is stored; a window only adds, and says more of
    what is open.

    Args:
        stored: The call's turns as the journal has them.
        before: What the history before made of the call.
        shown: A history, annotated, its open end included.
        call: Key of the call.
        sealed: At least the first so many of `stored` are in batches.
        now_s: Unix time, for blocks whose history names none.
        is_final: What the caller said in the tail was transcribed for good.
    """
    settled = _entries(stored)
    known = [*settled, *(_Entry(0, block) for block in before.tail)]
    known = [replace(entry, place=n) for n, entry in enumerate(known)]
    about = Known(
        [entry.block for entry in known],
        len(settled),
        asked_at=before.asked_at,
        is_final=is_final,
        windowed=before.windowed,
    )
    pairs, whole = _laid(known, about, shown)
    if whole:
        merged = _continued(known[: len(settled)], known[len(settled) :], shown.blocks, pairs)
    else:
        merged = _extended(known, shown.blocks, pairs, open_at=len(settled))
    end = open_from([entry.block for entry in merged])
    asked_at = _moved(before.asked_at, merged)
    if shown.asked and _asks_about(shown.blocks, merged[end:]):
        asked_at = end
    return Followed(
        _planned(
            stored,
            [one for n, one in enumerate(merged) if n < end or one.number],
            call=call,
            sealed=sealed,
            now_s=now_s,
        ),
        tuple(one.block for one in merged[end:] if not one.number),
        asked_at,
        before.windowed or (not whole and (not pairs or pairs[0][0] > 0)),
    )


def _asks_about(blocks: Sequence[Block], open_end: Sequence[_Entry]) -> bool:
    """Whether a history asks about all that the caller said last, and not about a guess at it."""
    asked = blocks[open_from(blocks) :]
    return bool(asked and open_end) and _same_words(open_end[0].block, asked[0])


def _moved(asked_at: int, merged: Sequence[_Entry]) -> int:
    """Return where a turn is after a history came, -1 where it is another turn's part."""
    return next((n for n, entry in enumerate(merged) if entry.place == asked_at), -1)


def _laid(known: Sequence[_Entry], about: Known, shown: Sighting) -> tuple[Sequence[Pair], bool]:
    """Return where a history lies on what is known, and whether it begins with the call."""
    blocks = shown.blocks
    if not known:
        return [], True
    shorter = about.windowed and len(blocks) < len(known)
    if not shorter:
        same = _common_start(known, blocks)
        if same in {len(known), len(blocks)}:
            return [(n, n) for n in range(same)], True
    pairs = _pairs(known, blocks) if len(blocks) > LIMIT else placed(about, shown)
    agreed = sum(_same_words(known[i].block, blocks[j]) for i, j in pairs)
    ends = (len(known) - 1, len(blocks) - 1)
    # After a reply that went out whole, the whole history would be longer, or end otherwise.
    shorter = shorter or (shown.fresh and len(blocks) <= len(known) and ends not in pairs)
    # One that begins within the first words is a window of it.
    cut = heard_again(known[0].block, blocks[0]) is known[0].block and not agreed
    whole = _begins(pairs, known, blocks) and agreed * 2 >= about.open_at
    return pairs, whole and not shorter and not cut


def _continued(
    stored: Sequence[_Entry], tail: Sequence[_Entry], blocks: Sequence[Block], pairs: Sequence[Pair]
) -> list[_Entry]:
    """Merge a history that begins with the call; what is open is as it has it."""
    agreed = [
        (i, j) for i, j in pairs if i < len(stored) and _same_words(stored[i].block, blocks[j])
    ]
    merged = _between(stored, blocks, agreed, last_word=False)
    if not tail:
        return merged
    place = max((n for n, entry in enumerate(merged) if entry.number), default=-1) + 1
    after = merged[place:]
    same = {blocks[j]: i for i, j in pairs if i >= len(stored)}
    if after and (same or after[0].block.speaker == tail[0].block.speaker):
        if not same:
            same = {after[0].block: tail[0].place}
        return [
            *merged[:place],
            *(replace(one, place=same.get(one.block, one.place)) for one in after),
        ]
    return [*merged[:place], *tail, *after]


def _extended(
    known: Sequence[_Entry], blocks: Sequence[Block], pairs: Sequence[Pair], *, open_at: int
) -> list[_Entry]:
    """Add what a window has beside and after what is known."""
    merged: list[_Entry] = []
    i = j = 0
    for next_i, next_j in [*pairs, (len(known), len(blocks))]:
        merged += known[i:next_i]
        merged += (_Entry(0, block) for block in blocks[j:next_j])
        if next_i < len(known):
            entry, block = known[next_i], blocks[next_j]
            if _same_words(entry.block, block):
                merged.append(_agreed(entry, block, last_word=False))
            elif next_i >= max(open_at, len(known) - 1):
                merged.append(replace(entry, block=heard_again(entry.block, block)))
            else:
                merged.append(entry)
        i, j = next_i + 1, next_j + 1
    return merged


def _reported_end(
    known: Sequence[_Entry], report: Sequence[Block], *, open_at: int
) -> list[_Entry]:
    """Add what a report of a part of the call has: it corrects nothing."""
    about = Known([entry.block for entry in known], open_at, windowed=True)
    shown = Sighting(tuple(report))
    pairs = _pairs(known, report) if len(report) > LIMIT else placed(about, shown)
    return _extended(known, report, pairs, open_at=open_at)


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


def _merged(stored: Sequence[_Entry], report: Sequence[Block]) -> list[_Entry]:
    """Merge what the report of the whole call has: it says nothing of a turn that it lacks."""
    return _between(stored, report, _pairs(stored, report), last_word=True)


def _between(
    stored: Sequence[_Entry],
    blocks: Sequence[Block],
    pairs: Sequence[Pair],
    *,
    last_word: bool,
) -> list[_Entry]:
    """Keep every stored turn and add what is new. New blocks get the number 0."""
    merged: list[_Entry] = []
    i = j = 0
    for next_i, next_j in [*pairs, (len(stored), len(blocks))]:
        old = stored[i:next_i]
        merged += _beside(old, _in_parts(old, blocks[j:next_j]), last_word=last_word)
        if next_i < len(stored):
            merged.append(_agreed(stored[next_i], blocks[next_j], last_word=last_word))
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


def _is_whole(stored: Sequence[_Entry], blocks: Sequence[Block]) -> bool:
    """Whether a report begins with the call and agrees with most of what is stored."""
    pairs = _pairs(stored, blocks)
    return bool(pairs) and _begins(pairs, stored, blocks) and len(pairs) * 2 >= len(stored)


def _begins(pairs: Sequence[Pair], stored: Sequence[_Entry], blocks: Sequence[Block]) -> bool:
    """Whether a history begins with the call, or before what is known of it."""
    if not pairs or pairs[0][0] == 0:
        return bool(pairs) or _alike(stored[0].block, blocks[0])
    return pairs[0][0] == pairs[0][1] and _alike(stored[0].block, blocks[0])


def _agreed(entry: _Entry, block: Block, *, last_word: bool) -> _Entry:
    """Both say the same words: the last word on a call also has its spelling and its time."""
    was = entry.block
    interrupted = was.interrupted or block.interrupted
    note = block.note or (was.note if was.note != UNCONFIRMED_NOTE else "")
    if not last_word:
        return replace(entry, block=replace(was, interrupted=interrupted, note=note))
    at_s = was.at_s if block.at_s is None else block.at_s
    return replace(entry, block=replace(block, at_s=at_s, interrupted=interrupted, note=note))


def _in_parts(old: Sequence[_Entry], new: Sequence[Block]) -> Sequence[Block]:
    """Return blocks in the parts in which they are stored.

    Where windows show no reply between two turns of one speaker, they are stored apart; a whole
    history that knows of no reply has them as one block. Each text is read once.
    """
    if not any(one.block.speaker == other.block.speaker for one, other in pairwise(old)):
        return new
    stored = Runs([(entry.block.speaker, words_of(entry.block.text)) for entry in old])
    parted: list[Block] = []
    start = 0
    for block in new:
        words = words_of(block.text)
        begin, end = stored.first(block.speaker, words, start)
        if begin == end:
            parted.append(block)
            continue
        parted += [replace(block, text=entry.block.text) for entry in old[begin:end]]
        if rest := len(words) - sum(len(said) for _, said in stored.turns[begin:end]):
            parted.append(replace(block, text=" ".join(block.text.split()[-rest:])))
        start = end
    return parted


def _beside(old: Sequence[_Entry], new: Sequence[Block], *, last_word: bool) -> list[_Entry]:
    """Merge what is between two agreed turns: none of `old` goes, some may be `new` misheard."""
    if not old or not new:
        return [*old, *(_Entry(0, block) for block in new)]
    in_step = last_word and [one.block.speaker for one in old] == [one.speaker for one in new]
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
        unsure = not last_word and was.note != UNCONFIRMED_NOTE
        if unsure and len(block.text) < len(was.text):
            merged.append(entry)  # never less than was known
        else:
            at_s = was.at_s if block.at_s is None else block.at_s
            merged.append(replace(entry, block=replace(block, at_s=at_s)))
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
