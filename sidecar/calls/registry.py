"""The live calls: memory comes in here before each prompt, words go out here after each reply.

Every channel (link, console, VAPI) opens a `LiveCall`, reads its `memory`, records turns and
closes it. Nothing here makes a caller wait for Letta: opening a call returns at once with the
memory that there is, and the call's listener is notified of newer memory as it comes.

Theory of operation: a call is *live* while a channel holds it. When its holder is lost (a worker
died, the sidecar was restarted) it is an *orphan*: the same worker may reopen it; after `orphan_s`
it is closed, so that its last words are posted.

A call that is opened in the room of an orphan, by the same caller and within `GOES_ON_S`, is its
*successor*: it goes on with the stored call. The journal decides that when it stores the successor,
so it is the same on every replica. Here such a call has the key that its own channel gives it
(`LiveCall.key`), and the stored call another one (`LiveCall.call.key`).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sidecar import telemetry
from sidecar.access.callers import IdentityRules, Resolution, resolve
from sidecar.calls.call import Listener, LiveCall, call_claimed
from sidecar.calls.guidance import LeftGuidance
from sidecar.calls.memory_feed import MemoryFeed
from sidecar.calls.orphans import Orphans
from sidecar.calls.ownership import Ownership
from sidecar.calls.records import Heard, Records
from sidecar.calls.refusals import Refusals
from sidecar.calls.restoring import Restoring
from sidecar.calls.storing import Storing
from sidecar.errors import CallError, HeardElsewhere, JournalError, TakenOver
from sidecar.journal.policy import GOES_ON_S
from sidecar.journal.record import Record
from sidecar.letta.identity import Identity
from sidecar.memory.freshness import FreshnessPolicy
from sidecar.memory.prompt import PromptLimits
from sidecar.memory.snapshots import Snapshots
from sidecar.model import (
    CHANNEL_RULE,
    AgentRef,
    Batch,
    Call,
    CallerHints,
    Channel,
    Turn,
    call_key,
    is_channel,
    room_key,
)
from sidecar.prompt_wait import PromptWait
from sidecar.telemetry import Emit
from sidecar.tracing import CONVERSATION, NO_TRACES, Tracer

_LOOK_S = 2.0
"""The calls of a replica that is gone are taken over within this time of its lease's end."""


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """The settings that calls need; see `sidecar.config.Settings`."""

    limits: PromptLimits = field(default_factory=PromptLimits)
    freshness: FreshnessPolicy = field(default_factory=FreshnessPolicy)
    orphan_s: float = 120.0
    consent_required: bool = False

    def may_store(self, hints: CallerHints) -> bool:
        """Whether a call with these hints may be stored."""
        return hints.consent == "yes" or (hints.consent == "" and not self.consent_required)


def _check_channel(channel: Channel) -> None:
    """Raise CallError (`bad_value`) if the channel's name is not allowed."""
    if not is_channel(channel):
        raise CallError("bad_value", f"a channel is {CHANNEL_RULE}", hint="name it so")


def _notify_nobody() -> None:
    """Do nothing; the default of `Calls.on_opened`."""


class Calls:
    """All live calls.

    Args:
        journal: Where turns go.
        snapshots: Where memory comes from.
        identity: Finds or creates a caller's agent.
        rules: Whose memory a call belongs to.
        policy: Limits and times.
        secret: This installation's own, for the nonce of the fence.
        emit: Where events go.
        clock: Unix time in seconds.
        tracer: Makes spans.
    """

    def __init__(
        self,
        journal: Record,
        snapshots: Snapshots,
        identity: Identity,
        *,
        rules: IdentityRules,
        policy: CallPolicy,
        secret: bytes,
        emit: Emit,
        clock: Callable[[], float],
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._journal = journal
        self._tracer = tracer
        self._rules = rules
        self._policy = policy
        self._emit = emit
        self._clock = clock
        self._records = Records()
        self._storing = Storing(
            journal,
            self._records,
            on_stored=self._is_stored,
            emit=emit,
            tracer=tracer,
        )
        self._orphans = Orphans(
            journal,
            orphan_s=policy.orphan_s,
            is_live=self._is_live,
            failed=self._storing.failed,
            emit=emit,
            clock=clock,
        )
        self._restoring = Restoring(
            journal, self._orphans, is_live=self._is_live, emit=emit, clock=clock
        )
        self._ownership = Ownership(
            journal,
            self._orphans,
            self._storing,
            live=lambda: self.live,
            is_live=self._is_live,
        )
        self._refusals = Refusals(self._records, self._storing, clock=clock)
        self._feed = MemoryFeed(
            journal,
            snapshots,
            identity,
            limits=policy.limits,
            freshness=policy.freshness,
            secret=secret,
            emit=emit,
            tracer=tracer,
            clock=clock,
            journal_failed=self._storing.emit_failed,
        )
        self._live: dict[str, LiveCall] = {}
        self._successors: dict[str, LiveCall] = {}
        """The live call that goes on with a stored call of another key, by that key."""
        self._tasks: TaskGroup | None = None
        self._left_guidance = LeftGuidance(orphan_s=max(policy.orphan_s, GOES_ON_S))
        self._fewer = anyio.Event()
        self.on_opened: Callable[[], None] = _notify_nobody
        """Called when a new call has been opened."""
        self.draining = False

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve calls until cancelled; calls that an earlier process left open become orphans."""
        async with anyio.create_task_group() as tasks:
            self._feed.tasks = self._tasks = tasks
            self._journal.digested = self._feed.digested_elsewhere
            tasks.start_soon(self._feed.follow_others)
            await self._ownership.take_over(first=True)
            task_status.started()
            while True:
                await anyio.sleep(min(_LOOK_S, self._policy.orphan_s / 4))
                await self._orphans.write()
                await self._ownership.look()
                self._left_guidance.forget(expected=self._orphans, now_s=self._clock())
                self._refusals.forget_old()
                await self._storing.try_again()

    def _is_live(self, key: str) -> bool:
        """Whether a channel holds a stored call, by whatever key."""
        return key in self._live or key in self._successors

    @property
    def journal_error(self) -> str:
        """Why turns can't be stored at present; empty while they can."""
        return self._storing.error

    @property
    def live(self) -> Sequence[LiveCall]:
        """The live calls, oldest first."""
        return tuple(self._live.values())

    @property
    def lookup_failed(self) -> bool:
        """Whether a live call waits for its agent because Letta is unavailable or denies access."""
        return any(live.lookup_failed for live in self._live.values())

    async def wait_for_fewer(self) -> None:
        """Return when a live call has ended."""
        await self._fewer.wait()

    async def open(
        self,
        tenant: str,
        call_id: str,
        *,
        channel: Channel,
        hints: CallerHints,
        opened_at_s: float,
        owner: str,
        listener: Listener,
        traceparent: str = "",
        room: str = "",
        whose: Resolution | None = None,
    ) -> LiveCall:
        """Open a call, or reopen it, and start to load its memory.

        Promises: returns without asking Letta. The first `on_memory` with `newest=True` means
        that no newer memory is expected for now.

        Args:
            tenant: From the credential.
            call_id: The channel's own id.
            channel: Where it comes from.
            hints: Who is on the line.
            opened_at_s: Unix time.
            owner: Who holds the call; the same owner may open it again.
            listener: Notified of newer memory, guidance and commands.
            traceparent: The channel's own span of the call, where it has one.
            room: Where the call is heard. Of several calls with one room and caller, one writes the
                record (`sidecar.calls.records`), and one that is lost is gone on with; empty: no
                other call hears it.
            whose: Whose the call is; used in place of the caller that `hints` name.

        Raises:
            CallError: another live owner holds it, or it is another caller's (`call_claimed`), or
                the sidecar is draining and the call is new (`draining`), or the channel's name is
                not allowed (`bad_value`).
        """
        _check_channel(channel)
        key = call_key(tenant, call_id)
        resolution = whose or self.resolve(tenant, hints)
        live = self._live.get(key)
        if live is not None:
            if live.call.caller_key not in {"", resolution.caller_key}:
                raise call_claimed("the call is another caller's")
            if live.owner != owner:
                raise call_claimed("another worker holds this call")
            live.listener = listener
            if hints.consent == "no" and live.refused_s == math.inf:
                live.refused_s = live.opened_at_s
                await self._refusals.refuse_room(live)
            elif not self._policy.may_store(hints):
                await self.refuse(live)
            live.traceparent = traceparent or live.traceparent
            self._feed.begin(live)
            return live
        heard = _heard(tenant, room, resolution.caller_key)
        resumed = key in self._orphans or self._orphans.lost_in(heard) is not None
        if self.draining and not resumed:
            raise CallError(
                "draining", "the sidecar is shutting down", hint="open the call on another sidecar"
            )
        if resolution.why and not resumed:
            self._emit(telemetry.caller_unresolved, call=key, channel=channel, why=resolution.why)
        call = Call(
            key,
            resolution.ref,
            channel,
            resolution.caller_key,
            opened_at_s,
            consent=hints.consent,
        )
        live = LiveCall(self, self._feed, call, owner=owner, listener=listener)
        live.heard = heard
        live.refused_s = self._refusals.since_s(heard)
        live.greeted = live.refused_s < math.inf
        live.may_be_stored = self._policy.may_store(hints) and not live.greeted
        if hints.consent == "no":
            live.refused_s = min(live.refused_s, opened_at_s)
        self._enter(live)
        about = {CONVERSATION: call_id, "sidecar.channel": channel, "sidecar.call.resumed": resumed}
        with self._tracer.start("open call", parent=traceparent, attributes=about) as span:
            live.traceparent = traceparent or span.traceparent
            await self._store_opened(live)
        if hints.consent == "no":
            await self._refusals.refuse_room(live)
        self._emit(
            telemetry.call_opened,
            call=key,
            channel=channel,
            lane=live.call.ref.lane,
            resumed=resumed or live.call.key != live.key,
        )
        self.on_opened()
        self._feed.begin(live)
        return live

    async def _store_opened(self, live: LiveCall) -> None:
        """Store a call that was just opened, or find out with what it goes on.

        Raises:
            CallError: it can't be opened; it is no longer live.
        """
        try:
            await self._storing.store_call(live)
        except CallError:
            del self._live[live.key]
            self._leave(live)
            raise
        except HeardElsewhere as error:
            self._set_before(live, error.key)
            live.elsewhere = live.elsewhere_until_lost = True
            self._emit(telemetry.call_recorded_elsewhere, call=live.key, by=error.key)
        except JournalError as error:
            self._storing.failed(error)  # the call goes on; `record` stores it first
        if live.heard and not live.stored and not live.before:
            await self._look_into_room(live, live.heard)

    def _is_stored(self, live: LiveCall) -> None:
        key = live.call.key
        self._orphans.remove(key)
        live.elsewhere_until_lost = False
        if key != live.key:
            self._set_before(live, key, succeeds=True)
            _inherit(live, self._left_guidance.take_up(live.call).pieces)
            for other in self._records.in_room(live.heard):
                if other.before == live.key:
                    self._set_before(other, key)
        else:  # what went on in its room was ended meanwhile
            self._set_before(live, "")
            live.so_far = ()
        if live.closed:  # while it was being stored
            self._orphans.add(key, live.call.epoch, live.heard)

    def _set_before(self, live: LiveCall, key: str, *, succeeds: bool = False) -> None:
        """Note with which call a live one goes on, or will; empty: with none."""
        if self._successors.get(live.before) is live:
            del self._successors[live.before]
        live.before = key
        if succeeds and not live.closed:
            self._successors[key] = live

    def _enter(self, live: LiveCall) -> None:
        self._live[live.key] = live
        if writer := self._records.enter(live):
            live.elsewhere = True
            # What a job finds that comes back is its own call, whose words it has.
            self._set_before(live, writer.call.key if writer.call.key != live.key else "")
            live.guidance = self._left_guidance.take_up(live.call)
            _inherit(live, writer.guidance.pieces)
            self._emit(telemetry.call_recorded_elsewhere, call=live.key, by=writer.key)
            return
        if (lost := self._orphans.lost_in(live.heard)) and lost != live.key:
            self._set_before(live, lost, succeeds=True)
        live.guidance = self._left_guidance.take_up(live.call, before=live.before)

    async def _look_into_room(self, live: LiveCall, heard: Heard) -> None:
        """Find out with what a call that is not stored goes on, for its memory."""
        try:
            going_on = await self._journal.in_room(heard[0], caller_key=heard[1])
        except JournalError as error:
            self._storing.failed(error)
        else:
            self._set_before(live, going_on if going_on and going_on != live.key else "")

    async def restore(
        self,
        tenant: str,
        call_id: str,
        *,
        channel: Channel,
        hints: CallerHints,
        opened_at_s: float,
        turns: Sequence[Turn],
        room: str = "",
        ended: bool = False,
    ) -> bool:
        """Store a call that its dead worker left in a spool, and close it.

        Where another worker goes on with it, its turns are stored, and it stays open.

        Args:
            tenant: Whose workers write there.
            call_id: As its worker named it.
            channel: Where it came from.
            hints: Who was on the line.
            opened_at_s: Unix time.
            turns: What was not acked, in order.
            room: Where it was heard, or empty.
            ended: Its worker had ended it.

        Returns:
            False when a worker holds the call at present, here or through another replica, or when
            the call that writes the record of its room has not reached the same time: try again
            later.

        Raises:
            CallError: the call is stored for another caller, or the channel's name is not allowed.
            JournalError: nothing of it was stored; try again.
        """
        _check_channel(channel)
        key = call_key(tenant, call_id)
        if key in self._live or await self._journal.is_live_elsewhere(key):
            return False
        resolution = resolve(tenant, hints, self._rules)
        heard = _heard(tenant, room, resolution.caller_key)
        if not self.may_store(hints) or opened_at_s >= self._refusals.since_s(heard):
            self._emit(telemetry.turns_not_kept, call=key, turns=len(turns))
            return True
        left = self._records.left_of(heard, key, turns, opened_at_s=opened_at_s)
        if left is None:
            return False
        if turns and not left and key not in self._orphans:
            return True  # all of it is in the record of another call
        turns = left
        call = Call(
            key,
            resolution.ref,
            channel,
            resolution.caller_key,
            opened_at_s,
            consent=hints.consent,
            room=heard[0] if heard else "",
        )
        if resolution.why and key not in self._orphans:
            self._emit(telemetry.caller_unresolved, call=key, channel=channel, why=resolution.why)
        return await self._restoring.restore(call, turns, ended=ended)

    def may_store(self, hints: CallerHints) -> bool:
        """Whether anything of a call with these hints may be stored."""
        return self._policy.may_store(hints)

    def resolve(self, tenant: str, hints: CallerHints) -> Resolution:
        """Return whose memory a call with these hints belongs to."""
        return resolve(tenant, hints, self._rules)

    async def identify(self, live: LiveCall, whose: Resolution) -> None:
        """Set the caller of a live call that has none yet, and load that caller's memory.

        A call without an agent gets the caller's agent, which also receives what was said before. A
        call that has a caller, or another agent, stays as it is.

        Raises:
            JournalError: it stays as it was; may be repeated.
        """
        call = live.call
        if call.caller_key or (call.ref.known and call.ref != whose.ref):
            return
        known = replace(call, ref=whose.ref, caller_key=whose.caller_key)
        if known == call:
            return
        if live.stored:
            try:
                known = await self._journal.identify(known)
            except CallError as error:
                # Erased since it was stored; if with its caller, it is never stored again.
                live.stored = False
                live.may_be_stored = live.may_be_stored and error.code != "erased"
        live.call = replace(known, consent=live.call.consent)
        live.wait, live.notified_version = PromptWait(), None  # its first memory is yet to come
        self._feed.begin(live)

    def orphan(self, owner: str) -> None:
        """The owner of these calls is lost; it may come back within `orphan_s`."""
        for live in [one for one in self._live.values() if one.owner == owner]:
            self._forget(live)
            self._refusals.lost(live)
            before = self._orphans.get(live.key)
            if live.stored or before is not None:
                epoch = live.call.epoch if live.stored or before is None else before.epoch
                key = live.call.key if live.stored else live.key
                self._orphans.add(key, epoch, live.heard)
            for heir in self._records.in_room(live.heard)[:1]:
                _inherit(heir, live.guidance.pieces)
        if self._orphans.unwritten and self._tasks is not None:
            self._tasks.start_soon(self._orphans.write)

    def changed(self, agent_id: str) -> None:
        """Letta has changed the memory of an agent: its snapshot is no longer fresh."""
        self._feed.changed(agent_id)

    async def digested(self, ref: AgentRef, batch: Batch) -> None:
        """Read the agent of a batch that was digested, for the calls that are live."""
        await self._feed.digested(ref, batch)

    async def record(self, live: LiveCall, turns: Sequence[Turn]) -> None:
        """Make turns of a live call durable; see `Storing.record`."""
        await self._storing.record(live, turns)

    async def close(
        self, live: LiveCall, reason: str, *, at_s: float, final: bool, here: bool
    ) -> None:
        """End a live call."""
        if not live.closed:
            if not live.elsewhere:
                with suppress(HeardElsewhere):  # then its other job ends it
                    await self._storing.store_call(live)
            if live.stored:
                # If its channel says that it has ended, it has, whichever replica has it by now.
                epoch = live.call.epoch if here else None
                with suppress(TakenOver):
                    await self._journal.close_call(
                        live.key, at_s=self._clock(), epoch=epoch, final=final
                    )
            elif not [one for one in self._records.in_room(live.heard) if one is not live]:
                await self._end_lost(live)
            self._emit(telemetry.call_closed, call=live.key, reason=reason[:100], turns=live.turns)
            self._records.leave(live, at_s=at_s)
            self._refusals.ended(live)
        self._forget(live)

    async def _end_lost(self, live: LiveCall) -> None:
        """End the lost call that a job would have gone on with, had its caller not said no."""
        key = live.before or live.key
        if orphan := self._orphans.get(key):
            with suppress(CallError, TakenOver):
                await self._journal.close_call(key, at_s=self._clock(), epoch=orphan.epoch)
            self._orphans.remove(key)

    async def refuse(self, live: LiveCall) -> None:
        """Store nothing more of a live call, and mark the stored call as refused."""
        await self._refusals.refuse(live)

    async def retake(self, live: LiveCall) -> None:
        """Take a live call again that another replica has opened: here it goes on.

        Raises:
            JournalError: it stays the other one's; may be repeated.
        """
        live.stored = False
        try:
            await self._storing.store_call(live)
        except BaseException:
            live.stored = True
            raise

    def guided(self, live: LiveCall, *, chars: int, cut_chars: int) -> None:
        """Report that guidance came for a live call."""
        self._emit(telemetry.guidance_taken, call=live.key, chars=chars, cut_chars=cut_chars)

    def _forget(self, live: LiveCall) -> None:
        if not live.closed:
            self._left_guidance.leave(live.call, live.guidance, now_s=self._clock())
        live.closed = True
        if self._live.get(live.key) is live:
            del self._live[live.key]
            self._fewer.set()
            self._fewer = anyio.Event()
        self._leave(live)
        self._feed.end(live)

    def _leave(self, live: LiveCall) -> None:
        self._records.leave(live)
        if self._successors.get(live.before) is live:
            del self._successors[live.before]


def _heard(tenant: str, room: str, caller_key: str) -> Heard | None:
    """Return the room and caller that several calls may hear; None where either is unknown."""
    return (room_key(tenant, room), caller_key) if room and caller_key else None


def _inherit(live: LiveCall, guidance: Sequence[str]) -> None:
    """Give a live call the guidance of the one that it goes on with."""
    for piece in guidance:
        before = live.guidance.text
        live.guidance.add(piece)
        if live.guidance.text != before:
            live.listener.on_guidance(piece)
