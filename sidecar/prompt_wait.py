"""How long a prompt waits for its memory: one rule for the link's workers and other channels.

If the call has memory and no read is under way, a prompt does not wait. It waits for the first
read of a call, and for each read while the call has no memory, at most until `Waits.memory_s`
after the read *began*: a Letta that hangs costs nothing once the caller has spoken for longer
(ADR 4). A later read of a call that has memory only renews it: no prompt waits for that one
(ADR 10), except while the journal of this process is being asked for newer words. Before a call's
first memory a prompt waits at most until `Waits.cold_start_s` after the call opened, once.
"""

from dataclasses import dataclass

import anyio


@dataclass(frozen=True, slots=True)
class Waits:
    """What a prompt may wait for memory, in seconds.

    Attributes:
        memory_s: From the start of a read that is waited for (`SIDECAR_MEMORY_WAIT_S`).
        cold_start_s: From the opening of a call without any memory (`SIDECAR_COLD_START_S`).
    """

    memory_s: float = 0.15
    cold_start_s: float = 0.8


class PromptWait:
    """What the prompts of one call wait for. Times are of `anyio.current_time`."""

    def __init__(self) -> None:
        self._opened_at_s: float | None = None
        self._read_began_at_s: float | None = None
        self._first_read_at_s: float | None = None
        self._answered = False
        self._has_memory = False
        self._confirmed = False
        self._looking = False
        self._changed = anyio.Event()

    def opened(self) -> None:
        """It is known now whose call it is: a first memory is on its way."""
        self._opened_at_s = anyio.current_time()

    def read_began(self, *, looking: bool = False) -> None:
        """A read of this call's memory is under way; if one already was, its start still counts.

        Args:
            looking: The journal is asked for newer words as well, until `looked`.
        """
        self._looking = looking
        if self._read_began_at_s is None:
            self._read_began_at_s = anyio.current_time()
            if self._first_read_at_s is None:
                self._first_read_at_s = self._read_began_at_s

    def looked(self) -> None:
        """The journal's answer came; Letta's may still come."""
        self._looking = False
        self.changed()

    def memory_came(self, *, empty: bool, newest: bool) -> None:
        """Newer memory came.

        Args:
            empty: It has nothing to put into a prompt.
            newest: No newer one is on its way just now.
        """
        self._answered = self._answered or newest or not empty
        self._has_memory = not empty
        if newest:
            self._read_began_at_s = None
            self._confirmed = True
        self.changed()

    def read_lost(self) -> None:
        """The end of the read under way will not be reported."""
        self._read_began_at_s = None
        self.changed()

    def changed(self) -> None:
        """Let every waiting prompt check again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def change(self) -> None:
        """Return at the next `changed`."""
        await self._changed.wait()

    async def over(self, waits: Waits) -> float:
        """Wait as long as a prompt has to, and return the seconds that it waited."""
        began_s = anyio.current_time()
        while (until_s := self._until_s(waits)) > anyio.current_time():
            with anyio.move_on_at(until_s):
                await self.change()
        return anyio.current_time() - began_s

    def _until_s(self, waits: Waits) -> float:
        """Return the time until which a prompt waits; if it is in the past, there is no wait."""
        until_s = 0.0
        if not self._answered and self._opened_at_s is not None:
            until_s = self._opened_at_s + waits.cold_start_s
        if self._read_began_at_s is not None and not self._renews:
            until_s = max(until_s, self._read_began_at_s + waits.memory_s)
        return until_s

    @property
    def _renews(self) -> bool:
        """Whether the read under way can only renew memory that the call has."""
        first = not self._confirmed and self._read_began_at_s == self._first_read_at_s
        return self._has_memory and not first and not self._looking
