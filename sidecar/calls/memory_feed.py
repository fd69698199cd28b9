"""Provides live calls with memory: the current snapshot at once, newer ones as they come."""

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from anyio.abc import TaskGroup

from sidecar import telemetry
from sidecar.breaker import backoff_s
from sidecar.calls.call import LiveCall, MemoryView
from sidecar.errors import JournalError, LettaDenied, LettaError, LettaUnavailable
from sidecar.journal.record import Record
from sidecar.letta.identity import Identity
from sidecar.memory.freshness import FreshnessPolicy, judge
from sidecar.memory.prompt import PromptLimits, RenderedMemory, nonce_of, render
from sidecar.memory.snapshots import CachedSnapshot, Snapshots
from sidecar.model import AgentRef, Batch, Served
from sidecar.telemetry import Emit
from sidecar.tracing import CONVERSATION, Tracer

RECENT_TURNS = 60
SO_FAR_TURNS = 400
"""Of a call that is taken over; the prompt's limits keep the newest of them."""
READS_AT_ONCE = 8
"""Reads that one call may have under way: a caller may speak many times while a read is slow."""


class MemoryFeed:
    """The memory of all live calls.

    Args:
        journal: Where recent turns are read.
        snapshots: Where memory comes from.
        identity: Finds or creates a caller's agent.
        limits: Bounds of what goes into a prompt.
        freshness: At which ages memory is fresh or stale.
        secret: This installation's own, for the nonce of the fence.
        emit: Where events go.
        tracer: Makes spans.
        clock: Unix time in seconds.
        journal_failed: Called when the journal could not be read.
    """

    def __init__(
        self,
        journal: Record,
        snapshots: Snapshots,
        identity: Identity,
        *,
        limits: PromptLimits,
        freshness: FreshnessPolicy,
        secret: bytes,
        emit: Emit,
        tracer: Tracer,
        clock: Callable[[], float],
        journal_failed: Callable[[JournalError], None],
    ) -> None:
        self._journal = journal
        self._snapshots = snapshots
        self._identity = identity
        self._limits = limits
        self._freshness = freshness
        self._secret = secret
        self._emit = emit
        self._tracer = tracer
        self._clock = clock
        self._journal_failed = journal_failed
        self._of_agent: dict[str, set[LiveCall]] = {}
        self._elsewhere: dict[str, AgentRef] = {}
        self._heard = anyio.Event()
        self.tasks: TaskGroup | None = None
        """The task group in which reads run; set by `Calls.run`."""
        snapshots.on_read = self._on_read

    def begin(self, live: LiveCall) -> None:
        """Start to load the memory of a call that was opened or reopened.

        If that is under way already, only the current memory is reported.
        """
        live.wait.opened()
        if live.loading:
            self._notify(live, newest=False)
        else:
            live.loading = True
            self._spawn(self._load_memory, live)

    def end(self, live: LiveCall) -> None:
        """Stop loading memory for a call that is no longer live."""
        if live.agent_id is None:
            return
        of_agent = self._of_agent.get(live.agent_id, set())
        if live in of_agent:
            of_agent.discard(live)
            self._snapshots.unwatch(live.agent_id)
        if not of_agent:
            self._of_agent.pop(live.agent_id, None)

    def changed(self, agent_id: str) -> None:
        """Letta has changed the memory of an agent: its snapshot is no longer fresh."""
        self._snapshots.changed(agent_id)

    async def digested(self, ref: AgentRef, batch: Batch) -> None:
        """Read the agent of a batch that was digested, for the calls that are live."""
        agent_id = batch.agent_id or await self._identity.known_agent(ref)
        if agent_id is not None:
            await self._snapshots.refresh(agent_id).done.wait()

    def digested_elsewhere(self, ref: AgentRef) -> None:
        """Read an agent of which another replica has delivered a batch, if a call here uses it.

        May be called outside of any task.
        """
        if self._of_agent:
            self._elsewhere[ref.lane] = ref
            self._heard.set()

    async def follow_others(self) -> None:
        """Read what `digested_elsewhere` named, until cancelled."""
        while True:
            await self._heard.wait()
            self._heard = anyio.Event()
            named, self._elsewhere = self._elsewhere, {}
            for ref in named.values():
                self._spawn(self._read_elsewhere, ref)

    async def _read_elsewhere(self, ref: AgentRef) -> None:
        agent_id = await self._identity.known_agent(ref)
        if agent_id in self._of_agent:
            self._snapshots.changed(agent_id)
            await self._snapshots.refresh(agent_id).done.wait()

    def cached(self, live: LiveCall) -> CachedSnapshot | None:
        """Return the current snapshot for a call."""
        return self._snapshots.cached(live.agent_id) if live.agent_id else None

    def view(self, cached: CachedSnapshot | None, rendered: RenderedMemory) -> MemoryView:
        """Return a rendered memory with the time of its read and how it was served."""
        if cached is None:
            return MemoryView(rendered.text, rendered.version, 0.0, "none")
        read_at_s = cached.snapshot.read_at_s
        served: Served = "disk"
        if not cached.from_disk:
            freshness = judge(
                read_at_s, now_s=self._clock(), policy=self._freshness, outdated=cached.outdated
            )
            served = "fresh" if freshness == "fresh" else "stale"
        return MemoryView(rendered.text, rendered.version, read_at_s, served)

    def render(self, live: LiveCall, cached: CachedSnapshot | None) -> RenderedMemory:
        """Render a call's snapshot and recent turns as text."""
        rendered = render(
            cached.snapshot if cached else None,
            live.recent,
            live.so_far,
            nonce=nonce_of(self._secret, live.key),
            limits=self._limits,
        )
        if rendered.cut_chars:
            self._emit(
                telemetry.prompt_cut, agent=live.agent_id or "", cut_chars=rendered.cut_chars
            )
        return rendered

    def refresh(self, live: LiveCall, *, traceparent: str) -> None:
        """Start a read for a call and notify its listener when it has ended.

        Starts none where `READS_AT_ONCE` are under way for this call: their result serves as well.
        """
        if live.reads >= READS_AT_ONCE:
            return
        if live.agent_id is not None:
            live.wait.read_began(looking=True)
        elif live.notified_version is None:
            return  # its first memory is still being loaded
        live.reads += 1
        self._spawn(self._read, live, traceparent)

    async def _read(self, live: LiveCall, traceparent: str) -> None:
        try:
            await self._notify_newest(live, traceparent)
        finally:
            live.reads -= 1

    async def _load_memory(self, live: LiveCall) -> None:
        try:
            await self._load(live)
        finally:
            live.loading = False

    async def _load(self, live: LiveCall) -> None:
        """Report the snapshot that is in memory or on disk, then read the newest memory."""
        await self._read_so_far(live)
        if not live.call.ref.known:
            self._notify(live, newest=True)
            return
        await self._renew_recent(live)
        if live.heard and not await self._has_copy(live) and not live.closed:
            self._answer(live)
        agent_id = await self._find_agent(live)
        if live.closed:
            return
        if agent_id is None:
            self._notify(live, newest=True)
            return
        if live.agent_id is None:
            live.agent_id = agent_id
            self._of_agent.setdefault(agent_id, set()).add(live)
            self._snapshots.watch(agent_id)
        cached = await self._snapshots.load(agent_id)
        if cached is not None:
            await self._leave_out_digested(live)
            self._notify(live, newest=False)
        live.wait.read_began()
        await self._notify_newest(live, live.traceparent)

    async def _find_agent(self, live: LiveCall) -> str | None:
        """Return the agent of a call, if there is one; retry while Letta is away.

        No agent is created for a caller who did not agree to be stored: its tags would name them.
        """
        attempt = 0
        while not live.closed:
            try:
                find = self._identity.agent_of if live.may_be_stored else self._identity.found_agent
                agent_id = await find(live.call.ref)
            except (LettaError, JournalError) as failure:
                live.lookup_failed = isinstance(failure, LettaUnavailable | LettaDenied)
                error, hint = f"{type(failure).__name__}: {failure.message}", failure.hint
            else:
                live.lookup_failed = False
                return agent_id
            attempt += 1
            self._emit(telemetry.agent_unresolved, lane=live.call.ref.lane, error=error, hint=hint)
            self._notify(live, newest=True)
            await anyio.sleep(backoff_s(attempt, base_s=1.0, cap_s=30.0, dice=0.5))
        return None

    async def _notify_newest(self, live: LiveCall, traceparent: str) -> None:
        """Read the agent, and what was said in other calls; report when both have come.

        The journal is always read: the last words of an earlier call may have come since this one
        opened, and Letta may be away.
        """
        about = {CONVERSATION: live.call.call_id, "gen_ai.agent.id": live.agent_id}
        with self._tracer.start("read memory", parent=traceparent, attributes=about) as span:
            read = self._snapshots.refresh(live.agent_id) if live.agent_id else None
            if not live.elsewhere:  # else its own worker has heard what was added since
                await self._read_so_far(live)
            await self._renew_recent(live)
            if read is not None and not read.done.is_set():
                if live.memory.version != live.notified_version:
                    self._notify(live, newest=False)
                live.wait.looked()
                await read.done.wait()
            if not live.closed:
                self._notify(live, newest=True)
                span.set({"sidecar.memory.served": live.memory.served})

    async def _has_copy(self, live: LiveCall) -> bool:
        """Whether a copy of the agent's memory is here, so that its first report needs no Letta."""
        try:
            agent_id = await self._identity.known_agent(live.call.ref)
        except JournalError:
            return False
        return agent_id is not None and await self._snapshots.load(agent_id) is not None

    def _answer(self, live: LiveCall) -> None:
        """Report what is known without Letta: a worker in a room asks whether the call goes on."""
        view = live.memory
        live.wait.memory_came(empty=not view.text, newest=False)
        live.listener.on_memory(view, newest=False)

    async def _on_read(self, agent_id: str) -> None:
        """A read has succeeded: notify the calls whose text has changed."""
        for live in tuple(self._of_agent.get(agent_id, ())):
            cached = self.cached(live)
            if cached is None:
                continue
            await self._leave_out_digested(live)
            if live.memory.version != live.notified_version:
                self._notify(live, newest=False)

    def _notify(self, live: LiveCall, *, newest: bool) -> None:
        view = live.memory
        live.notified_version = view.version
        live.wait.memory_came(empty=not view.text, newest=newest)
        live.listener.on_memory(view, newest=newest)

    async def _leave_out_digested(self, live: LiveCall) -> None:
        """Remove from `recent` the turns that the snapshot holds by now."""
        if live.recent:
            await self._renew_recent(live)

    async def _renew_recent(self, live: LiveCall) -> None:
        """Read what was said in other calls and is not in the current snapshot."""
        cached = self.cached(live)
        try:
            live.recent = await self._journal.recent(
                live.call.ref,
                caller_key=live.call.caller_key,
                except_call=live.before or live.key,
                since_s=cached.snapshot.read_at_s if cached else 0.0,
                limit=RECENT_TURNS,
            )
        except JournalError as error:
            self._journal_failed(error)

    async def _read_so_far(self, live: LiveCall) -> None:
        """Read what was said in the call before its worker opened it."""
        before = live.before
        if not before:
            return
        try:
            so_far = await self._journal.so_far(before, except_by=live.key, limit=SO_FAR_TURNS)
        except JournalError as error:
            self._journal_failed(error)
        else:
            if live.before == before:
                live.so_far = so_far

    def _spawn(self, job: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        assert self.tasks is not None, "Calls.run has not started"
        self.tasks.start_soon(self._guard, job, args)

    async def _guard(
        self, job: Callable[..., Coroutine[Any, Any, None]], args: tuple[object, ...]
    ) -> None:
        """Run a job of one call; an error in it must not end the others."""
        try:
            await job(*args)
        except Exception as error:  # noqa: BLE001 - logged; the call keeps its current memory
            self._emit(
                telemetry.part_failed, part="memory feed", error=type(error).__name__, hint=""
            )
