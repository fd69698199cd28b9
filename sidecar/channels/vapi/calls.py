"""The VAPI calls of this process: found by (tenant, call id), ended by a report or by silence."""

from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sidecar import telemetry
from sidecar.access.callers import Resolution
from sidecar.calls import Calls
from sidecar.channels.vapi.bodies import About
from sidecar.channels.vapi.call import VapiCall
from sidecar.channels.vapi.callers import name_of
from sidecar.channels.vapi.control import Control, checked_url
from sidecar.channels.vapi.history import Stretch
from sidecar.channels.vapi.limits import Spent
from sidecar.errors import CallError, JournalError
from sidecar.journal.elsewhere import Commanded
from sidecar.journal.port import OfAllReplicas
from sidecar.model import CallerHints, Command, call_key
from sidecar.prompt_wait import Waits
from sidecar.telemetry import Emit
from sidecar.tools.tool import ToolRuns

OWNER = "vapi"
_ENDED_LIMIT = 1_000
_LOOK_EVERY_S = 2.0
_STORE_AFTER_S = 0.5
"""Storing waits this long, so that models are asked and their first words sent before it: many
callers may end their turn at once. The next request contains the same turns again."""
_STORE_SHARE = 50
"""Then it stores a fiftieth of the waiting calls at a time: each costs half a millisecond of the
CPU that replies need, and none may wait for long."""

Whose: TypeAlias = Literal["own", "nobody's", "another's"]
Stage: TypeAlias = Literal["live", "over", "report"]
"""What a body is about: a call that is going on, one that may have ended, or one that has."""


@dataclass(frozen=True, slots=True)
class Ends:
    """When a call counts as over although VAPI sent no report.

    Attributes:
        report_s: Seconds to wait for the report after VAPI said that the call ended.
        idle_s: Seconds without any request or message.
    """

    report_s: float = 30.0
    idle_s: float = 300.0


@dataclass(frozen=True, slots=True)
class _End:
    """How a call ended.

    Attributes:
        final: It was reported.
        may_be_stored: The caller agreed that its words are stored.
    """

    final: bool
    may_be_stored: bool


@dataclass(frozen=True, slots=True)
class _Ended:
    """The calls that ended most recently, without what was said in them: the journal has that."""

    ends: OrderedDict[str, _End] = field(default_factory=OrderedDict[str, _End])

    def add(self, key: str, end: _End) -> None:
        before = self.ends.pop(key, end)
        self.ends[key] = _End(end.final or before.final, end.may_be_stored and before.may_be_stored)
        while len(self.ends) > _ENDED_LIMIT:
            self.ends.popitem(last=False)


@dataclass(frozen=True, slots=True)
class FoundCall:
    """The call that a body names.

    Attributes:
        call: Live.
        own: The body and the call have the same caller (or both have none), so what is known of
            that caller may be sent. Of any other body only the transcript is used.
    """

    call: VapiCall
    own: bool


class VapiCalls:
    """Every VAPI call, live and lately ended.

    Args:
        calls: Where the calls of every channel live.
        journal: Where turns are.
        control: Commands into calls.
        waits: What a prompt may wait for memory.
        ends: When a call is over.
        redact: See `VapiCall`.
        emit: Where events go.
        clock: Unix time in seconds.
        replicas: Returns how many there are.
    """

    def __init__(
        self,
        calls: Calls,
        journal: OfAllReplicas,
        control: Control,
        *,
        waits: Waits,
        ends: Ends,
        redact: Callable[[str], str] | None,
        emit: Emit,
        clock: Callable[[], float],
        replicas: Callable[[], int] = lambda: 1,
    ) -> None:
        self._replicas = replicas
        self._calls = calls
        self._journal = journal
        self.control = control
        self._waits = waits
        self._ends = ends
        self._redact = redact
        self._emit = emit
        self._clock = clock
        self._live: dict[str, VapiCall] = {}
        self._opening: dict[str, anyio.Event] = {}
        self._ended = _Ended()
        self._tasks: TaskGroup | None = None
        self._unstored: dict[str, VapiCall] = {}
        self._news = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._store_what_was_seen)
            task_status.started()
            while True:
                await anyio.sleep(_LOOK_EVERY_S)
                await self._end_silent()

    def store_soon(self, call: VapiCall) -> None:
        """Store the turns that are over in the call's newest history, once its model was asked."""
        self._unstored[call.live.key] = call
        self._news.set()

    async def _store_what_was_seen(self) -> None:
        while True:
            await self._news.wait()
            await anyio.sleep(_STORE_AFTER_S)
            self._news = anyio.Event()
            while waiting := list(self._unstored):
                async with anyio.create_task_group() as storing:
                    for key in waiting[: 1 + len(waiting) // _STORE_SHARE]:
                        storing.start_soon(self._store_turns, self._unstored.pop(key))

    async def _store_turns(self, call: VapiCall) -> None:
        try:
            await call.store_turns()
        except JournalError as error:  # the next history brings it again
            self._journal_failed(call.live.key, error)

    def _journal_failed(self, key: str, error: JournalError) -> None:
        """Report that something of a call is not in the journal yet; it is tried again."""
        self._emit(telemetry.turn_refused, call=key, code="journal", error=error.message)

    def spawn(self, job: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Start a job that outlives the request which asked for it; its errors are only logged."""
        assert self._tasks is not None, "VapiCalls.run has not started"
        self._tasks.start_soon(self._do, job, *args)

    async def _do(self, job: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        try:
            await job(*args)
        except Exception as error:  # noqa: BLE001 - one call's fault must not stop the others
            self._emit(telemetry.part_failed, part="vapi", error=type(error).__name__, hint="")

    async def of(self, tenant: str, about: About, *, stage: Stage = "live") -> FoundCall | None:
        """Return the call a body belongs to; opens it where it is new.

        Args:
            tenant: From the credential.
            about: What the body says.
            stage: `over` reopens no call that has ended, `live` none that was reported. A
                `report` reopens any call that was stored, because it may correct what was stored.

        Returns:
            None for a body without a call id, for one that comes too late, and for one that
            names a different caller than the call's: it gets no memory, and nothing of it is
            stored.

        Raises:
            CallError: the call is new and the sidecar is draining (`draining`).
        """
        if not about.call_id:
            self._emit(telemetry.vapi_call_unnamed, tenant=tenant)
            return None
        key = call_key(tenant, about.call_id)
        while (opening := self._opening.get(key)) is not None:
            await opening.wait()
        call = self._live.get(key) or await self._open(tenant, key, about, stage)
        if call is None or call.disputed:
            return None
        whose = await self._whose(tenant, call, about.hints)
        if whose == "another's":
            await self._part(key, call)
            return None
        if about.hints.consent == "no":
            await call.live.refuse()
        call.last_s = self._clock()
        own = whose == "own"
        if own:
            call.control_url = checked_url(about.control_url) or call.control_url
        return FoundCall(call, own)

    async def of_history(
        self, found: FoundCall | None, stretches: Sequence[Stretch]
    ) -> VapiCall | None:
        """Return the call that a history belongs to, or None.

        A history in a body that does not name the call's caller must share one of that caller's
        turns, if any is known.
        """
        if found is None or found.own:
            return found.call if found else None
        try:
            if await found.call.continues(stretches):
                return found.call
            why = "the body names nobody, and shares no turn of the call's caller"
        except JournalError as error:
            why = error.message
        self._emit(telemetry.turn_refused, call=found.call.live.key, code="unnamed", error=why)
        return None

    async def _whose(self, tenant: str, call: VapiCall, hints: CallerHints) -> Whose:
        """Return whose a body is; the first one that names somebody identifies the call."""
        name, live = name_of(hints), call.live
        if name in call.names.said:
            return "own"
        resolution = self._calls.resolve(tenant, hints)
        if resolution.ref.known and not live.call.caller_key:
            try:
                await self._calls.identify(live, resolution)
            except JournalError as error:  # the next body brings it again
                self._journal_failed(live.key, error)
        mine = live.call
        if not mine.caller_key:
            same = not resolution.caller_key and resolution.ref == mine.ref
            return "own" if same else "nobody's"
        number = resolution.number
        if resolution.caller_key != mine.caller_key and not call.names.fits(name, number):
            stranger = resolution.caller_key and call.names.differ(name, number)
            return "another's" if stranger else "nobody's"
        call.names.add(name, number)
        return "own"

    async def _part(self, key: str, call: VapiCall) -> None:
        """End a call in which different callers were named: nothing more is sent or stored.

        What was said before the second caller was named belongs to the first.
        """
        if not call.disputed:
            call.disputed = True
            self._emit(telemetry.vapi_caller_changed, call=key)
        try:
            await call.give_up()
            await call.live.refuse()
            await self.end(call, "two callers", final=True)
        except JournalError as error:
            self._journal_failed(key, error)

    def _may_wake(self, key: str, stage: Stage) -> bool:
        """Whether a body may open a call that is not live, by what this process knows of it."""
        end = self._ended.ends.get(key)
        match stage:
            case "report":
                return end is None or end.may_be_stored
            case "over":
                return end is None
            case "live":
                if end is not None and end.final:
                    self._emit(telemetry.vapi_call_over, call=key)
                    return False
                return True

    async def _open(self, tenant: str, key: str, about: About, stage: Stage) -> VapiCall | None:
        if not self._may_wake(key, stage):
            return None
        opened = self._opening[key] = anyio.Event()
        unsure = False
        try:
            try:
                known = await self._journal.call(key)
            except JournalError:  # asked again before anything is stored
                known, unsure = None, True
            if known is not None and known.final:
                self._ended.add(key, _End(final=True, may_be_stored=True))
                if not self._may_wake(key, stage):
                    return None
            whose = None
            if known is not None and known.caller_key:
                # A stored call keeps its caller, whatever name this body has.
                whose = Resolution(known.ref, known.caller_key)
            call = VapiCall(
                self._journal,
                waits=self._waits,
                command=self._command,
                spawn=self.spawn,
                redact=self._redact,
                emit=self._emit,
                clock=self._clock,
            )
            call.live = await self._calls.open(
                tenant,
                about.call_id,
                channel="vapi",
                hints=about.hints,
                opened_at_s=self._clock(),
                owner=OWNER,
                listener=call,
                whose=whose,
            )
        except CallError as error:
            if error.code == "draining":
                raise
            self._emit(telemetry.turn_refused, call=key, code=error.code, error=error.message)
            return None
        else:
            call.unsure = unsure
            end = self._ended.ends.get(key)
            if end is not None and not end.may_be_stored:
                await call.live.refuse()
            self._live[key] = call
            return call
        finally:
            del self._opening[key]
            opened.set()

    def begun(self, call: VapiCall, stream: object, slot: int, words: str) -> None:
        """A reply was begun: have other replicas cancel those that it supersedes, within a second.

        Args:
            call: Its call.
            stream: What `WrittenReplies.begin` returned.
            slot: As for `WrittenReplies.begin`.
            words: What it replies to.
        """
        if self._replicas() > 1 and call.live.may_be_stored:
            self.spawn(self._tell_begun, call, stream, f"{slot} {len(words)}")

    def superseded(self, key: str, by: Commanded) -> None:
        """A reply was begun, here or elsewhere: see `begun`. A key of no VAPI call is ignored."""
        if call := self._live.get(key):
            slot, chars = by.text.split()
            call.written.superseded(int(slot), int(chars), by.n)

    async def _tell_begun(self, call: VapiCall, stream: object, text: str) -> None:
        with suppress(JournalError):  # an earlier reply is written to its end, and nobody hears it
            if n := await self._journal.pass_on(Commanded(call.live.call.key, "supersede", text)):
                call.written.numbered(stream, n)

    def tool_runs(self) -> ToolRuns:
        """Return the runs of a call that is not known; each request runs."""
        return ToolRuns(self._journal, clock=self._clock, spawn=self.spawn)

    def spent(self) -> dict[str, Spent]:
        """Return the model tokens that each stored live call has used, by its stored key."""
        return {call.live.call.key: call.spent for call in self._live.values() if call.live.stored}

    async def end(
        self, call: VapiCall, reason: str, *, final: bool = False, here: bool = False
    ) -> None:
        """Close a call whose transcript is complete.

        Args:
            call: Which.
            reason: For the log.
            final: It was reported: only a further report reopens it.
            here: See `LiveCall.close`.

        Raises:
            JournalError: it is not closed; may be repeated.
        """
        await call.live.close(reason, final=final, here=here)
        if self._live.get(call.live.key) is call:
            del self._live[call.live.key]
        self._ended.add(call.live.key, _End(final, call.live.may_be_stored))

    async def _end_silent(self) -> None:
        now_s = self._clock()
        for call in tuple(self._live.values()):
            if call.disputed:
                await self._part(call.live.key, call)
                continue
            ended_s = call.ended_s
            reported_late = ended_s is not None and now_s - ended_s >= self._ends.report_s
            idle = now_s - call.last_s >= self._ends.idle_s and not call.written.speaking
            if not reported_late and not idle:
                continue
            try:
                if not reported_late and await self._is_heard_elsewhere(call, now_s):
                    call.last_s = now_s  # it goes on there
                    continue
                await call.give_up()
                reason = "no report came" if reported_late else "silence"
                await self.end(call, reason, here=not reported_late)
            except JournalError as error:
                self._journal_failed(call.live.key, error)

    async def _is_heard_elsewhere(self, call: VapiCall, now_s: float) -> bool:
        """Whether turns of a call that is silent here were stored, by another replica, of late."""
        if self._replicas() == 1 or not call.live.stored:
            return False
        turns = await self._journal.turns(call.live.key)
        return any(turn.at_s > now_s - self._ends.idle_s / 2 for turn in turns)

    def _command(self, call: VapiCall, command: Command, text: str) -> None:
        self.spawn(self._send_command, call, command, text)

    async def _send_command(self, call: VapiCall, command: Command, text: str) -> None:
        key, url = call.live.key, call.control_url
        match command:
            case "guide":
                await self.control.guide(key, url, text)
            case "say":
                await self.control.say(key, url, text)
            case "hang-up":
                await self.control.end_call(key, url)
