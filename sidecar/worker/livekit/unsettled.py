"""What a caller has said that no turn holds yet. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

_TOLD_KEPT: Final = 100


@dataclass(slots=True)
class FinalTranscript:
    """Words that the recogniser will not change any more.

    Attributes:
        text: The words.
        at_s: Unix time at which they were reported.
        untold: What of the words no turn of ours holds yet.
    """

    text: str
    at_s: float
    untold: str


class Unsettled:
    """Final transcripts that are in no turn, and the latest interim.

    The session reports every word of a turn as final before it commits the turn, also the interim
    by which a turn was ended before its time, and the text of the turn is the join of these. So a
    turn takes its finals alone, and never the interim: that is of what follows. What stands before
    them was dropped by the session (`StopResponse`, a hook that raised, an agent that could not be
    interrupted, `clear_user_turn`) and was heard all the same.
    """

    def __init__(self) -> None:
        self._finals: list[FinalTranscript] = []
        self._interim = ""
        self._told_interim = ""

    def heard(self, text: str, *, final: bool, at_s: float = 0.0, of_before: bool = False) -> str:
        """Take what the recogniser reports; a final transcript replaces the interim it grew from.

        Args:
            text: The words.
            final: They will not change any more.
            at_s: Unix time at which they were reported.
            of_before: They were said before the last `tell` of everything.

        Returns:
            Of final words those to be told now, behind what was told, and not again: the rest of
            an interim which was told, or all that is `of_before`.
        """
        self._interim = "" if final else text
        if not final or not text.strip():
            return ""
        begun, self._told_interim = self._told_interim, ""
        late = _grown_from(begun, text)
        if late is None and of_before:
            late = text.strip()
        self._finals.append(FinalTranscript(text, at_s, text if late is None else ""))
        return late or ""

    def settled(
        self,
        text: str,
        *,
        began_s: float | None = None,
        ended_s: float | None = None,
        spoken: bool = True,
    ) -> tuple[list[FinalTranscript], str]:
        """A turn of the caller was committed.

        Args:
            text: Of the turn.
            began_s: Unix time at which the caller began to say it, where that is known. It
                decides where the session's owner has changed the text.
            ended_s: Unix time at which the session took it for ended, where that is known: words
                that were reported later are of the next one, whatever they are.
            spoken: It was heard. What was typed, or given by the agent's code, may repeat words
                that the session has just dropped, and says anew any that were told.

        Returns:
            Earlier words that no turn will hold, and what of this turn was not told before.
        """
        there = self._finals
        if ended_s is not None:
            there = [final for final in there if final.at_s <= ended_s]
        start, end = _end_of(there, text) if ended_s is not None else (0, 0)
        if not end:
            start, end = _first_in(self._finals, text, told=spoken)
        if end:
            taken = self._finals[start:end]
            if not all(final.untold for final in taken):
                text = " ".join(final.untold.strip() for final in taken if final.untold)
        elif began_s is not None:
            start, end = sum(final.at_s < began_s for final in there), len(there)
        left = [final for final in self._finals[:start] if final.untold]
        del self._finals[:end]
        return left, text

    def tell(self) -> str:
        """Return what no turn holds yet; it is told as a turn of its own, and not again."""
        rest = self.rest()
        self._told_interim, self._interim = self._interim, ""
        self._tell(self._finals)
        return rest

    def tell_until(self, until_s: float) -> list[FinalTranscript]:
        """Return final words that were reported by then, and that no turn holds yet, as `tell`."""
        due = [final for final in self._finals if final.untold and final.at_s <= until_s]
        told = [replace(final) for final in due]
        self._tell(due)
        return told

    def _tell(self, finals: Sequence[FinalTranscript]) -> None:
        """These are told; the session may hold them yet, so the newest are not forgotten."""
        for final in finals:
            final.untold = ""
        told = sum(not final.untold for final in self._finals)
        del self._finals[: max(0, told - _TOLD_KEPT)]

    def rest(self) -> str:
        """Return what no turn holds; empty when everything is settled."""
        pieces = (*(final.untold for final in self._finals), self._interim)
        return " ".join(filter(None, (part.strip() for part in pieces)))


def _end_of(finals: Sequence[FinalTranscript], text: str) -> tuple[int, int]:
    """Return the end of some finals of which a text consists, as a slice; an empty one: none."""
    for key, between in _KEYS:
        whole, run = key(text), ""
        for start in range(len(finals) - 1, -1, -1):
            run = _joined(key(finals[start].text), run, between)
            if whole and run == whole:
                return start, len(finals)
            if not whole.endswith(run):
                break
    return 0, 0


def _first_in(finals: Sequence[FinalTranscript], text: str, *, told: bool) -> tuple[int, int]:
    """Return the first run of finals of which a text consists; one that was told, if any, last."""
    first_untold = sum(not final.untold for final in finals)
    for key, between in _KEYS:
        whole, parts = key(text), [key(final.text) for final in finals]
        for start in (*range(first_untold, len(parts)), *range(first_untold if told else 0)):
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


# The words as they are decide before the words without case and punctuation.
_KEYS: Final[tuple[tuple[Callable[[str], str], str], ...]] = ((_spaced, " "), (_bare, ""))
