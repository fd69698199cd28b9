"""The history that VAPI sends → turns to store. Pure.

VAPI asks the model several times in one turn: on a guess at the end of the caller's words, again
with more of them, again after a time-out, again after each tool. Most of what is generated is
never heard. What each request does carry is the call so far *as it was spoken*, so the transcript
is a projection of the newest history and never a log of requests.

Theory of operation: all stretches of a history before the caller's last one are complete: nothing
can be added to them. `follow` aligns each history with the known call, returns what to store, and
keeps the open end. A history that begins with the call also corrects what was misheard; a window
only adds (`windows`). `conclude` stores the end: as reported, or as far as it was seen. A turn that
a history lacks was still said: windows, hand-offs between assistants and late bodies all lack
something. The stored turns are all the state that is needed (`stored`), so a restarted process
continues with the next history.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sidecar.channels.vapi.alignment import Pair
from sidecar.channels.vapi.history import VOICEMAIL_NOTE, Stretch, open_from
from sidecar.channels.vapi.merging import (
    as_reported,
    begins,
    common_start,
    continued,
    extended,
    in_step,
    is_whole,
    pairs_of,
    reported_end,
    reported_in_step,
    same_words,
)
from sidecar.channels.vapi.stored import Entry, entries_of, turns_to
from sidecar.channels.vapi.windows import LIMIT, CallSoFar, Sighting, heard_again, placed
from sidecar.model import Turn


@dataclass(frozen=True, slots=True)
class Plan:
    """What to store: the first `unchanged` stored turns stay, `turns` follow them."""

    unchanged: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Followed:
    """What is known of a call after a history.

    Attributes:
        plan: What to store; None: nothing.
        tail: What was said after the stored turns and is still open.
        asked_at: The place of the newest turn that was asked about, -1 where unknown.
        windowed: A window of the call was among its histories.
    """

    plan: Plan | None
    tail: tuple[Stretch, ...] = ()
    asked_at: int = -1
    windowed: bool = False


def conclude(
    stored: Sequence[Turn],
    tail: Sequence[Stretch],
    report: Sequence[Stretch],
    *,
    key: str,
    sealed: int,
    now_s: float,
    voicemail: bool = False,
) -> Plan | None:
    """Return what to store at the end of a call; None when all is stored already.

    Args:
        stored: The call's turns as the journal has them.
        tail: What was said after them, as far as it was seen.
        report: What VAPI reports, annotated; empty where it reports nothing. A report that begins
            with the call and agrees with most of it overrides what is known; any other only adds.
        key: Of the call.
        sealed: At least this many of the first `stored` turns are in batches.
        now_s: Unix time, for stretches whose history names none.
        voicemail: A machine answered: everything on the caller's side is its greeting.
    """
    before = entries_of(stored)
    ended = [*before, *(Entry(0, stretch) for stretch in tail)]
    if not report:
        wanted = ended
    elif in_step(ended, report):
        wanted = reported_in_step(ended, report)
    elif not is_whole(before, report):
        wanted = reported_end(ended, report, open_at=len(before))
    else:
        wanted = as_reported(before if len(report) >= len(ended) else ended, report)
    if voicemail:
        wanted = [_by_machine(entry) for entry in wanted]
    return _planned(stored, wanted, key=key, sealed=sealed, now_s=now_s)


def _planned(
    stored: Sequence[Turn], wanted: Sequence[Entry], *, key: str, sealed: int, now_s: float
) -> Plan | None:
    sent = entries_of(stored[:sealed])
    pending = turns_to(sent, wanted, stored, key=key, sealed=sealed, now_s=now_s)
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
    key: str,
    sealed: int,
    now_s: float,
    is_final: bool = False,
) -> Followed:
    """Return what a history adds to a call: what to store, and the end that is still open.

    A history that begins with the call also corrects what is stored; a window only adds turns, and
    extends open ones.

    Args:
        stored: The call's turns as the journal has them.
        before: The result for the previous history.
        shown: A history, annotated, its open end included.
        key: Of the call.
        sealed: At least this many of the first `stored` turns are in batches.
        now_s: Unix time, for stretches whose history names none.
        is_final: What the caller said in the tail comes from a final transcript.
    """
    entries = entries_of(stored)
    known = [*entries, *(Entry(0, stretch) for stretch in before.tail)]
    known = [replace(entry, place=n) for n, entry in enumerate(known)]
    about = CallSoFar(
        [entry.stretch for entry in known],
        len(entries),
        asked_at=before.asked_at,
        is_final=is_final,
        windowed=before.windowed,
    )
    pairs, whole = _laid(known, about, shown)
    if whole:
        merged = continued(known[: len(entries)], known[len(entries) :], shown.stretches, pairs)
    else:
        merged = extended(known, shown.stretches, pairs, open_at=len(entries))
    end = open_from([entry.stretch for entry in merged])
    asked_at = _moved(before.asked_at, merged)
    if shown.asked and _asks_about(shown.stretches, merged[end:]):
        asked_at = end
    return Followed(
        _planned(
            stored,
            [one for n, one in enumerate(merged) if n < end or one.number],
            key=key,
            sealed=sealed,
            now_s=now_s,
        ),
        tuple(one.stretch for one in merged[end:] if not one.number),
        asked_at,
        before.windowed or (not whole and (not pairs or pairs[0][0] > 0)),
    )


def _asks_about(stretches: Sequence[Stretch], open_end: Sequence[Entry]) -> bool:
    """Whether a history asks about all of the caller's last words, not about a guess at them."""
    asked = stretches[open_from(stretches) :]
    return bool(asked and open_end) and same_words(open_end[0].stretch, asked[0])


def _moved(asked_at: int, merged: Sequence[Entry]) -> int:
    """Return the new place of a turn after a merge, -1 where it became part of another turn."""
    return next((n for n, entry in enumerate(merged) if entry.place == asked_at), -1)


def _laid(known: Sequence[Entry], about: CallSoFar, shown: Sighting) -> tuple[Sequence[Pair], bool]:
    """Return the pairs of a history with the known turns, and whether it begins with the call."""
    stretches = shown.stretches
    if not known:
        return [], True
    shorter = about.windowed and len(stretches) < len(known)
    if not shorter:
        same = common_start(known, stretches)
        if same in {len(known), len(stretches)}:
            return [(n, n) for n in range(same)], True
    pairs = pairs_of(known, stretches) if len(stretches) > LIMIT else placed(about, shown)
    agreed = sum(same_words(known[i].stretch, stretches[j]) for i, j in pairs)
    ends = (len(known) - 1, len(stretches) - 1)
    # After a reply that was sent completely, the whole history would be longer, or end otherwise.
    shorter = shorter or (shown.fresh and len(stretches) <= len(known) and ends not in pairs)
    # A history that begins in the middle of the first turn is a window.
    cut = heard_again(known[0].stretch, stretches[0]) is known[0].stretch and not agreed
    whole = begins(pairs, known, stretches) and agreed * 2 >= about.open_at
    return pairs, whole and not shorter and not cut


def _by_machine(entry: Entry) -> Entry:
    if entry.stretch.speaker != "caller":
        return entry
    return replace(entry, stretch=replace(entry.stretch, note=VOICEMAIL_NOTE))
