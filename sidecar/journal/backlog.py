"""What Letta has not digested, in figures."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Backlog:
    """What Letta has not digested.

    Attributes:
        undelivered: Turns that are neither settled nor dead.
        dead_batches: Batches that were given up.
        oldest_undelivered_s: Unix time at which the oldest undelivered turn was appended.
    """

    undelivered: int
    dead_batches: int
    oldest_undelivered_s: float | None


class Undelivered(Protocol):
    """Counts what is undelivered."""

    async def backlog(self) -> Backlog:
        """Return what is undelivered; costs no more in a journal that holds years of calls."""
        ...
