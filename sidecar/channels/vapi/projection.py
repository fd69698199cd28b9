"""The history that VAPI sends → settled turns. Pure.

VAPI asks the model several times in one turn: on a guess at the end of the caller's words, again
with more of them, again after a time-out, again after each tool. Most of what is generated is
never heard. What each request does carry is the call so far *as it was spoken*, so the transcript
is a projection of the newest history and never a log of requests.

Theory of operation: a history is read as *blocks*, each one speaker's words until the other
speaks (VAPI merges neighbouring messages at will, so the border between two messages of one
speaker means nothing). All blocks before the caller's last one are settled: nobody can add to
them. `plan` aligns them with the turns that are stored and says what to store instead. A turn in
a batch is on its way to Letta and never changes: what is learnt later about one is *appended*, as
a correction that names the words it takes back. Stored turns alone are enough to go on from, so
a restarted process carries on with the next history.

A stored text is its words on one line; a first line in square brackets is a note of ours.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Literal, TypeAlias

from sidecar.model import Speaker, Turn

FALLBACK_NOTE = "the language model failed; this was said in its place"
UNCONFIRMED_NOTE = "written before it was spoken; not confirmed as heard"

Reach: TypeAlias = Literal["part", "end", "all"]
"""How much of a call a history holds: `all` of it, as the last word on it; up to its `end`, though
its beginning may be lost; or a `part`, after which something may be stored already."""

_ITEM = re.compile(r"p(?P<n>\d+)(?:\.(?P<kind>fix|drop|before)(?P<arg>\d*))?")
_NO_UNICODE = re.compile("[\ud800-\udfff]")
_QUOTE_CHARS = 400
_SPEAKERS: Mapping[str, Speaker] = {
    "user": "caller",
    "assistant": "agent",
    "bot": "agent",
}


@dataclass(frozen=True, slots=True)
class Block:
    """One speaker's words until the other speaks.

    Attributes:
        speaker: `caller` or `agent`.
        text: On one line, never empty.
        at_s: Unix time at which it began, None where the history does not say.
        interrupted: The other side cut it off.
        note: Ours, for the reader of the transcript.
    """

    speaker: Speaker
    text: str
    at_s: float | None = None
    interrupted: bool = False
    note: str = ""

    @property
    def key(self) -> tuple[Speaker, str]:
        """Equal for two transcriptions that differ in case, spacing and punctuation alone."""
        return self.speaker, fingerprint(self.text)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to store: keep the first `keep` stored turns, then `turns`."""

    keep: int
    turns: tuple[Turn, ...]


def fingerprint(text: str) -> str:
    """Return the words alone: letters and digits, case folded; the text itself where it has none."""
    folded = "".join(char for char in text.casefold() if char.isalnum())
    return folded or text.strip()


# A history as blocks -------------------------------------------------------------------------


def blocks_of(messages: Iterable[object]) -> tuple[Block, ...]:
    """Read a history in either of VAPI's shapes; what it does not know, it leaves out.

    Args:
        messages: OpenAI's `{role, content}`, or VAPI's `{role, message, time, endTime}` with
            times in Unix milliseconds. System, tool and empty messages are nobody's words.
    """
    blocks: list[Block] = []
    end_s = 0.0
    for message in messages:
        if not isinstance(message, Mapping):
            continue
        fields: Mapping[object, object] = message  # pyright: ignore[reportUnknownVariableType]
        speaker = _SPEAKERS.get(str(fields.get("role")))
        text = _one_line(_text(fields.get("content", fields.get("message"))))
        if speaker is None or not text:
            continue
        at_s = _seconds(fields.get("time"))
        last = blocks[-1] if blocks else None
        if last is not None and last.speaker == speaker:
            blocks[-1] = replace(last, text=f"{last.text} {text}")
        else:
            if last is not None and last.speaker == "agent" and at_s is not None and at_s < end_s:
                blocks[-1] = replace(last, interrupted=True)
            blocks.append(Block(speaker, text, at_s))
        end_s = _seconds(fields.get("endTime")) or 0.0
    return tuple(blocks)


def open_from(blocks: Sequence[Block]) -> int:
    """Return how many blocks are settled: those before the caller's last one."""
    for index in range(len(blocks) - 1, -1, -1):
        if blocks[index].speaker == "caller":
            return index
    return 0


def slot_of(blocks: Sequence[Block]) -> int:
    """Return the number of the turn that a history asks about: the caller's blocks so far."""
    return sum(block.speaker == "caller" for block in blocks)


def with_words(blocks: Sequence[Block], heard: Block) -> tuple[Block, ...]:
    """Return a history with words at its end that it does not hold there yet."""
    last = blocks[-1] if blocks else None
    if last is None or last.speaker != heard.speaker:
        return (*blocks, heard)
    if fingerprint(heard.text) in fingerprint(last.text):
        return tuple(blocks)
    if fingerprint(last.text) in fingerprint(heard.text):
        return (*blocks[:-1], replace(last, text=heard.text))
    return (*blocks[:-1], replace(last, text=f"{last.text} {heard.text}"))


def annotate(
    blocks: Sequence[Block],
    *,
    generated: Mapping[int, str],
    cut_slots: Collection[int],
    fallbacks: Collection[str],
) -> tuple[Block, ...]:
    """Say of the agent's blocks which were cut off and which were said in the model's place.

    Args:
        blocks: Of one history.
        generated: By slot, what was written for it.
        cut_slots: Slots in whose reply VAPI reported an interruption.
        fallbacks: What this call was told in place of a reply.
    """
    slot = 0
    annotated: list[Block] = []
    stand_ins = [fingerprint(text) for text in fallbacks]
    for index, block in enumerate(blocks):
        if block.speaker == "caller":
            slot += 1
            annotated.append(block)
            continue
        cut = block.interrupted or (
            index + 1 < len(blocks)
            and (slot in cut_slots or was_cut(generated.get(slot, ""), block.text))
        )
        spoken = fingerprint(block.text)
        note = FALLBACK_NOTE if any(text in spoken for text in stand_ins) else block.note
        annotated.append(replace(block, interrupted=cut, note=note))
    return tuple(annotated)


def was_cut(generated: str, spoken: str) -> bool:
    """Whether a reply was cut off, as far as its transcription shows.

    What was spoken comes back transcribed anew ("3:30" as "three thirty"), so words are looked
    for near the end and not compared one by one. In doubt: it was not.
    """
    written, heard = _words(generated), _words(spoken)
    if len(heard) >= len(written) or not set(heard[:3]) & set(written[:4]):
        return False
    return not set(written[-2:]) & set(heard[-3:])


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
    for turn in turns:
        named = _ITEM.fullmatch(turn.item_id)
        if named is None:
            continue
        number, kind = int(named["n"]), named["kind"]
        note, text = _parted(turn.text)
        entry = _Entry(number, Block(turn.speaker, text, turn.at_s, turn.interrupted, note))
        numbers = [one.number for one in entries]
        if kind in {"fix", "drop"}:
            if number in numbers:
                place = numbers.index(number)
                fixed = _Entry(number, replace(entry.block, note=""))
                entries[place : place + 1] = [] if kind == "drop" else [fixed]
        elif kind == "before" and int(named["arg"]) in numbers:
            unnoted = _Entry(number, replace(entry.block, note=""))
            entries.insert(numbers.index(int(named["arg"])), unnoted)
        else:
            entries.append(entry)
    return entries


# What to store -------------------------------------------------------------------------------


def plan(
    stored: Sequence[Turn],
    blocks: Sequence[Block],
    *,
    call: str,
    sealed: int,
    reach: Reach,
    now_s: float,
) -> Plan | None:
    """Say what to store so that the transcript is what `blocks` say; None when it is already.

    Args:
        stored: The call's turns as the journal has them.
        blocks: Settled blocks of a newer history, annotated.
        call: Key of the call.
        sealed: At least the first so many of `stored` are in batches.
        reach: How much of the call the history holds.
        now_s: Unix time, for blocks whose history names none.
    """
    if not blocks:
        return None
    before = _entries(stored)
    wanted = _merged(before, blocks, reach=reach)
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
    wanted_numbers = {entry.number for entry in wanted}
    numbers = [int(named["n"]) for turn in stored if (named := _ITEM.fullmatch(turn.item_id))]
    fresh = max(numbers, default=0)
    at_s = {turn.item_id: turn.at_s for turn in stored[sealed:]}

    def turn(item_id: str, block: Block, note: str = "", text: str | None = None) -> Turn:
        text = block.text if text is None else text
        said = f"[{note}]\n{text}" if note else text
        when = block.at_s if block.at_s is not None else at_s.get(item_id, now_s)
        return Turn(call, item_id, 0, block.speaker, said, when, block.interrupted)

    pending = [
        turn(
            f"p{number}.drop",
            block,
            f'correction: "{_quoted(block.text)}", noted before, was not said',
            "",
        )
        for number, block in sent_blocks.items()
        if number not in wanted_numbers
    ]
    for index, entry in enumerate(wanted):
        block = entry.block
        was = sent_blocks.get(entry.number)
        if was is not None:
            if was.key != block.key:
                fixes = sum(t.item_id.startswith(f"p{entry.number}.fix") for t in stored[:sealed])
                note = f'correction: instead of "{_quoted(was.text)}", noted before, this was said'
                pending.append(turn(f"p{entry.number}.fix{fixes + 1}", block, note))
            continue
        number = entry.number
        if number == 0:
            fresh += 1
            number = fresh
        later = next((one for one in wanted[index + 1 :] if one.number in sent_blocks), None)
        if later is None:
            pending.append(turn(f"p{number}", block, block.note))
        else:
            quote = _quoted(sent_blocks[later.number].text)
            note = f'correction: this was said before "{quote}", noted before'
            pending.append(turn(f"p{number}.before{later.number}", block, note))
    return pending


def _merged(stored: Sequence[_Entry], blocks: Sequence[Block], *, reach: Reach) -> list[_Entry]:
    """Align, and take the newer word where the two differ. New blocks get the number 0."""
    merged: list[_Entry] = []
    spans = _spans([entry.block for entry in stored], blocks)
    anchored = any(tag == "equal" for tag, *_ in spans)
    for place, (tag, i1, i2, j1, j2) in enumerate(spans):
        old, new = stored[i1:i2], blocks[j1:j2]
        if tag == "equal":
            merged += [
                _agreed(entry, block, reach=reach) for entry, block in zip(old, new, strict=True)
            ]
        elif reach == "all":
            merged += _paired(old, new)
        elif not new and (
            (place == 0 and anchored) or (place == len(spans) - 1 and reach == "part")
        ):
            merged += old  # a history without its beginning, or older than what is stored
        elif place == 0 and anchored:
            backward = _paired(old[::-1], new[::-1])[::-1]
            kept = {entry.number for entry in backward}
            merged += [entry for entry in old if entry.number not in kept]
            merged += backward
        else:
            merged += _paired(old, new)
    return merged


def _agreed(entry: _Entry, block: Block, *, reach: Reach) -> _Entry:
    """Both say the same words: the last word on a call also has its spelling and its time."""
    was = entry.block
    interrupted = was.interrupted or block.interrupted
    if reach != "all":
        note = block.note or (was.note if was.note != UNCONFIRMED_NOTE else "")
        return _Entry(entry.number, replace(was, interrupted=interrupted, note=note))
    at_s = was.at_s if block.at_s is None else block.at_s
    return _Entry(entry.number, replace(block, at_s=at_s, interrupted=interrupted))


def _paired(old: Sequence[_Entry], new: Sequence[Block]) -> list[_Entry]:
    """Return the new blocks, each in the place of an old one of the same speaker while there are."""
    merged: list[_Entry] = []
    left = list(old)
    for index, block in enumerate(new):
        while left and left[0].block.speaker != block.speaker and len(left) > len(new) - index:
            left.pop(0)
        if left and left[0].block.speaker == block.speaker:
            was = left.pop(0)
            at_s = was.block.at_s if block.at_s is None else block.at_s
            merged.append(_Entry(was.number, replace(block, at_s=at_s)))
        else:
            merged.append(_Entry(0, block))
    return merged


def _spans(old: Sequence[Block], new: Sequence[Block]) -> list[tuple[str, int, int, int, int]]:
    """Return difflib's opcodes; the common beginning, most often all there is, costs O(n)."""
    same = 0
    while same < min(len(old), len(new)) and _same_words(old[same], new[same]):
        same += 1
    spans = [("equal", 0, same, 0, same)] if same else []
    if same < max(len(old), len(new)):
        was, is_now = [one.key for one in old[same:]], [one.key for one in new[same:]]
        matcher = SequenceMatcher(None, was, is_now, autojunk=False)
        spans += [
            (tag, i1 + same, i2 + same, j1 + same, j2 + same)
            for tag, i1, i2, j1, j2 in matcher.get_opcodes()
        ]
    return spans


def _same_words(old: Block, new: Block) -> bool:
    if old.text == new.text:  # spares the fingerprint of almost every block
        return old.speaker == new.speaker
    return old.key == new.key


# Texts ---------------------------------------------------------------------------------------


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts: list[object] = content  # pyright: ignore[reportUnknownVariableType]
        return " ".join(
            str(part["text"])  # pyright: ignore[reportUnknownArgumentType]
            for part in parts
            if isinstance(part, Mapping) and isinstance(part.get("text"), str)  # pyright: ignore[reportUnknownMemberType]
        )
    return ""


def _one_line(text: str) -> str:
    if not text.isascii():
        text = _NO_UNICODE.sub("\ufffd", text)
    return " ".join(text.split())


def _parted(text: str) -> tuple[str, str]:
    """Split our note from the words; words are on one line, so a line break tells."""
    head, broken, words = text.partition("\n")
    return (head.removeprefix("[").removesuffix("]"), words) if broken else ("", text)


def _quoted(text: str) -> str:
    return text if len(text) <= _QUOTE_CHARS else text[: _QUOTE_CHARS - 1] + "…"


def _words(text: str) -> list[str]:
    return [word for raw in text.split() if (word := "".join(filter(str.isalnum, raw.casefold())))]


def _seconds(milliseconds: object) -> float | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    return milliseconds / 1_000 if 0 < milliseconds < 1e14 else None  # noqa: PLR2004 - year 5138
