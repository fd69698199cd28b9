"""What a replica needs of the others: which calls are live there, and a way to command them."""

from dataclasses import dataclass
from typing import Protocol

from sidecar.model import Command


@dataclass(frozen=True, slots=True)
class Commanded:
    """A command into a live call.

    Attributes:
        call: The key of the call.
        command: What to do.
        text: The guidance, or the words to say; empty for a hang-up.
    """

    call: str
    command: Command
    text: str


class Elsewhere(Protocol):
    """The live calls of the other replicas on one journal; none where there is one replica.

    Every method may raise `JournalError`; then nothing was stored or taken.
    """

    async def live_elsewhere(self) -> list[str]:
        """Return the keys of the calls that are live at other replicas that are there."""
        ...

    async def pass_on(self, commanded: Commanded) -> bool:
        """Store a command for the replica that has a call; False: no other has it any more.

        Promises: that replica gets it from `passed_on`, once, if the call is still live when it
        looks. Does not promise that it looks: it may die before, and a command that nobody took
        within a minute is dropped.
        """
        ...

    async def passed_on(self) -> list[Commanded]:
        """Take the commands for calls of this replica, in the order in which they were stored."""
        ...
