"""What a caller has said that no turn holds yet. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

_RECORDED_LIMIT: Final = 100


@dataclass(slots=True)
class FinalTranscript:
    """Words that the recogniser will not change any more.

    Attributes:
        text: The words.
        at_s: Unix time at which they were reported.
        unrecorded: The part of the words that no turn of ours holds yet.
    """

    text: str
    at_s: float
    unrecorded: str


class Uncommitted:
    """Final transcripts that are in no turn, and the latest interim.

    Before the session commits a turn, it reports every word of it as final, including an interim
    on which it ended the turn early; the text of the turn is these finals joined. So a turn takes
    only its finals, and never the interim, which belongs to what follows. Finals before those of
    the turn were dropped by the session (`StopResponse`, a hook that raised, an agent that could
    not be interrupted, `clear_user_turn`), but were heard all the same.
    """

    def __init__(self) -> None:
        self._finals: list[FinalTranscript] = []
        self._interim = ""
        self._recorded_interim = ""

    def heard(self, text: str, *, final: bool, at_s: float = 0.0, of_before: bool = False) -> str:
        """Take what the recogniser reports; a final transcript replaces the interim it grew from.

        Args:
            text: The words.
            final: They will not change any more.
            at_s: Unix time at which they were reported.
            of_before: They were said before the last `take`.

        Returns:
            The final words to record now, after what was recorded, and not again: the rest of an
            interim that was recorded, or all words if they are `of_before`; else empty.
        """
        self._interim = "" if final else text
        if not final or not text.strip():
            return ""
        begun, self._recorded_interim = self._recorded_interim, ""
        late = _grown_from(begun, text)
        if late is None and of_before:
            late = text.strip()
        self._finals.append(FinalTranscript(text, at_s, text if late is None else ""))
        return late or ""

    def committed(
        self,
        text: str,
        *,
        began_s: float | None = None,
        ended_s: float | None = None,
        spoken: bool = True,
    ) -> tuple[list[FinalTranscript], str]:
        """A turn of the caller was committed.

        Args:
            text: The text of the turn.
            began_s: Unix time at which the caller began to say it, if known. It decides which
                finals are of the turn if the session's owner has changed the text.
            ended_s: Unix time at which the session considered it ended, if known: words that were
                reported later belong to the next turn, whatever they are.
            spoken: It was heard. A text that was typed, or given by the agent's code, may repeat
                words that the session has just dropped; words recorded before are new ones in it.

        Returns:
            Earlier words that no turn will hold, and what was not recorded before of this turn.
        """
        there = self._finals
        if ended_s is not None:
            there = [final for final in there if final.at_s <= ended_s]
        start, end = _end_of(there, text) if ended_s is not None else (0, 0)
        if not end:
            start, end = _first_in(self._finals, text, recorded=spoken)
        if end:
            taken = self._finals[start:end]
            if not all(final.unrecorded for final in taken):
                text = " ".join(final.unrecorded.strip() for final in taken if final.unrecorded)
        elif began_s is not None:
            start, end = sum(final.at_s < began_s for final in there), len(there)
        left = [final for final in self._finals[:start] if final.unrecorded]
        del self._finals[:end]
        return left, text

    def take(self) -> str:
        """Return what no turn holds yet, to record it as its own turn; it is not returned again."""
        rest = self.rest()
        self._recorded_interim, self._interim = self._interim, ""
        self._mark_recorded(self._finals)
        return rest

    def take_until(self, until_s: float) -> list[FinalTranscript]:
        """As `take`, but return only final words, and only those reported by `until_s`."""
        due = [final for final in self._finals if final.unrecorded and final.at_s <= until_s]
        taken = [replace(final) for final in due]
        self._mark_recorded(due)
        return taken

    def _mark_recorded(self, finals: Sequence[FinalTranscript]) -> None:
        """Mark these as recorded; the newest stay, since the session may still commit them."""
        for final in finals:
            final.unrecorded = ""
        recorded = sum(not final.unrecorded for final in self._finals)
        del self._finals[: max(0, recorded - _RECORDED_LIMIT)]

    def rest(self) -> str:
        """Return what no turn holds; empty when there is nothing."""
        pieces = (*(final.unrecorded for final in self._finals), self._interim)
        return " ".join(filter(None, (part.strip() for part in pieces)))


def _end_of(finals: Sequence[FinalTranscript], text: str) -> tuple[int, int]:
    """Return the last finals that together make a text, as a slice; an empty one if none do."""
    for key, between in _KEYS:
        whole, run = key(text), ""
        for start in range(len(finals) - 1, -1, -1):
            run = _joined(key(finals[start].text), run, between)
            if whole and run == whole:
                return start, len(finals)
            if not whole.endswith(run):
                break
    return 0, 0


def _first_in(finals: Sequence[FinalTranscript], text: str, *, recorded: bool) -> tuple[int, int]:
    """Return the first run of finals that makes a text; a recorded one, if allowed, comes last."""
    first_unrecorded = sum(not final.unrecorded for final in finals)
    for key, between in _KEYS:
        whole, parts = key(text), [key(final.text) for final in finals]
        for start in (
            *range(first_unrecorded, len(parts)),
            *range(first_unrecorded if recorded else 0),
        ):
            run = ""
            for end in range(start, len(parts)):
                run = _joined(run, parts[end], between)
                if whole and run == whole:
                    return start, end + 1
                if not whole.startswith(run):
                    break
    return 0, 0


def _joined(one: str, other: str, between: str) -> str:
    return f"{one}{between}{other}" if one and other else one or other


def _grown_from(interim: str, text: str) -> str | None:
    """Return what a final transcript adds to an interim; None when it did not grow from it."""
    begun, words = interim.split(), text.split()
    if not begun or len(words) < len(begun):
        return None
    *whole, cut = [_bare(word) for word in begun]
    last = _bare(words[len(whole)])
    if whole != [_bare(word) for word in words[: len(whole)]] or not last.startswith(cut):
        return None
    return " ".join(words[len(whole) + (last == cut) :])


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _bare(text: str) -> str:
    """Return a text without case and punctuation, which the session's owner may have changed."""
    return "".join(character for character in text.casefold() if character.isalnum())


# Words are compared as they are first, and then without case and punctuation.
_KEYS: Final[tuple[tuple[Callable[[str], str], str], ...]] = ((_spaced, " "), (_bare, ""))
