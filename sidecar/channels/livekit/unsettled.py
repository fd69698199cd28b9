"""What a caller has said that no turn holds yet. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Heard:
    """Final words of the recogniser.

    Attributes:
        text: The words.
        at_s: Unix time at which they were reported.
    """

    text: str
    at_s: float


class Unsettled:
    """Final pieces of the recogniser that are in no turn, and the latest interim.

    The text of a committed turn is the join of the pieces it was made of. So a turn takes these
    pieces alone. What stands before them was dropped by the session (`StopResponse`, a hook that
    raised, an agent that could not be interrupted, `clear_user_turn`) and was heard all the same.
    """

    def __init__(self) -> None:
        self._finals: list[Heard] = []
        self._interim = ""
        self._ahead = ""
        self._told = ""

    def heard(self, text: str, *, final: bool, at_s: float = 0.0) -> None:
        """Take what the recogniser reports; a final piece replaces the interim it grew from."""
        if final and text.strip() and not self._was_committed(text):
            self._finals.append(Heard(text, at_s))
        self._interim = "" if final else text

    def _was_committed(self, text: str) -> bool:
        """Whether a turn was committed by the interim of these words, before they were final."""
        ahead, self._ahead = self._ahead, ""
        return bool(ahead) and _bare(text) == ahead

    def settled(self, text: str, *, began_s: float | None = None) -> list[Heard]:
        """A turn of the caller was committed; returns earlier words that no turn will hold.

        Args:
            text: Of the turn.
            began_s: Unix time at which the caller began to say it, where that is known. It
                decides where the session's owner has changed the text, or it was typed.
        """
        if (found := self._pieces_of(text)) is not None:
            start, end, self._ahead = found
        elif began_s is not None:
            start = sum(piece.at_s < began_s for piece in self._finals)
            end = len(self._finals)
        else:
            start = end = 0
        left = self._finals[:start]
        del self._finals[:end]
        if _bare(self._interim) in _bare(text):
            if not self._finals and found is None:
                self._ahead = _bare(self._interim)
            self._interim = ""
        return left

    def untold(self, text: str) -> str:
        """Return what of a committed turn was not told before (see `tell`), once."""
        told, self._told = self._told, ""
        spaced = _spaced(text)
        if told and (spaced == told or spaced.startswith(f"{told} ")):
            return spaced[len(told) :].strip()
        return text

    def tell(self) -> str:
        """Return what no turn holds, and hold it no more: it is told as a turn of its own."""
        rest = self.rest()
        self._finals.clear()
        self._interim = ""
        self._told = _spaced(rest)
        return rest

    def rest(self) -> str:
        """Return what no turn holds; empty when everything is settled."""
        pieces = (*(piece.text for piece in self._finals), self._interim)
        return " ".join(filter(None, (part.strip() for part in pieces)))

    def _pieces_of(self, text: str) -> tuple[int, int, str] | None:
        """Return the first run of pieces that a text consists of, and the rest of it, bare.

        The words as they are decide before the words without case and punctuation. Words behind
        the last piece were an interim when the turn was committed.
        """
        for key, between in _KEYS:
            pieces = [key(piece.text) for piece in self._finals]
            whole = key(text)
            rest: tuple[int, int, str] | None = None
            for start in range(len(pieces)):
                grown = ""
                for end in range(start, len(pieces)):
                    grown = f"{grown}{between}{pieces[end]}" if grown else pieces[end]
                    if whole and grown == whole:
                        return start, end + 1, ""
                    if not whole.startswith(grown):
                        break
                else:
                    behind = whole[len(grown) :]
                    if rest is None and grown and _bare(behind) == _bare(self._interim):
                        rest = start, len(pieces), _bare(behind)
            if rest is not None:
                return rest
        return None


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _bare(text: str) -> str:
    """Return a text without case and punctuation, in which recognisers change their mind."""
    return "".join(character for character in text.casefold() if character.isalnum())


_KEYS: Final[tuple[tuple[Callable[[str], str], str], ...]] = ((_spaced, " "), (_bare, ""))
