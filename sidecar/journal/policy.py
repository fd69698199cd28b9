"""When what is pending goes to Letta, and how much of it at once. Pure.

The first two figures have no default here. They come from the settings; opening the journal with
other figures changes when pending turns are due (`sidecar.app.journal`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

GOES_ON_S: Final = 60.0
"""For this long after its worker was lost, a call goes on with the next job in its room."""


@dataclass(frozen=True, slots=True)
class PostPolicy:
    """When pending turns are sealed into a batch; any one of these suffices.

    Attributes:
        max_turns: This many turns of a call are pending.
        max_age_s: The oldest pending turn of a call was appended this long ago.
        batch_turns: No batch holds more turns than this.
        batch_chars: No batch of several turns holds more characters of text than this.

    A closed call is due at once.
    """

    max_turns: int
    max_age_s: float
    batch_turns: int = 200
    batch_chars: int = 24_000

    def due_s(self, *, pending: int, oldest_s: float, closed: bool, now_s: float) -> float | None:
        """Return the Unix time at which a call's pending turns are due, None when it has none.

        Args:
            pending: Turns of the call not yet in any batch.
            oldest_s: Unix time at which the oldest of them was appended.
            closed: The call has ended.
            now_s: Unix time.
        """
        if pending == 0:
            return None
        if closed or pending >= self.max_turns:
            return now_s
        # A clock that was ahead may have stored a time after now.
        return min(oldest_s, now_s) + self.max_age_s

    def cut(self, chars: Sequence[int]) -> int:
        """Return how many of the pending turns, given by their lengths, go into one batch."""
        total = 0
        for taken, size in enumerate(chars[: self.batch_turns]):
            total += size
            if taken and total > self.batch_chars:
                return taken
        return min(len(chars), self.batch_turns)
