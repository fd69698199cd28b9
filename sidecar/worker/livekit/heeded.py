"""What the sidecar's owner asks an agent to heed in a call."""

from typing import Final

GUIDANCE_CHARS: Final = 2_000  # of all guidance in a prompt; older guidance makes room for newer
_GUIDANCE_PREFACE: Final = "Guidance for this call. Heed it; do not read it out."


class Heeded:
    """The guidance of a call, as it stands in each prompt: the same bytes until there is more."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.text = ""

    def heed(self, text: str) -> int:
        """Take more guidance; returns how many characters, of old and new, no prompt will hold.

        The same words again are no news. Guidance longer than `GUIDANCE_CHARS` loses its end.
        """
        piece = text.strip()
        if not piece or piece in self._pieces:
            return 0
        cut = max(0, len(piece) - GUIDANCE_CHARS)
        self._pieces.append(piece[:GUIDANCE_CHARS])
        while sum(map(len, self._pieces)) > GUIDANCE_CHARS:
            cut += len(self._pieces.pop(0))
        self.text = "\n".join([_GUIDANCE_PREFACE, *(f"- {one}" for one in self._pieces)])
        return cut
