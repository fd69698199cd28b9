"""One live call, as a channel holds it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from sidecar.errors import CallError
from sidecar.llm.guidance import CallGuidance
from sidecar.memory.prompt import NOTHING, RenderedMemory
from sidecar.memory.snapshots import CachedSnapshot
from sidecar.model import Call, Served, Snapshot, Turn
from sidecar.prompt_wait import PromptWait, Waits


@dataclass(frozen=True, slots=True)
class MemoryView:
    """The memory for the next prompt of a call, and how old it is.

    Attributes:
        text: The fenced text; empty when there is nothing to put in.
        version: Changes when `text` changes.
        read_at_s: Unix time of the read that it is based on, 0 when there was none.
        served: `fresh`, `stale`, `disk` (no read of this process has confirmed it) or `none`.
        continues: The call was going on before its worker opened it: see `LiveCall.before`.
    """

    text: str
    version: str
    read_at_s: float
    served: Served
    continues: bool = False


def call_claimed(why: str) -> CallError:
    """Return the error of a call id that somebody else has."""
    return CallError("call_claimed", why, hint="give each call an id of its own")


class Listener(Protocol):
    """A channel's callbacks for one call. They return at once and never raise."""

    def on_memory(self, view: MemoryView, *, newest: bool) -> None:
        """Newer memory has come. `newest`: no read for still newer memory is under way."""
        ...

    def on_guidance(self, text: str) -> None:
        """New guidance has come; the next prompt must hold `LiveCall.guidance`."""
        ...

    def on_say(self, text: str) -> None:
        """The voice agent must say `text` now, word for word."""
        ...

    def on_hang_up(self) -> None:
        """The channel must end the call now."""
        ...


class Registry(Protocol):
    """Where a live call stores what is said in it: the registry of all live calls."""

    async def record(self, live: "LiveCall", turns: Sequence[Turn]) -> None:
        """Make turns durable."""
        ...

    async def close(
        self, live: "LiveCall", reason: str, *, at_s: float, final: bool, here: bool
    ) -> None:
        """End the call."""
        ...

    async def refuse(self, live: "LiveCall") -> None:
        """Store nothing more of the call."""
        ...

    async def retake(self, live: "LiveCall") -> None:
        """Take the call again in the journal, where another replica has taken it."""
        ...

    def guided(self, live: "LiveCall", *, chars: int, cut_chars: int) -> None:
        """Report new guidance, and how much of it and of older guidance was left out."""
        ...


class MemorySource(Protocol):
    """Provides a call's memory. Nothing here waits."""

    def cached(self, live: "LiveCall") -> CachedSnapshot | None:
        """Return the current snapshot."""
        ...

    def render(self, live: "LiveCall", cached: CachedSnapshot | None) -> RenderedMemory:
        """Render a snapshot and the recent turns as text."""
        ...

    def view(self, cached: CachedSnapshot | None, rendered: RenderedMemory) -> MemoryView:
        """Return a rendered memory with the time of its read and how it was served."""
        ...

    def refresh(self, live: "LiveCall", *, traceparent: str) -> None:
        """Start a read in this span; the listener is notified when it has ended."""
        ...


class LiveCall:
    """One call while a channel holds it. Made by `sidecar.calls.Calls.open`."""

    def __init__(
        self,
        registry: Registry,
        source: MemorySource,
        call: Call,
        *,
        owner: str,
        listener: Listener,
    ) -> None:
        self._registry = registry
        self._source = source
        self.key: Final = call.key
        """Key of the call as its channel names it; all its turns have it."""
        self.call = call
        """The call as stored, once it is: a successor's has the key of the call it goes on with."""
        self.opened_at_s: Final = call.opened_at_s
        self.owner = owner
        self.listener = listener
        self.guidance = CallGuidance()
        """Valid until the call ends; a channel that writes prompts puts its text into each."""
        self.agent_id: str | None = None
        self.recent: tuple[Turn, ...] = ()
        self.before = ""
        """Key of the stored call that was going on in its room when this one was opened."""
        self.so_far: tuple[Turn, ...] = ()
        """What is stored of that call from its earlier workers."""
        self.heard: tuple[str, str] | None = None
        """The room and the caller that other calls may hear, too."""
        self.elsewhere = False
        """Another call wrote its record when it opened: it is stored only if it stores a turn."""
        self.elsewhere_until_lost = False
        """That call is another sidecar's; this one goes on with it once its worker is lost."""
        self.stored = False
        self.traceparent = ""
        """The span for everything in this call that names no other span."""
        self.may_be_stored = True
        """False: the caller did not agree; nothing of the call reaches the journal."""
        self.refused_s = math.inf
        """When a call of its room was opened in which the caller said no; infinite: in none."""
        self.greeted = False
        """The caller said no in its room before: of what was said then, nothing is stored."""
        self.closed = False
        self.loading = False
        """Its first memory is being loaded."""
        self.lookup_failed = False
        """Its agent could not be looked up: Letta was unavailable or denied access."""
        self.reads = 0
        """How many reads of newer memory are under way."""
        self.last_seq = 0
        self.turns = 0
        self.notified_version: str | None = None
        self.wait = PromptWait()
        self._rendered: RenderedMemory = NOTHING
        self._rendered_from: tuple[str, tuple[Turn, ...], tuple[Turn, ...]] = ("", (), ())

    @property
    def continues(self) -> bool:
        """Whether the caller has been spoken with in this call before its worker opened it."""
        return self.greeted or bool(self.so_far)

    @property
    def snapshot(self) -> Snapshot | None:
        """The current snapshot of the agent's blocks, to show to people."""
        cached = self._source.cached(self)
        return cached.snapshot if cached else None

    @property
    def memory(self) -> MemoryView:
        """The memory for the next prompt, from the current snapshot and turns; never waits."""
        cached = self._source.cached(self)
        source = (cached.snapshot.version if cached else "", self.recent, self.so_far)
        if source != self._rendered_from:
            self._rendered = self._source.render(self, cached)
            self._rendered_from = source
        return replace(self._source.view(cached, self._rendered), continues=self.continues)

    async def ready(self, waits: Waits) -> float:
        """Wait until `memory` is as new as a prompt may wait for; return the seconds waited.

        See `sidecar.prompt_wait`. Never waits longer than `waits`; returns at once when there is
        memory and no read is under way.
        """
        return await self.wait.over(waits)

    def speech_started(self, *, traceparent: str = "") -> None:
        """The caller began to speak: read the memory now, so that it is ready for the prompt.

        Args:
            traceparent: The span of the speech, where the channel has one.
        """
        self._source.refresh(self, traceparent=traceparent or self.traceparent)

    async def record(self, turns: Sequence[Turn]) -> None:
        """Make turns of this call durable; on return they survive any crash.

        Raises:
            JournalFull: nothing of `turns` was stored; they may be recorded again.
            JournalError: the journal failed otherwise.
        """
        await self._registry.record(self, turns)

    async def close(
        self, reason: str, *, at_s: float = 0.0, final: bool = False, here: bool = False
    ) -> None:
        """End the call: its pending turns are posted to Letta. May be repeated.

        Args:
            reason: Why, for people.
            at_s: Unix time until which it was heard; 0 where no other call hears it.
            final: Only a further report may correct it from now on; see `sidecar.model.Call`.
            here: Its channel has not said that it ended: where another replica has opened it since,
                it goes on there.
        """
        await self._registry.close(self, reason, at_s=at_s, final=final, here=here)

    async def refuse(self) -> None:
        """The caller does not or no longer agree: nothing of the call is stored from now on.

        Other calls of its room go on being stored; `Calls.open` with a no refuses the whole room.
        What was stored before stays until retention or `sidecar forget`, marked as refused.
        """
        await self._registry.refuse(self)

    async def retake(self) -> None:
        """Take the call again in the journal, where another replica has taken it.

        Raises:
            JournalError: it stays the other one's; may be repeated.
        """
        await self._registry.retake(self)

    def guide(self, text: str) -> None:
        """Have the voice agent follow `text` from its next prompt on, until the call ends.

        Bounded, and without repeats: see `sidecar.llm.guidance`. Does not promise that a model
        follows it.
        """
        before = self.guidance.text
        cut_chars = self.guidance.add(text)
        self._registry.guided(self, chars=len(text), cut_chars=cut_chars)
        if self.guidance.text != before:
            self.listener.on_guidance(text)

    def say(self, text: str) -> None:
        """Have the voice agent say `text`. What the caller heard of it comes back as a turn."""
        self.listener.on_say(text)

    def hang_up(self) -> None:
        """Have the channel end the call; its last words are recorded as at any end."""
        self.listener.on_hang_up()
