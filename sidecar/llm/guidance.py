"""What the owner asks a voice agent to follow in one call, bounded and without repeats. Pure."""

from typing import Final

GUIDANCE_CHARS: Final = 2_000
"""Limit of all guidance in a prompt, in characters."""
GUIDANCE_PIECES: Final = 20
"""Limit of all guidance in a prompt, in pieces."""
_PREFACE: Final = "Guidance for this call. Follow it; do not read it out."


class CallGuidance:
    """The guidance of one call, from the first piece until the call ends.

    Both ends of the link keep it by the same rule: a worker for its calls, the sidecar for every
    call. To make room for newer guidance, the oldest is dropped first.

    Attributes:
        pieces: Oldest first; at most `GUIDANCE_PIECES`, of `GUIDANCE_CHARS` together, no two the
            same.
        text: The guidance as in each prompt, the same bytes until a piece is added; empty if there
            is none.
    """

    def __init__(self) -> None:
        self.pieces: tuple[str, ...] = ()
        self.text = ""

    def add(self, text: str) -> int:
        """Add one piece; return how many characters, of old and new, no prompt holds from now on.

        A piece that is there already, or blank, is ignored. A piece longer than `GUIDANCE_CHARS`
        loses its end.
        """
        piece = text.strip()
        cut_chars = max(0, len(piece) - GUIDANCE_CHARS)
        piece = piece[:GUIDANCE_CHARS]
        if not piece or piece in self.pieces:
            return 0
        pieces = [*self.pieces, piece]
        while len(pieces) > GUIDANCE_PIECES or sum(map(len, pieces)) > GUIDANCE_CHARS:
            cut_chars += len(pieces.pop(0))
        self.pieces = tuple(pieces)
        self.text = "\n".join([_PREFACE, *(f"- {one}" for one in pieces)])
        return cut_chars
