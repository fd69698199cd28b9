"""One live call, as a channel holds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.llm.guidance import CallGuidance
from sidecar.memory.prompt import NOTHING, RenderedMemory
from sidecar.memory.snapshots import Held
from sidecar.model import Call, Served, Snapshot, Turn
from sidecar.prompt_wait import PromptWait, Waits


@dataclass(frozen=True, slots=True)
class MemoryView:
    """What goes into the next prompt of a call, and how it was had.

    Attributes:
        text: The fenced text; empty when there is nothing to put in.
        version: Changes when `text` changes.
        read_at_s: Unix time of the read it stands on, 0 when there is none.
        served: `fresh`, `stale`, `disk` (no read of this process has confirmed it) or `none`.
    """

    text: str
    version: str
    read_at_s: float
    served: Served


class Listener(Protocol):
    """The channel's ear on one call. Its methods return at once and never raise."""

    def on_memory(self, view: MemoryView, *, settled: bool) -> None:
        """Newer memory. `settled`: no newer one is on its way just now."""
        ...

    def on_guidance(self, text: str) -> None:
        """There is more guidance: the next prompt holds `LiveCall.guidance`."""
        ...

    def on_say(self, text: str) -> None:
        """Something for the voice agent to say now, as it stands."""
        ...

    def on_hang_up(self) -> None:
        """The call is to end now."""
        ...


class Keeper(Protocol):
    """Keeps what is said in a call."""

    async def record(self, live: "LiveCall", turns: Sequence[Turn]) -> None:
        """Make turns durable."""
        ...

    async def close(self, live: "LiveCall", reason: str, *, at_s: float, final: bool) -> None:
        """End the call."""
        ...

    async def refuse(self, live: "LiveCall") -> None:
        """Keep nothing more of the call."""
        ...

    def guided(self, live: "LiveCall", *, chars: int, cut_chars: int) -> None:
        """Say that guidance came, and how much of it and of older guidance was left out."""
        ...


class Feed(Protocol):
    """Brings a call its memory. Nothing here waits."""

    def held(self, live: "LiveCall") -> Held | None:
        """Return the snapshot at hand."""
        ...

    def render(self, live: "LiveCall", held: Held | None) -> RenderedMemory:
        """Render what is at hand."""
        ...

    def view(self, held: Held | None, rendered: RenderedMemory) -> MemoryView:
        """Say how a rendered memory was had."""
        ...

    def refresh(self, live: "LiveCall", *, traceparent: str) -> None:
        """Start a read for this span; the listener is told when it has ended."""
        ...


class LiveCall:
    """One call while a channel holds it. Made by `sidecar.calls.Calls.open`."""

    def __init__(
        self, keeper: Keeper, feed: Feed, call: Call, *, owner: str, listener: Listener
    ) -> None:
        self._keeper = keeper
        self._feed = feed
        self.call = call
        self.owner = owner
        self.listener = listener
        self.guidance = CallGuidance()
        """Of this call, until it ends; a channel that writes prompts puts its text into each."""
        self.agent_id: str | None = None
        self.recent: tuple[Turn, ...] = ()
        self.heard: tuple[str, str] | None = None
        """The room and the caller that other calls may hear, too."""
        self.elsewhere = False
        """Another kept its record when it opened: without a turn of its own it is not stored."""
        self.stored = False
        self.traceparent = ""
        """The span that what happens in this call belongs to, where nothing else is said."""
        self.kept = True
        """False: the caller did not agree; nothing of the call reaches the journal."""
        self.closed = False
        self.bringing = False
        """Its first memory is on its way."""
        self.unfound = False
        """Letta was asked for its agent, and has not answered yet as a Letta does."""
        self.looks = 0
        """Looks for newer memory that are under way."""
        self.last_seq = 0
        self.turns = 0
        self.told_version: str | None = None
        self.wait = PromptWait()
        self._rendered: RenderedMemory = NOTHING
        self._rendered_from: tuple[str, tuple[Turn, ...]] = ("", ())

    @property
    def key(self) -> str:
        """Key of the call."""
        return self.call.key

    @property
    def snapshot(self) -> Snapshot | None:
        """The agent's blocks as they are at hand; for people to look at."""
        held = self._feed.held(self)
        return held.snapshot if held else None

    @property
    def memory(self) -> MemoryView:
        """What goes into the next prompt, from what is at hand; never waits."""
        held = self._feed.held(self)
        source = (held.snapshot.version if held else "", self.recent)
        if source != self._rendered_from:
            self._rendered = self._feed.render(self, held)
            self._rendered_from = source
        return self._feed.view(held, self._rendered)

    async def ready(self, waits: Waits) -> float:
        """Return when `memory` is as new as a prompt may wait for, and the seconds waited.

        See `sidecar.prompt_wait`. Never longer than `waits`; at once when memory is at hand and no
        read is under way.
        """
        return await self.wait.over(waits)

    def speech_started(self, *, traceparent: str = "") -> None:
        """The caller began to speak: read the memory now, so that it is here at the prompt.

        Args:
            traceparent: The span of the speech, where the channel has one.
        """
        self._feed.refresh(self, traceparent=traceparent or self.traceparent)

    async def record(self, turns: Sequence[Turn]) -> None:
        """Make turns of this call durable; on return they survive any crash.

        Raises:
            JournalFull: nothing of `turns` was stored; they may be recorded again.
            JournalError: the journal failed otherwise.
        """
        await self._keeper.record(self, turns)

    async def close(self, reason: str, *, at_s: float = 0.0, final: bool = False) -> None:
        """The call has ended: what is pending of it goes to Letta. Repeating it is no error.

        Args:
            reason: Why, for people.
            at_s: Unix time until which it was heard; 0 where nobody else hears it.
            final: The channel has had the last word on it; see `sidecar.model.Call`.
        """
        await self._keeper.close(self, reason, at_s=at_s, final=final)

    async def refuse(self) -> None:
        """The caller does not agree, or no more: nothing of the call is kept from here on.

        What was stored before stays until retention or `sidecar forget`, marked as refused.
        """
        await self._keeper.refuse(self)

    def guide(self, text: str) -> None:
        """Have the voice agent follow `text` from its next prompt on, until the call ends.

        Bounded, and without repeats: see `sidecar.llm.guidance`. Does not promise that a model
        follows it.
        """
        before = self.guidance.text
        cut_chars = self.guidance.add(text)
        self._keeper.guided(self, chars=len(text), cut_chars=cut_chars)
        if self.guidance.text != before:
            self.listener.on_guidance(text)

    def say(self, text: str) -> None:
        """Have the voice agent say `text`. What the caller heard of it comes back as a turn."""
        self.listener.on_say(text)

    def hang_up(self) -> None:
        """Have the channel end the call; its last words are recorded as at any end."""
        self.listener.on_hang_up()
