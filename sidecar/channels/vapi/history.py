"""A history as VAPI sends it, read as blocks. Pure.

A history is read as *blocks*, each one speaker's words until the other speaks: VAPI merges
neighbouring messages at will, so the border between two messages of one speaker means nothing.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sidecar.channels.vapi.alignment import alike, fingerprint, words_of
from sidecar.model import Speaker

FALLBACK_NOTE = "the language model failed; this was said in its place"
VOICEMAIL_NOTE = "a voicemail's greeting; nobody was on the line"
UNCONFIRMED_NOTE = "written before it was spoken; not confirmed as heard"

_NO_UNICODE = re.compile("[\ud800-\udfff]")
_COMPARED_CHARS = 400
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


def blocks_of(messages: Iterable[object]) -> tuple[Block, ...]:
    """Read a history in either of VAPI's shapes; what it does not know, it leaves out.

    Args:
        messages: OpenAI's `{role, content}`, or VAPI's `{role, message, time, endTime}` with
            times in Unix milliseconds. System, tool and empty messages are nobody's words.
    """
    blocks: list[Block] = []
    texts: list[str] = []  # of the last block
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
        last = blocks[-1] if blocks else None
        if last is not None and last.speaker == speaker:
            texts.append(text)
        else:
            if last is not None:
                cut = last.speaker == "agent" and at_s is not None and at_s < end_s
                if cut or len(texts) > 1:
                    blocks[-1] = replace(last, text=" ".join(texts), interrupted=cut)
            blocks.append(Block(speaker, text, at_s))
            texts = [text]
        end_s = _seconds(fields.get("endTime")) or 0.0
    if len(texts) > 1:
        blocks[-1] = replace(blocks[-1], text=" ".join(texts))
    return tuple(blocks)


def open_from(blocks: Sequence[Block]) -> int:
    """Return how many blocks are settled: those before the caller's last one."""
    for index in range(len(blocks) - 1, -1, -1):
        if blocks[index].speaker == "caller":
            return index
    return 0


def goes_on(before: Sequence[Block], blocks: Sequence[Block]) -> bool:
    """Whether a history has what settled last in one before it at the same place."""
    last = max(open_from(before) - 1, 0)
    if last >= len(blocks) or before[last].speaker != blocks[last].speaker:
        return False
    one, other = (words_of(held[last].text[:_COMPARED_CHARS]) for held in (before, blocks))
    return not open_from(before) or alike(one, other)


def slot_of(blocks: Sequence[Block]) -> int:
    """Return the number of the turn that a history asks about: the caller's blocks so far."""
    return sum(block.speaker == "caller" for block in blocks)


def with_words(
    blocks: Sequence[Block], heard: Sequence[Block], *, before: Block | None = None
) -> tuple[Block, ...]:
    """Return a history with words at its end that it does not hold there yet.

    Args:
        blocks: The history, or its end.
        heard: What was transcribed after it came, an utterance each, in order.
        before: The utterance that was transcribed last before it came. Where the history ends
            with it, what was heard after it is not in the history.
    """
    ended = [*blocks]
    known = _open_words(blocks, heard, before)
    new = _beyond(known, heard)
    for block in heard[len(heard) - new :]:
        last = ended[-1] if ended else None
        if last is None or last.speaker != block.speaker:
            ended.append(block)
            known = []
            continue
        said = words_of(block.text)
        longer = bool(known) and new == len(heard) and said[: len(known)] == known
        ended[-1] = replace(last, text=block.text if longer else f"{last.text} {block.text}")
        known = []
    return tuple(ended)


def _open_words(blocks: Sequence[Block], heard: Sequence[Block], before: Block | None) -> list[str]:
    """Return the words at the end of a history that may be among those heard after it."""
    if not blocks or not heard or blocks[-1].speaker != heard[0].speaker:
        return []
    known = words_of(blocks[-1].text)
    if before is not None and before.speaker == blocks[-1].speaker:
        said = words_of(before.text)
        if said and known[-len(said) :] == said:
            return []
    return known


def _beyond(known: Sequence[str], heard: Sequence[Block]) -> int:
    """Return how many of the utterances, from the last one back, words that are known lack."""
    said: list[str] = []
    lacking = len(heard)
    for place, block in enumerate(heard):
        if block.speaker != heard[0].speaker:
            break
        said += words_of(block.text)
        if said and list(known[-len(said) :]) == said:
            lacking = len(heard) - place - 1
    return lacking


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
    written, heard = words_of(generated), words_of(spoken)
    if len(heard) >= len(written) or not set(heard[:3]) & set(written[:4]):
        return False
    return not set(written[-2:]) & set(heard[-3:])


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


def _seconds(milliseconds: object) -> float | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    return milliseconds / 1_000 if 0 < milliseconds < 1e14 else None  # noqa: PLR2004 - year 5138
