"""One live call on the worker's end of the link: what the voice's own code holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import anyio

from sidecar.channels.frames import Hints, Memory
from sidecar.channels.outbox import Outbox, bounded_hints
from sidecar.channels.spool import SpoolFile
from sidecar.model import Speaker


@dataclass(frozen=True, slots=True)
class Waits:
    """What a prompt may wait, in seconds, until the sidecar's `welcome` says otherwise."""

    memory_s: float = 0.15
    cold_start_s: float = 0.8


class Line(Protocol):
    """What a call needs of the link it is on."""

    waits: Waits
    clock: Callable[[], float]

    @property
    def connected(self) -> bool:
        """Whether the sidecar has welcomed this connection."""
        ...

    def take(
        self,
        outbox: Outbox,
        item_id: str,
        speaker: Speaker,
        text: str,
        *,
        at_s: float | None,
        interrupted: bool,
        metrics: Mapping[str, float] | None,
    ) -> None:
        """Queue one turn of a call."""
        ...

    def wake(self) -> None:
        """Something is to be sent or to be put on disk."""
        ...


class LinkedCall:
    """One live call. Made by `sidecar.channels.link.Link.open_call`; every method but the two waits returns at once.

    Attributes:
        memory: The newest memory of this call, or None when none came yet: read it at the prompt.
        guidance: Called with text for the voice agent to heed; set it, or leave it None.
    """

    def __init__(self, link: Line, outbox: Outbox, *, now_s: float) -> None:
        self.memory: Memory | None = None
        self.guidance: Callable[[str], None] | None = None
        self.outbox = outbox
        self.spool: SpoolFile | None = None
        self._link = link
        self._cold_since_s = now_s
        self._asked_at_s: float | None = None
        self._changed = anyio.Event()

    @property
    def call_id(self) -> str:
        """The call's id on the link."""
        return self.outbox.call

    @property
    def identified(self) -> bool:
        """Whether it is known who is on the line."""
        return self.outbox.identified

    def identify(self, hints: Hints) -> None:
        """Say who is on the line, where `open_call` could not; the first answer stands."""
        if not self.outbox.identified:
            self.outbox.identify(bounded_hints(hints))
            self._cold_since_s = anyio.current_time()
            self._link.wake()

    def speech_started(self) -> None:
        """The caller began to speak: the sidecar reads the memory now, ahead of the prompt."""
        self.outbox.speech_started()
        if self._link.connected and self._asked_at_s is None and self.outbox.identified:
            self._asked_at_s = anyio.current_time()
        self._link.wake()

    def record(
        self,
        item_id: str,
        speaker: Speaker,
        text: str,
        *,
        at_s: float | None = None,
        interrupted: bool = False,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Take one settled turn, as heard; the same `item_id` again is the same turn.

        Promises: the turn reaches the sidecar in the order of these calls, or stands in the
        spool half a second later. Does not promise either when this process is killed before.

        Args:
            item_id: The channel's id of the utterance.
            speaker: Who spoke.
            text: What was heard; empty text is no turn.
            at_s: Unix time, by default now.
            interrupted: The other side cut it off.
            metrics: Seconds by name.
        """
        self._link.take(
            self.outbox, item_id, speaker, text, at_s=at_s, interrupted=interrupted, metrics=metrics
        )

    def close(self, reason: str = "") -> None:
        """The call has ended. The first close stands."""
        self.outbox.close(at_s=self._link.clock(), reason=reason, now_s=anyio.current_time())
        self._link.wake()

    async def ready(self, budget_s: float | None = None) -> None:
        """Return when the memory at hand is as new as the prompt may wait for.

        At once, when memory is at hand and no read is in flight. While one is: until it ends, at
        most the wait of `welcome` counted from the *start of the speech*, so a Letta that hangs
        costs nothing once the caller has spoken for longer. Before the first memory of a call:
        at most its cold start, counted from the opening of the call, once.

        Args:
            budget_s: Seconds not to be passed in any case.
        """
        with anyio.move_on_after(budget_s):
            while (until_s := self._wait_until_s()) > anyio.current_time():
                with anyio.move_on_at(until_s):
                    await self._changed.wait()

    async def flushed(self, budget_s: float) -> bool:
        """Wait until every turn and the end of the call are acked; False when `budget_s` is over.

        What is unacked then is in the spool when `Link.run` ends.
        """
        with anyio.move_on_after(budget_s):
            while not self.outbox.settled:
                await self._changed.wait()
        return self.outbox.settled

    # The link's side

    def take_memory(self, memory: Memory) -> None:
        """A `memory` frame came."""
        self.memory = memory
        if memory.settled:
            self._asked_at_s = None
        self.changed()

    def link_lost(self) -> None:
        """No read is in flight any more."""
        self._asked_at_s = None
        self.changed()

    def changed(self) -> None:
        """Let those who wait look again."""
        self._changed.set()
        self._changed = anyio.Event()

    def _wait_until_s(self) -> float:
        """Return the monotonic time until which a prompt waits; in the past: it goes."""
        waits = self._link.waits
        until_s = 0.0
        cold = self.memory is None or not (self.memory.text or self.memory.settled)
        if cold and self.outbox.identified:
            until_s = self._cold_since_s + waits.cold_start_s
        if self._asked_at_s is not None:
            until_s = max(until_s, self._asked_at_s + waits.memory_s)
        return until_s
