"""What Letta has not digested, in figures."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Backlog:
    """What Letta has not digested.

    Attributes:
        undelivered: Turns that are neither digested by Letta nor given up.
        dead_batches: Batches that were given up.
        oldest_undelivered_s: Unix time at which the oldest undelivered turn was appended.
    """

    undelivered: int
    dead_batches: int
    oldest_undelivered_s: float | None


class Undelivered(Protocol):
    """Counts what is undelivered."""

    async def backlog(self) -> Backlog:
        """Return what is undelivered; the cost does not grow with the calls that are stored."""
        ...
