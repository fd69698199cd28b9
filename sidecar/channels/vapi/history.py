"""A history as VAPI sends it, read as stretches. Pure.

A history is read as *stretches*, each one speaker's words until the other speaks: VAPI merges
neighbouring messages at will, so the border between two messages of one speaker means nothing.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sidecar.channels.vapi.alignment import alike, fingerprint, words_of
from sidecar.channels.vapi.bodies import Object, child, items
from sidecar.model import Speaker

FALLBACK_NOTE = "the language model failed; this was said in its place"
VOICEMAIL_NOTE = "a voicemail's greeting; nobody was on the line"
UNCONFIRMED_NOTE = "written before it was spoken; not confirmed as heard"

_NO_UNICODE = re.compile("[\ud800-\udfff]")
_COMPARED_CHARS = 400
_HISTORIES = ("messages", "messagesOpenAIFormatted")
_SPEAKERS: Mapping[str, Speaker] = {
    "user": "caller",
    "assistant": "agent",
    "bot": "agent",
}


@dataclass(frozen=True, slots=True)
class Stretch:
    """One speaker's words until the other speaks.

    Attributes:
        speaker: `caller` or `agent`.
        text: On one line, never empty.
        at_s: Unix time at which it began, None where the history does not say.
        interrupted: The other side interrupted it.
        note: The sidecar's own note, for the reader of the transcript.
    """

    speaker: Speaker
    text: str
    at_s: float | None = None
    interrupted: bool = False
    note: str = ""

    @property
    def key(self) -> tuple[Speaker, str]:
        """Equal for two transcriptions that differ only in case, spacing and punctuation."""
        return self.speaker, fingerprint(self.text)


def history_of(message: Object) -> tuple[Stretch, ...]:
    """Return the history a message carries: in its artifact, or beside it on real calls.

    VAPI's own shape is preferred, because it has times.
    """
    for history in histories_in(message):
        stretches = stretches_of(history)
        if stretches:
            return stretches
    return ()


def histories_in(message: Object) -> Iterator[Sequence[Any]]:
    """Yield each list that may be a message's history, the preferred ones first."""
    for source in (child(message, "artifact"), message):
        for name in _HISTORIES:
            yield items(source, name)


def stretches_of(messages: Iterable[object]) -> tuple[Stretch, ...]:
    """Read a history in either of VAPI's shapes; unknown messages are left out.

    Args:
        messages: OpenAI's `{role, content}`, or VAPI's `{role, message, time, endTime}` with
            times in Unix milliseconds. System, tool and empty messages are skipped.
    """
    stretches: list[Stretch] = []
    texts: list[str] = []  # of the last stretch
    end_s = 0.0
    for message in messages:
        if not isinstance(message, Mapping):
            continue
        fields: Mapping[object, object] = message  # pyright: ignore[reportUnknownVariableType]
        role = fields.get("role")
        speaker = _SPEAKERS.get(role) if isinstance(role, str) else None
        if speaker is None:
            continue
        text = _one_line(_text(fields.get("content", fields.get("message"))))
        if not text:
            continue
        at_s = _seconds(fields.get("time"))
        last = stretches[-1] if stretches else None
        if last is not None and last.speaker == speaker:
            texts.append(text)
        else:
            if last is not None:
                cut = last.speaker == "agent" and at_s is not None and at_s < end_s
                if cut or len(texts) > 1:
                    stretches[-1] = replace(last, text=" ".join(texts), interrupted=cut)
            stretches.append(Stretch(speaker, text, at_s))
            texts = [text]
        end_s = _seconds(fields.get("endTime")) or 0.0
    if len(texts) > 1:
        stretches[-1] = replace(stretches[-1], text=" ".join(texts))
    return tuple(stretches)


def open_from(stretches: Sequence[Stretch]) -> int:
    """Return how many stretches are complete: those before the caller's last one."""
    for index in range(len(stretches) - 1, -1, -1):
        if stretches[index].speaker == "caller":
            return index
    return 0


def goes_on(before: Sequence[Stretch], stretches: Sequence[Stretch]) -> bool:
    """Whether a history has the last complete stretch of an earlier one at the same place."""
    last = max(open_from(before) - 1, 0)
    if last >= len(stretches) or before[last].speaker != stretches[last].speaker:
        return False
    one, other = (words_of(history[last].text[:_COMPARED_CHARS]) for history in (before, stretches))
    return not open_from(before) or alike(one, other)


def slot_of(stretches: Sequence[Stretch]) -> int:
    """Return the number of the turn that a history asks about: the caller's stretches so far."""
    return sum(stretch.speaker == "caller" for stretch in stretches)


def with_words(
    stretches: Sequence[Stretch], heard: Sequence[Stretch], *, before: Stretch | None = None
) -> tuple[Stretch, ...]:
    """Return a history with later transcripts added at its end, without what it holds already.

    Args:
        stretches: The history, or its end.
        heard: What was transcribed after it came, one utterance each, in order.
        before: The utterance that was transcribed last before it came. Where the history ends
            with that, it contains nothing of `heard`.
    """
    ended = [*stretches]
    known = _open_words(stretches, heard, before)
    new = _beyond(known, heard)
    for stretch in heard[len(heard) - new :]:
        last = ended[-1] if ended else None
        if last is None or last.speaker != stretch.speaker:
            ended.append(stretch)
            known = []
            continue
        said = words_of(stretch.text)
        longer = bool(known) and new == len(heard) and said[: len(known)] == known
        ended[-1] = replace(last, text=stretch.text if longer else f"{last.text} {stretch.text}")
        known = []
    return tuple(ended)


def _open_words(
    stretches: Sequence[Stretch], heard: Sequence[Stretch], before: Stretch | None
) -> list[str]:
    """Return the words at the end of a history that `heard` may repeat."""
    if not stretches or not heard or stretches[-1].speaker != heard[0].speaker:
        return []
    known = words_of(stretches[-1].text)
    if before is not None and before.speaker == stretches[-1].speaker:
        said = words_of(before.text)
        if said and known[-len(said) :] == said:
            return []
    return known


def _beyond(known: Sequence[str], heard: Sequence[Stretch]) -> int:
    """Return how many of the last utterances are not in the known words."""
    said: list[str] = []
    lacking = len(heard)
    for place, stretch in enumerate(heard):
        if stretch.speaker != heard[0].speaker:
            break
        said += words_of(stretch.text)
        if said and list(known[-len(said) :]) == said:
            lacking = len(heard) - place - 1
    return lacking


def annotate(
    stretches: Sequence[Stretch],
    *,
    generated: Mapping[int, str],
    cut_slots: Collection[int],
    fallbacks: Collection[str],
) -> tuple[Stretch, ...]:
    """Mark the agent's stretches that were interrupted, or spoken in place of the model's reply.

    Args:
        stretches: Of one history.
        generated: By slot, what was written for it.
        cut_slots: Slots in whose reply VAPI reported an interruption.
        fallbacks: Texts that were spoken in this call in place of a reply.
    """
    slot = 0
    annotated: list[Stretch] = []
    stand_ins = [fingerprint(text) for text in fallbacks]
    for index, stretch in enumerate(stretches):
        if stretch.speaker == "caller":
            slot += 1
            annotated.append(stretch)
            continue
        cut = stretch.interrupted or (
            index + 1 < len(stretches)
            and (slot in cut_slots or was_cut(generated.get(slot, ""), stretch.text))
        )
        spoken = fingerprint(stretch.text)
        note = FALLBACK_NOTE if any(text in spoken for text in stand_ins) else stretch.note
        annotated.append(replace(stretch, interrupted=cut, note=note))
    return tuple(annotated)


def was_cut(generated: str, spoken: str) -> bool:
    """Whether a reply was cut off, as far as its transcription shows.

    What was spoken comes back transcribed again ("3:30" as "three thirty"), so words are looked
    for near the end and not compared one by one. In doubt it returns False.
    """
    written, heard = words_of(generated), words_of(spoken)
    if len(heard) >= len(written) or not set(heard[:3]) & set(written[:4]):
        return False
    return not set(written[-2:]) & set(heard[-3:])


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts: list[object] = content  # pyright: ignore[reportUnknownVariableType]
        objects: list[Mapping[str, object]] = [one for one in parts if isinstance(one, Mapping)]
        texts = [one.get("text") for one in objects]
        return " ".join(text for text in texts if isinstance(text, str))
    return ""


def _one_line(text: str) -> str:
    if not text.isascii():
        text = _NO_UNICODE.sub("\ufffd", text)
    return " ".join(text.split())


def _seconds(milliseconds: object) -> float | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    return milliseconds / 1_000 if 0 < milliseconds < 1e14 else None  # noqa: PLR2004 - year 5138
