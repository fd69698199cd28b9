"""One VAPI call: its memory before each prompt, its transcript from each history, its budget.

Nothing that is streamed is stored. `take` stores what a history has settled, `report` the whole
call, `give_up` the last history when no report came.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import anyio

from sidecar import telemetry
from sidecar.calls import LiveCall, MemoryView
from sidecar.channels.vapi.apart import MESSAGE, apart, cost_of
from sidecar.channels.vapi.callers import Names
from sidecar.channels.vapi.history import (
    UNCONFIRMED_NOTE,
    Block,
    annotate,
    goes_on,
    open_from,
    slot_of,
    with_words,
)
from sidecar.channels.vapi.projection import Plan, Reach, plan, transcript_of
from sidecar.model import Command, Turn
from sidecar.prompt_wait import Waits
from sidecar.telemetry import Emit
from sidecar.transcript.journal import Journal

_SLOTS_KEPT = 400
_HEARD_KEPT = 50
_LEFT_KEPT = 20
_PLANS = 4
_RECORDED_AT_ONCE = 200
"""Each turn that is recorded costs the loop about a twentieth of a millisecond."""


@dataclass(slots=True)
class _Stream:
    slot: int
    asked: str
    scope: anyio.CancelScope


@dataclass(slots=True)
class ToolRun:
    """A tool that was run for the call, or is.

    Attributes:
        done: Set once there is a result.
        result: As it was answered.
    """

    done: anyio.Event = field(default_factory=anyio.Event)
    result: dict[str, Any] = field(default_factory=dict[str, Any])


class VapiCall:
    """Made by `VapiCalls.of`; the listener of its `LiveCall`.

    Args:
        journal: Where the turns are.
        waits: For memory.
        command: Sends a command into the call; returns at once.
        redact: What the journal does to words, so that what is stored can be told from it.
        emit: Where events go.
        clock: Unix time in seconds.

    Attributes:
        live: The call as every channel has it.
        names: Who is on the line, as its bodies have it.
        disputed: Bodies named different callers: nobody's memory goes out any more.
        control_url: Where VAPI takes commands for this call, checked; empty where unknown. A
            secret.
        tokens: Model tokens used so far.
        tool_runs: By VAPI's id, each run once.
        last_s: Unix time of the last body.
        ended_s: Unix time at which VAPI said that the call ended, or None.
        voicemail: VAPI said that a machine answered.
        finished: The transcript has its last word.
        unsure: The journal could not say yet whether the call was finished before.
    """

    live: LiveCall

    def __init__(
        self,
        journal: Journal,
        *,
        waits: Waits,
        command: Callable[["VapiCall", Command, str], None],
        redact: Callable[[str], str] | None,
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        self.names = Names()
        self.disputed = False
        self.control_url = ""
        self.tokens = 0
        self.tool_runs: dict[str, ToolRun] = {}
        self.last_s = clock()
        self.ended_s: float | None = None
        self.voicemail = False
        self.finished = False
        self.unsure = False
        self._journal = journal
        self._waits = waits
        self._command = command
        self._redact = redact
        self._emit = emit
        self._clock = clock
        self._lock = anyio.Lock()
        self._stored: list[Turn] | None = None
        self._sealed = 0
        self._stamp_ms = 0.0
        self._last: tuple[Block, ...] = ()
        self._left: list[tuple[Block, ...]] = []
        self._settled: tuple[Block, ...] = ()
        self._heard: list[tuple[float, Block]] = []
        self._generated: dict[int, str] = {}
        self._cut_slots: set[int] = set()
        self._fallbacks: list[str] = []
        self._streams: list[_Stream] = []

    # What the listener of a call hears ---------------------------------------------------------

    def on_memory(self, view: MemoryView, *, settled: bool) -> None:
        """See `sidecar.calls.Listener`. Memory is read at the prompt."""

    def on_guidance(self, text: str) -> None:
        """See `sidecar.calls.Listener`."""
        self._command(self, "guide", text)

    def on_say(self, text: str) -> None:
        """See `sidecar.calls.Listener`."""
        self._command(self, "say", text)

    def on_hang_up(self) -> None:
        """See `sidecar.calls.Listener`."""
        self._command(self, "hang-up", "")

    # Before the prompt -------------------------------------------------------------------------

    def speech_started(self) -> None:
        """The caller began to speak: read the memory now."""
        self.live.speech_started()

    async def memory(self) -> MemoryView:
        """Return what goes into the next prompt; waits as `sidecar.prompt_wait` says."""
        wait_s = await self.live.ready(self._waits)
        view = self.live.memory
        now_s = self._clock()
        self._emit(
            telemetry.prompt_served,
            call=self.live.key,
            version=view.version,
            age_s=now_s - view.read_at_s if view.read_at_s else None,
            served=view.served,
            wait_s=wait_s,
        )
        return view

    # While a reply is written ------------------------------------------------------------------

    def begin(self, slot: int, asked: str, scope: anyio.CancelScope) -> object:
        """A reply is being asked for; cancels those that it supersedes.

        Args:
            slot: Which turn the history asks about.
            asked: The words it asks about. The same words again are a repeat: both go on, as
                VAPI may listen to either.
            scope: Cancelled when a newer history makes the reply pointless.

        Returns:
            What to give to `wrote`.
        """
        for older in self._streams:
            if older.slot < slot or (older.slot == slot and older.asked != asked):
                older.scope.cancel()
        stream = _Stream(slot, asked, scope)
        self._streams.append(stream)
        return stream

    def wrote(self, stream: object, text: str, *, tokens: int, follow_up: bool) -> None:
        """A reply has ended, or was cut off, with this text.

        Args:
            stream: Of `begin`.
            text: What was written, heard or not.
            tokens: What it cost.
            follow_up: It goes on after a tool: the text before it belongs to the same turn.
        """
        self.tokens += tokens
        if not isinstance(stream, _Stream):
            return
        self._streams.remove(stream)
        before = self._generated.get(stream.slot, "") if follow_up else ""
        if text or not follow_up:
            self._generated[stream.slot] = f"{before} {text}".strip()
        while len(self._generated) > _SLOTS_KEPT:
            del self._generated[min(self._generated)]

    def fell_back(self, text: str) -> None:
        """The caller was told `text` in place of a reply."""
        if text not in self._fallbacks:
            self._fallbacks.append(text)

    @property
    def speaking(self) -> bool:
        """Whether a reply is being written."""
        return bool(self._streams)

    # After the reply ---------------------------------------------------------------------------

    def interrupted(self) -> None:
        """VAPI reports that the caller cut the reply to the newest words off."""
        self._cut_slots.add(slot_of(self._last))

    def saw(self, blocks: tuple[Block, ...], *, stamp_ms: float) -> bool:
        """Take the newest history in, without storing; returns whether there may be something to.

        One older than a history seen before is no news.

        Args:
            blocks: The whole history as read.
            stamp_ms: VAPI's time of it, 0 where unknown.
        """
        if self.finished or (stamp_ms and stamp_ms < self._stamp_ms) or not blocks:
            return False
        self._stamp_ms = max(self._stamp_ms, stamp_ms)
        if not stamp_ms:
            self._heard.clear()  # by its place alone it is newer than they
        if self._last and not goes_on(self._last, blocks):
            self._left = [*self._left, self._last][-_LEFT_KEPT:]
        self._last = blocks
        return open_from(blocks) > 0 or bool(self._left)

    async def store_settled(self) -> None:
        """Store what the newest history has settled.

        Raises:
            JournalError: not stored; the next history brings it again.
        """
        async with self._lock:
            if self.finished:
                return
            await self._store_left()
            last = self._last
            settled = await apart(cost_of(last), self._news, last, self._settled)
            if settled is not None:
                await self._store(settled, reach="part")
                self._settled = settled

    async def _store_left(self) -> None:
        """Store the ends of windows that have moved on: the next ones hold them no more."""
        while self._left:
            left = self._left[0]
            annotated = await apart(cost_of(left), self._annotated, left)
            await self._store(annotated, reach="end")
            self._left = [one for one in self._left if one is not left]

    async def continues(self, blocks: Sequence[Block]) -> bool:
        """Whether a history is of this call: it shares a turn of the caller's, if any is known.

        Raises:
            JournalError: nobody knows.
        """
        stored, last = tuple(await self._turns()), self._last
        cost = cost_of(blocks) + cost_of(last) + MESSAGE * len(stored)
        return await apart(cost, self._shares_a_turn, blocks, last, stored)

    def _shares_a_turn(
        self, blocks: Sequence[Block], last: Sequence[Block], stored: Sequence[Turn]
    ) -> bool:
        seen = (*self._annotated(last), *transcript_of(stored))
        known = {block.key for block in seen if block.speaker == "caller"}
        return not known or any(block.key in known for block in self._annotated(blocks))

    async def take(self, blocks: tuple[Block, ...], *, stamp_ms: float) -> None:
        """`saw` and `store_settled` in one."""
        if self.saw(blocks, stamp_ms=stamp_ms):
            await self.store_settled()

    def heard(self, blocks: Sequence[Block], *, stamp_ms: float) -> None:
        """Words were transcribed; they count at the end, where no history has them.

        Args:
            blocks: What was said.
            stamp_ms: VAPI's time of it, 0 where unknown: it is newer than what was seen so far.
        """
        self._heard += [(stamp_ms or self._stamp_ms + 1.0, block) for block in blocks]
        del self._heard[:-_HEARD_KEPT]

    async def report(self, blocks: tuple[Block, ...]) -> None:
        """Store the whole call as VAPI's report has it. A report without words takes nothing back.

        Raises:
            JournalError: not stored; the report may be taken again.
        """
        async with self._lock:
            await self._store_left()
            if blocks:
                seen = () if self.finished else self._seen(self._last)
                cost = cost_of(blocks) + cost_of(seen)
                annotated = await apart(cost, self._annotated, blocks)
                seen = await apart(cost, self._annotated, seen)
                await self._store(annotated, reach="all", seen=seen)
            elif not self.finished:
                await self._store(await self._unreported(), reach="end")
            self.finished = True

    async def give_up(self) -> None:
        """No report came: store the end of the call as far as it was seen.

        A reply that was written and never seen in a history is stored as unconfirmed.

        Raises:
            JournalError: not stored; may be repeated.
        """
        async with self._lock:
            if not self.finished:
                await self._store_left()
                await self._store(await self._unreported(), reach="end")
                self.finished = True

    async def transcript(self) -> tuple[Block, ...]:
        """Return what was said so far, the newest history's open end included."""
        async with self._lock:
            turns = tuple(await self._turns())
            stored = await apart(MESSAGE * len(turns), transcript_of, turns)
            return (*stored, *self._last[open_from(self._last) :])

    def _seen(self, seen: tuple[Block, ...]) -> tuple[Block, ...]:
        """Return the newest history with what was transcribed after it."""
        for stamp_ms, block in self._heard:
            if stamp_ms > self._stamp_ms:
                seen = with_words(seen, block)
        return seen

    async def _unreported(self) -> tuple[Block, ...]:
        last = self._seen(self._last or self._written(0))
        if last and last[-1].speaker == "caller":
            last = (*last, *self._written(slot_of(last)))
        return await apart(cost_of(last), self._annotated, last)

    def _news(self, last: Sequence[Block], before: Sequence[Block]) -> tuple[Block, ...] | None:
        """Return what a history has settled; None for most: they repeat what one before had."""
        settled = self._annotated(last)[: open_from(last)]
        return None if settled == before else settled

    def _written(self, slot: int) -> tuple[Block, ...]:
        """Return what was written for a turn and is in no history."""
        text = " ".join(self._generated.get(slot, "").split())
        return (Block("agent", text, note=UNCONFIRMED_NOTE),) if text else ()

    def _annotated(self, blocks: Sequence[Block]) -> tuple[Block, ...]:
        """Return blocks as they are to be stored."""
        redact = self._redact
        annotated = annotate(
            blocks,
            generated=dict(self._generated),
            cut_slots=set(self._cut_slots),
            fallbacks=list(self._fallbacks),
        )
        if redact is None:
            return annotated
        return tuple(
            replace(block, text=" ".join(redact(block.text).split()) or "[redacted]")
            for block in annotated
        )

    async def _was_finished(self, reach: Reach) -> bool:
        """Whether only another last word may still change what the journal has."""
        if self.unsure:
            known = await self._journal.call(self.live.key)
            self.unsure = False
            if known is not None and known.final and reach != "all":
                self.finished = True
        return self.finished and reach != "all"

    async def _turns(self) -> list[Turn]:
        if self._stored is None:
            self._stored = list(await self._journal.turns(self.live.key))
        return self._stored

    async def _store(
        self, blocks: Sequence[Block], *, reach: Reach, seen: Sequence[Block] = ()
    ) -> None:
        if not self.live.kept or await self._was_finished(reach):
            return
        stored = await self._turns()
        cost = cost_of(blocks) + cost_of(seen) + MESSAGE * len(stored)
        for _ in range(_PLANS):
            planned = await apart(cost, self._plan, tuple(stored), blocks, reach, seen)
            if planned is None:
                return
            if planned.keep == len(stored):
                for part in _parts(planned.turns):
                    await self.live.record(part)
                    stored += part
                return
            sealed = await self._journal.rewrite(self.live.key, planned.turns, keep=planned.keep)
            if sealed <= planned.keep:
                self._emit(
                    telemetry.turns_mended,
                    call=self.live.key,
                    turns=len(planned.turns),
                    kept=planned.keep,
                )
                stored[planned.keep :] = planned.turns
                return
            self._sealed = sealed

    def _plan(
        self, stored: Sequence[Turn], blocks: Sequence[Block], reach: Reach, seen: Sequence[Block]
    ) -> Plan | None:
        planned = plan(
            stored,
            blocks,
            call=self.live.key,
            sealed=self._sealed,
            reach=reach,
            now_s=self._clock(),
            voicemail=self.voicemail,
            seen=seen,
        )
        if planned is None or planned.keep == len(stored):
            return planned  # turns that are recorded get their span there
        traceparent = self.live.traceparent
        return replace(
            planned, turns=tuple(replace(t, traceparent=traceparent) for t in planned.turns)
        )


def _parts(turns: Sequence[Turn]) -> Iterator[Sequence[Turn]]:
    return (turns[n : n + _RECORDED_AT_ONCE] for n in range(0, len(turns), _RECORDED_AT_ONCE))
