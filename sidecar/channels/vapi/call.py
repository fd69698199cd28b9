"""One VAPI call: its memory before each prompt, its transcript from each history, its budget.

Nothing that is streamed is stored. `take` stores the turns that a history shows to be over,
`report` the whole call, `give_up` the last history when no report came.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import anyio

from sidecar import telemetry
from sidecar.apart import MESSAGE, apart
from sidecar.calls import LiveCall, MemoryView
from sidecar.channels.vapi.alignment import fingerprint, first_words, words_of
from sidecar.channels.vapi.callers import Names
from sidecar.channels.vapi.history import (
    UNCONFIRMED_NOTE,
    Stretch,
    goes_on,
    open_from,
    slot_of,
    with_words,
)
from sidecar.channels.vapi.limits import Spent
from sidecar.channels.vapi.projection import Followed, conclude, follow
from sidecar.channels.vapi.stored import transcript_of
from sidecar.channels.vapi.windows import Sighting
from sidecar.channels.vapi.written import WrittenReplies
from sidecar.errors import CallError, TakenOver
from sidecar.journal.port import OfAllReplicas
from sidecar.model import Command, Turn
from sidecar.prompt_wait import Waits
from sidecar.telemetry import Emit
from sidecar.tools.tool import Spawn, ToolRuns

_HEARD_LIMIT = 50
_WAITING_LIMIT = 50
_FINALS_LIMIT = 400
_RECORDED_AT_ONCE = 200
"""Each turn that is recorded costs the loop about a twentieth of a millisecond."""
_SAYS_ON_CHARS = 2_000
"""How much of the caller's last words is compared with newer ones, to see whether they go on."""


class VapiCall:
    """Made by `VapiCalls.of`; the listener of its `LiveCall`.

    Args:
        journal: Where the turns are.
        waits: For memory.
        command: Sends a command into the call; returns at once.
        spawn: Starts what nobody waits for.
        redact: How the journal redacts words; applied here first, so that histories can be compared
            with what is stored.
        emit: Where events go.
        clock: Unix time in seconds.

    Attributes:
        live: The call as every channel has it.
        names: Who is on the line, as its bodies have it.
        disputed: Bodies named different callers: no memory is sent any more.
        control_url: Where VAPI takes commands for this call, checked; empty where unknown. A
            secret.
        spent: Model tokens used so far.
        tool_runs: By VAPI's id.
        written: Its replies as they were written.
        last_s: Unix time of the last body.
        ended_s: Unix time at which VAPI said that the call ended, or None.
        voicemail: VAPI said that a machine answered.
        finished: The transcript is complete; only another report may change it.
        unsure: The journal could not say yet whether the call was finished before.
    """

    live: LiveCall

    def __init__(
        self,
        journal: OfAllReplicas,
        *,
        waits: Waits,
        command: Callable[["VapiCall", Command, str], None],
        spawn: Spawn,
        redact: Callable[[str], str] | None,
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        self.names = Names()
        self.disputed = False
        self.control_url = ""
        self.spent = Spent()
        self.tool_runs = ToolRuns(journal, clock=clock, spawn=spawn)
        self.written = WrittenReplies()
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
        self._last: tuple[Stretch, ...] = ()
        self._waiting: deque[Sighting] = deque(maxlen=_WAITING_LIMIT)
        self._over: tuple[Stretch, ...] = ()
        self._prompted = False
        self._followed = Followed(None)
        self._finals: Counter[str] = Counter()
        self._heard: list[tuple[float, Stretch]] = []

    # What the listener of a call hears ---------------------------------------------------------

    def on_memory(self, view: MemoryView, *, newest: bool) -> None:
        """See `sidecar.calls.Listener`. Memory is read at the prompt."""

    def on_guidance(self, text: str) -> None:
        """See `sidecar.calls.Listener`. Prompts that pass through here hold it anyway."""
        if not self._prompted:
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

    async def ready(self) -> float:
        """Wait for the memory as `sidecar.prompt_wait` says; return the seconds waited."""
        return await self.live.ready(self._waits)

    async def memory(self) -> MemoryView:
        """Return what goes into the next prompt, once it is `ready`."""
        self._prompted = True
        wait_s = await self.ready()
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

    # After the reply ---------------------------------------------------------------------------

    def interrupted(self) -> None:
        """VAPI reports that the caller interrupted the reply to the newest words."""
        self.written.interrupted(slot_of(self._last))

    def saw(self, stretches: tuple[Stretch, ...], *, stamp_ms: float, asked: bool = True) -> bool:
        """Queue the newest history without storing it.

        A history that is older than one seen before is ignored.

        Args:
            stretches: The whole history as read.
            stamp_ms: VAPI's time of it, 0 where unknown.
            asked: It asks for a reply, so it is newer than the replies that have been sent.

        Returns:
            Whether there may be something to store.
        """
        if self.finished or (stamp_ms and stamp_ms < self._stamp_ms) or not stretches:
            return False
        again = bool(stamp_ms) and stamp_ms == self._stamp_ms
        self._stamp_ms = max(self._stamp_ms, stamp_ms)
        if not stamp_ms:  # without a time it counts as newer than all transcripts so far
            self._heard = [(0.0, stretch) for _, stretch in self._heard]
        answered = asked and bool(self.written.answer)
        astray = answered and not stamp_ms and not _has_answer(stretches, self.written.answer)
        shown = Sighting(
            stretches,
            asked=asked and not astray,
            fresh=answered and not astray and not again,
            late=not stamp_ms,
            astray=astray,
            heard=self._heard_times(stretches),
        )
        if asked and not astray:
            self.written.answer = ""
        if self._waiting and not self._followed.windowed and not shown.fresh:
            newest = self._waiting[-1]
            if goes_on(newest.stretches, stretches) and _says_on(newest.stretches, stretches):
                self._waiting.pop()
                shown = replace(shown, fresh=newest.fresh, asked=asked or newest.asked)
        self._waiting.append(shown)
        self._last = stretches
        return open_from(stretches) > 0 or len(self._waiting) > 1 or bool(self._followed.tail)

    def _heard_times(self, stretches: Sequence[Stretch]) -> int:
        if not self._finals or stretches[-1].speaker != "caller":
            return 0
        return self._finals[fingerprint(stretches[-1].text)]

    async def store_turns(self) -> None:
        """Store the turns that the histories so far show to be over.

        Raises:
            JournalError: not stored; the next history brings it again.
        """
        async with self._lock:
            await self._follow_all()

    async def _follow_all(self) -> None:
        while self._waiting and not await self._was_finished():
            shown = self._waiting[0]
            await self._follow(shown)
            if self._waiting and self._waiting[0] is shown:
                self._waiting.popleft()

    async def _follow(self, shown: Sighting) -> None:
        cost = _cost_of(shown.stretches)
        stretches = await apart(cost, self._annotated, shown.stretches)
        over = stretches[: open_from(stretches)]
        before = self._followed
        if over and over == self._over and not before.windowed:
            asked_at = len(over) if shown.asked else before.asked_at
            self._followed = replace(before, tail=stretches[len(over) :], asked_at=asked_at)
            return  # most histories end here: they repeat the turns of an earlier one
        shown = replace(shown, stretches=stretches)
        is_final = any(
            one.speaker == "caller" and bool(self._finals[fingerprint(one.text)])
            for one in before.tail
        )

        def following(stored: Sequence[Turn]) -> Followed:
            return follow(
                stored,
                before,
                shown,
                key=self.live.key,
                sealed=self._sealed,
                now_s=self._clock(),
                is_final=is_final,
            )

        followed = await self._store(cost, following)
        if followed is not None:
            self._followed = followed
            self._over = () if followed.windowed else over

    async def continues(self, stretches: Sequence[Stretch]) -> bool:
        """Whether a history is of this call: it shares a turn of the caller's, if any is known.

        Raises:
            JournalError: the stored turns could not be read, so it is unknown.
        """
        stored, last = tuple(await self._turns()), self._last
        cost = _cost_of(stretches) + _cost_of(last) + MESSAGE * len(stored)
        return await apart(cost, self._shares_a_turn, stretches, last, stored)

    def _shares_a_turn(
        self, stretches: Sequence[Stretch], last: Sequence[Stretch], stored: Sequence[Turn]
    ) -> bool:
        seen = (*self._annotated(last), *transcript_of(stored))
        known = {stretch.key for stretch in seen if stretch.speaker == "caller"}
        return not known or any(stretch.key in known for stretch in self._annotated(stretches))

    async def take(self, stretches: tuple[Stretch, ...], *, stamp_ms: float) -> None:
        """Do `saw` and `store_turns` for a history that asks for no reply."""
        if self.saw(stretches, stamp_ms=stamp_ms, asked=False):
            await self.store_turns()

    def heard(self, stretches: Sequence[Stretch], *, stamp_ms: float) -> None:
        """Note final transcripts; those that no history holds are used when the call ends.

        Args:
            stretches: What was said, one utterance each.
            stamp_ms: VAPI's time of it, 0 where unknown: then it counts as newer than all
                histories so far.
        """
        for stretch in stretches:
            heard = (stamp_ms or self._stamp_ms + 1.0, stretch)
            if stamp_ms and heard in self._heard:
                continue  # delivered again
            self._heard.append(heard)
            if stretch.speaker == "caller" and len(self._finals) < _FINALS_LIMIT:
                self._finals[fingerprint(stretch.text)] += 1
        self._heard.sort(key=lambda one: one[0])  # they are delivered in any order
        del self._heard[:-_HEARD_LIMIT]

    async def report(self, stretches: tuple[Stretch, ...]) -> None:
        """Store the whole call as VAPI's report has it. A report without words removes nothing.

        Raises:
            JournalError: not stored; the report may be taken again.
        """
        async with self._lock:
            await self._follow_all()
            if stretches or not self.finished:
                tail = () if self.finished else self._ended(unconfirmed=not stretches)
                await self._conclude(stretches, tail)
            self.finished = True

    async def give_up(self) -> None:
        """No report came: store the end of the call as far as it was seen.

        A reply that was written and never seen in a history is stored as unconfirmed.

        Raises:
            JournalError: not stored; may be repeated.
        """
        async with self._lock:
            if not self.finished:
                self.unsure = True  # another replica may have had the report
                await self._follow_all()
                if not await self._was_finished():
                    await self._conclude((), self._ended(unconfirmed=True))
                self.finished = True

    async def _conclude(self, report: Sequence[Stretch], tail: Sequence[Stretch]) -> None:
        cost = _cost_of(report)
        stretches = await apart(cost, self._annotated, report)

        def concluding(stored: Sequence[Turn]) -> Followed:
            planned = conclude(
                stored,
                tail,
                stretches,
                key=self.live.key,
                sealed=self._sealed,
                now_s=self._clock(),
                voicemail=self.voicemail,
            )
            return Followed(planned, windowed=self._followed.windowed)

        followed = await self._store(cost, concluding)
        self._followed = followed or self._followed

    async def transcript(self) -> tuple[Stretch, ...]:
        """Return what was said so far, the newest history's open end included."""
        async with self._lock:
            turns = tuple(await self._turns())
            stored = await apart(MESSAGE * len(turns), transcript_of, turns)
            return (*stored, *self._last[open_from(self._last) :])

    def _ended(self, *, unconfirmed: bool) -> tuple[Stretch, ...]:
        """Return the call's end after its stored turns, with transcripts that came since."""
        written = () if self._last else self._written(0)
        tail = (*self._followed.tail, *written)
        before = next((b for at, b in reversed(self._heard) if at <= self._stamp_ms), None)
        heard = [stretch for at, stretch in self._heard if at > self._stamp_ms]
        late = [one for stretch in heard for one in self._annotated((stretch,))]
        ended = with_words(tail, late, before=before)
        if unconfirmed and ended and ended[-1].speaker == "caller":
            slot = slot_of(self._last) + slot_of(ended) - slot_of(tail)
            ended = (*ended, *self._written(slot))
        return ended

    def _written(self, slot: int) -> tuple[Stretch, ...]:
        """Return the reply that was written for a turn and is in no history."""
        text = self.written.text_of(slot)
        return self._annotated((Stretch("agent", text, note=UNCONFIRMED_NOTE),)) if text else ()

    def _annotated(self, stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
        """Return stretches as they are to be stored."""
        redact = self._redact
        annotated = self.written.annotate(stretches)
        if redact is None:
            return annotated
        return tuple(
            replace(stretch, text=" ".join(redact(stretch.text).split()) or "[redacted]")
            for stretch in annotated
        )

    async def _was_finished(self) -> bool:
        """Whether the call was concluded: only another report may change what the journal has."""
        if self.unsure:
            known = await self._journal.call(self.live.key)
            self.unsure = False
            self.finished = self.finished or (known is not None and known.final)
        return self.finished

    async def _turns(self) -> list[Turn]:
        if self._stored is None:
            self._stored = list(await self._journal.turns(self.live.key))
        return self._stored

    async def _store(self, cost: int, job: Callable[[Sequence[Turn]], Followed]) -> Followed | None:
        """Run a job on the stored turns and store what it plans; None where nothing is kept."""
        if not self.live.may_be_stored:
            return None
        stored = await self._turns()
        cost += MESSAGE * len(stored)
        while True:
            followed = await apart(cost, job, tuple(stored))
            planned = followed.plan
            if planned is None:
                return followed
            if planned.unchanged == len(stored):
                await self._record(planned.turns, stored)
                return followed
            traceparent = self.live.traceparent
            turns = [replace(turn, traceparent=traceparent) for turn in planned.turns]
            try:
                sealed = await self._journal.rewrite(
                    self.live.key, turns, unchanged=planned.unchanged, epoch=self.live.call.epoch
                )
            except CallError as error:
                if error.code != "refused":
                    raise
                await self.live.refuse()  # the caller said so to another replica
                return None
            except TakenOver:  # another replica may have stored more of it
                await self.live.retake()
                if not self.live.may_be_stored:
                    return None
                self._stored = None
                stored = await self._turns()
                continue
            if sealed <= planned.unchanged:
                self._emit(
                    telemetry.turns_mended,
                    call=self.live.key,
                    turns=len(turns),
                    kept=planned.unchanged,
                )
                stored[planned.unchanged :] = turns
                return followed
            self._sealed = sealed

    async def _record(self, turns: Sequence[Turn], stored: list[Turn]) -> None:
        """Store new turns; `LiveCall.record` gives them their span."""
        for part in _parts(turns):
            await self.live.record(part)
            stored += part
            # This part is stored now, even if the next one fails.
            self._followed = replace(self._followed, tail=())


def _parts(turns: Sequence[Turn]) -> Iterator[Sequence[Turn]]:
    return (turns[n : n + _RECORDED_AT_ONCE] for n in range(0, len(turns), _RECORDED_AT_ONCE))


def _has_answer(stretches: Sequence[Stretch], answer: str) -> bool:
    """Whether the last reply in a history may be `answer`, by its first words.

    Not compared word by word, because what was spoken is transcribed again.
    """
    before = stretches[open_from(stretches) - 1] if open_from(stretches) else None
    if before is None or before.speaker != "agent":
        return True
    return bool(set(first_words(before.text, 3)) & set(first_words(answer, 4)))


def _says_on(before: Sequence[Stretch], stretches: Sequence[Stretch]) -> bool:
    """Whether the caller's last words in a history repeat or extend those of an earlier one."""
    one, other = (history[open_from(history)].text for history in (before, stretches))
    if other == one:
        return True
    begun, going_on = words_of(one[:_SAYS_ON_CHARS]), words_of(other[: 2 * _SAYS_ON_CHARS])
    if len(one) > _SAYS_ON_CHARS:  # the last word may be cut
        begun = begun[:-1]
    return going_on[: len(begun)] == begun


def _cost_of(stretches: Sequence[Stretch]) -> int:
    """Return what comparing a history costs, in the units of `sidecar.apart`."""
    return MESSAGE * len(stretches) + sum(len(stretch.text) for stretch in stretches)
