"""What a replica needs of the others: which calls are live there, and a way to command them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sidecar.model import Command


@dataclass(frozen=True, slots=True)
class Commanded:
    """A command into a live call.

    Attributes:
        call: The key of the call.
        command: What to do. `supersede`: the call asked for a further reply, so that earlier ones
            are not wanted any more.
        text: The guidance, or the words to say; empty for a hang-up. What the further reply is to.
        n: Of several commands, that of the later one is higher; 0 for one that is not stored.
    """

    call: str
    command: Command | Literal["supersede"]
    text: str
    n: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Model tokens that were used.

    Attributes:
        tenants: By tenant, on one UTC day.
        calls: By the key of the call.
    """

    tenants: Mapping[str, int]
    calls: Mapping[str, int]


class Elsewhere(Protocol):
    """The other replicas on one journal: the calls they have, and what they use.

    Every method may raise `JournalError`; then nothing was stored or taken.
    """

    async def live_elsewhere(self) -> Mapping[str, str]:
        """Return the calls that are live at other replicas that are there.

        Returns:
            The key of each by each key that it was opened by first or last.
        """
        ...

    async def pass_on(self, commanded: Commanded) -> int:
        """Store a command for the other replicas.

        Guidance is for every replica that has the call, now or later, until the call is closed:
        the requests of one VAPI call reach several. `supersede` is for every one that has it now.
        Words to say and a hang-up are for the one at which the call is stored.

        Promises: `passed_on` gives it to each of them, once. Does not promise that one looks: a
        replica may die before. Words and a hang-up are dropped after a minute, `supersede` after
        seconds. The text is stored as it was asked, until it is taken or the call is closed.

        Returns:
            Its `n`; 0 if no other replica can get it, and nothing was stored.
        """
        ...

    async def passed_on(
        self, *, after: int, opened: Sequence[str], live: Collection[str]
    ) -> list[Commanded]:
        """Return what was passed on, in the order in which it was stored.

        Args:
            after: Guidance up to this `n` has been seen, except for the calls in `opened`.
            opened: The keys of stored calls that this replica has only had since then.
            live: The keys of all calls that are live here.

        Returns:
            New guidance and `supersede` for any open call, also what this replica stored itself,
            and words and hang-ups for calls that are stored and live here. These are taken: no
            further `passed_on` returns them.
        """
        ...

    async def replicas(self) -> int:
        """Return how many replicas are there, with this one."""
        ...

    async def use(self, usage: Usage, *, day: int) -> Usage:
        """Add to what all replicas have used, also before a restart.

        Args:
            usage: By this replica since it was added last.
            day: Of the tenants' tokens, a number since 1970.

        Returns:
            The totals of all tenants on that day, and of those calls that are stored.
        """
        ...
