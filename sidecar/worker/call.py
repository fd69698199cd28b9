"""One live call on the worker's end of the link: what the voice's own code holds."""

from collections.abc import Callable
from typing import Final, Protocol

import anyio

from sidecar.model import Utterance
from sidecar.prompt_wait import PromptWait, Waits
from sidecar.wire.bounds import bounded_hints
from sidecar.wire.frames import Hints, Memory
from sidecar.wire.spool import SpoolFile
from sidecar.worker.unacked import Unacked

__all__ = ["LinkedCall"]

ANSWER_S: Final = 1.0
"""How long a worker waits for the word whether its call goes on, before it greets the caller."""


class Line(Protocol):
    """What a call needs from its link."""

    waits: Waits

    @property
    def connected(self) -> bool:
        """Whether the sidecar has welcomed this connection."""
        ...

    @property
    def away(self) -> bool:
        """Whether the sidecar is known to be out of reach."""
        ...

    def clock(self) -> float:
        """Unix time by the sidecar's clock, as far as it is known."""
        ...

    def take(self, call: "LinkedCall", said: Utterance) -> None:
        """Queue one utterance of a call."""
        ...

    def wake(self) -> None:
        """Wake the tasks that send frames and write to disk."""
        ...


class LinkedCall:
    """One live call, made by `Link.open_call`; every method but the three waits returns at once.

    Attributes:
        memory: The newest memory of this call, None until the first arrives; read it at each
            prompt.
        guidance: Called with text for the voice agent to follow; set it, or leave it None.
        say: Called with text for the voice agent to speak now; optional, as `guidance`.
        hang_up: Called when the call has to end; optional, as `guidance`.
    """

    def __init__(self, link: Line, unacked: Unacked) -> None:
        self.memory: Memory | None = None
        self.guidance: Callable[[str], None] | None = None
        self.say: Callable[[str], None] | None = None
        self.hang_up: Callable[[], None] | None = None
        self.unacked = unacked
        self.spool: SpoolFile | None = None
        self._link = link
        self._wait = PromptWait()
        if unacked.identified:
            self._wait.opened()

    @property
    def call_id(self) -> str:
        """The call's id on the link."""
        return self.unacked.call_id

    @property
    def now_s(self) -> float:
        """Unix time by the sidecar's clock, as `Memory.read_at_s`; our own until that is known."""
        return self._link.clock()

    @property
    def identified(self) -> bool:
        """Whether it is known who is on the line."""
        return self.unacked.identified

    def identify(self, hints: Hints) -> None:
        """Say who is on the line, if `open_call` did not; only the first answer counts."""
        if not self.unacked.identified:
            self.unacked.identify(bounded_hints(hints))
            self._wait.opened()
            self._link.wake()

    def speech_started(self, *, traceparent: str = "") -> None:
        """The caller began to speak: the sidecar reads the memory now, ahead of the prompt.

        Args:
            traceparent: The span of the speech (W3C Trace Context), or empty.
        """
        self.unacked.speech_started(traceparent=traceparent)
        if self._link.connected and self.unacked.identified:
            self._wait.read_began()
        self._link.wake()

    def record(self, said: Utterance) -> None:
        """Take one finished utterance; the same `item_id` again changes nothing.

        Promises: it reaches the sidecar in the order of these calls, or it is in the spool half a
        second later (at once while the sidecar is known to be away). Promises neither if this
        process is killed before that.
        """
        self._link.take(self, said)

    def close(self, reason: str = "") -> None:
        """End the call. Only the first close counts."""
        self.unacked.close(at_s=self.now_s, reason=reason, now_s=anyio.current_time())
        self._link.wake()

    async def ready(self, budget_s: float | None = None) -> None:
        """Wait until the memory is as new as the prompt may wait for.

        See `sidecar.prompt_wait`. A read counts as begun when the caller starts to speak; the
        waits are those that the sidecar sends in `welcome`.

        Args:
            budget_s: Return after this many seconds in any case; None: no such limit.
        """
        with anyio.move_on_after(budget_s):
            await self._wait.over(self._link.waits)

    async def goes_on(self, budget_s: float = ANSWER_S) -> bool:
        """Return whether the caller has been spoken with in this call before: do not greet again.

        That is so where a job takes the place of one whose worker was lost, or joins it. Waits for
        the sidecar's first answer, not for Letta, and also while the link is down: whatever took
        the first worker may have cut that for a moment. False if it is not known by then.

        Args:
            budget_s: Seconds to wait at most.
        """
        with anyio.move_on_after(budget_s):
            while self.memory is None:
                await self._wait.change()
        return self.memory is not None and self.memory.continues

    async def flushed(self, budget_s: float) -> bool:
        """Wait until every turn and the end of the call are acked, and return whether they are.

        Returns early once the sidecar is known to be away and everything unacked is in the spool,
        since no ack would come. Returns as well when `budget_s` is over: what is unacked then is
        in the spool by the end of `Link.run`.
        """
        with anyio.move_on_after(budget_s):
            while not self.unacked.all_acked and not (self._link.away and self.unacked.durable):
                await self._wait.change()
        return self.unacked.all_acked

    # Called by the link

    def take_memory(self, memory: Memory) -> None:
        """A `memory` frame came."""
        self.memory = memory
        self._wait.memory_came(empty=not memory.text, newest=memory.newest)

    def link_lost(self) -> None:
        """No read is in flight any more."""
        self._wait.read_lost()

    def changed(self) -> None:
        """Let every waiting `ready` and `flushed` check again."""
        self._wait.changed()
