"""The cache of snapshots: what the prompt path is served, and the reads that fill it.

Theory of operation: the prompt path uses `cached` and never asks Letta. A read (`refresh`) starts
when a call opens, when the caller begins to speak, when a batch is settled, and by the poll of live
calls. One read per agent is under way at a time. A read that is asked for after a change
(`changed`) must not be answered by one that began before it, so another read follows that one.
One breaker for all agents refuses reads while Letta is down: what is cached is served at once, and
one probe at a time goes out. The poll is spread over its period and bounded, since a read that
waits for a connection uses up its deadline there: a thousand at once would look like a Letta that
is down.
"""

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from sys import getsizeof
from typing import Protocol

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sidecar import telemetry
from sidecar.breaker import Breaker
from sidecar.errors import AgentNotFound, LettaError, LettaUnavailable, SidecarError
from sidecar.memory.store import SnapshotStore
from sidecar.model import Block, Snapshot
from sidecar.telemetry import Emit

SUSPECT_READS = 3
SUSPECT_S = 600.0
MISSING_READS = 3
"""After this many reads in a row that find no agent, its memory is no longer served."""
MAX_BYTES = 64 << 20
"""Limit on the text cached for later calls; the rest is in the copies on disk."""
_LOOKED_AT = 64
POLLS_AT_ONCE = 32
"""Reads of the poll under way at once: below the 50 connections of `RestLetta`."""


class BlockSource(Protocol):
    """Where blocks are read from: `sidecar.letta.port.Letta` is one."""

    async def read_blocks(self, agent_id: str) -> tuple[Block, ...]:
        """Return all blocks of an agent, or raise a `LettaError`."""
        ...


@dataclass(frozen=True, slots=True)
class CachedSnapshot:
    """A snapshot in the cache.

    Attributes:
        snapshot: What was read.
        from_disk: No read of this process has confirmed it yet.
        outdated: The memory is known to have changed since its read began.
    """

    snapshot: Snapshot
    from_disk: bool
    outdated: bool = False


class Refresh:
    """A read that is under way or has ended. `done` is set when it ends, failed or not."""

    def __init__(self, started_s: float, changes: int) -> None:
        self.started_s = started_s
        self.changes = changes
        """How many changes were known when it began."""
        self.done = anyio.Event()
        self.succeeded = False


@dataclass(slots=True)
class _Entry:
    cached: CachedSnapshot | None = None
    refresh: Refresh | None = None
    again: Refresh | None = None
    watchers: int = 0
    empty_reads: int = 0
    empty_since_s: float = 0.0
    missing_reads: int = 0
    saved_at_s: float = -math.inf
    saved_version: str = ""
    forgotten: int = 0
    changes: int = 0
    size_bytes: int = 0
    disk_lock: anyio.Lock = field(default_factory=anyio.Lock)
    loaded: bool = False


class Snapshots:
    """Snapshots of all agents in use.

    Args:
        source: Where blocks are read.
        store: The last good copies.
        emit: Where events go.
        clock: Unix time in seconds.
        read_timeout_s: No read takes longer.
        poll_s: How often agents of live calls are read again; less often where `POLLS_AT_ONCE`
            at a time cannot read them all within it. Those that were read within the last half of
            it are passed over: callers who speak have theirs read anyway.
        max_agents: Agents cached when no call is live for them; the least recently used are
            dropped first.
        max_bytes: Limit on the text of all of them, in bytes; the same are dropped first.
        breaker: Refuses reads while Letta is down.
    """

    def __init__(
        self,
        source: BlockSource,
        store: SnapshotStore,
        *,
        emit: Emit,
        clock: Callable[[], float],
        read_timeout_s: float = 5.0,
        poll_s: float = 10.0,
        max_agents: int = 10_000,
        max_bytes: int = MAX_BYTES,
        breaker: Breaker | None = None,
    ) -> None:
        self._source = source
        self._store = store
        self._emit = emit
        self._clock = clock
        self._read_timeout_s = read_timeout_s
        self._poll_s = poll_s
        self._max_agents = max_agents
        self._max_bytes = max_bytes
        self._bytes = 0
        self._breaker = breaker or Breaker()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._polls: list[Refresh] = []
        self._tasks: TaskGroup | None = None
        self.on_read: Callable[[str], Awaitable[None]] | None = None
        """Called with the agent id after each read that succeeded, changed or not."""

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve reads until cancelled. `refresh` works from the moment this has started."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            while True:
                watched = [agent_id for agent_id, entry in self._entries.items() if entry.watchers]
                if watched:
                    await self._poll(watched)
                else:
                    await anyio.sleep(self._poll_s)

    async def _poll(self, watched: list[str]) -> None:
        """Read these agents again, one after the other over `poll_s`."""
        for agent_id in watched:
            self._polls = [refresh for refresh in self._polls if not refresh.done.is_set()]
            if len(self._polls) >= POLLS_AT_ONCE:
                await self._polls[0].done.wait()
            entry = self._entries.get(agent_id)
            if entry is not None and entry.watchers and not self._was_just_read(entry):
                self._polls.append(self.refresh(agent_id))
            await anyio.sleep(self._poll_s / len(watched))

    def _was_just_read(self, entry: _Entry) -> bool:
        """Whether a poll may pass an agent over, whose caller's speech had it read."""
        cached = entry.cached
        return (
            cached is not None
            and not cached.from_disk
            and not cached.outdated
            and self._clock() - cached.snapshot.read_at_s < self._poll_s / 2
        )

    @property
    def degraded(self) -> bool:
        """Whether Letta counts as down: what is cached is served, and only probes go out."""
        return self._breaker.is_open

    @property
    def failing(self) -> bool:
        """Whether the last read failed because of Letta."""
        return self._breaker.failing

    def cached(self, agent_id: str) -> CachedSnapshot | None:
        """Return what is cached; never waits."""
        entry = self._entries.get(agent_id)
        return entry.cached if entry else None

    def watch(self, agent_id: str) -> None:
        """A call of this agent is live: keep its snapshot and poll it."""
        self._entry(agent_id).watchers += 1

    def unwatch(self, agent_id: str) -> None:
        """Ends one `watch`."""
        entry = self._entry(agent_id)
        entry.watchers = max(0, entry.watchers - 1)

    async def load(self, agent_id: str) -> CachedSnapshot | None:
        """Return what is cached, or else the last good copy on disk, read at most once."""
        entry = self._entry(agent_id)
        async with entry.disk_lock:
            if entry.cached is None and not entry.loaded:
                entry.loaded = True
                copy = await self._store.load(agent_id)
                if copy is not None and entry.cached is None:
                    # A copy dated in the future, by a clock that ran ahead, counts as read now.
                    read_at_s = min(copy.read_at_s, self._clock())
                    self._cache(
                        entry, CachedSnapshot(replace(copy, read_at_s=read_at_s), from_disk=True)
                    )
        return entry.cached

    def changed(self, agent_id: str) -> None:
        """Letta has changed the agent's memory: what was read before is no longer fresh."""
        entry = self._entry(agent_id)
        entry.changes += 1
        if entry.cached is not None:
            entry.cached = replace(entry.cached, outdated=True)

    def refresh(self, agent_id: str) -> Refresh:
        """Start a read of the agent and return it.

        Joins one already under way, unless the memory is known to have changed since that began:
        then another one runs after it.
        """
        entry = self._entry(agent_id)
        if entry.refresh is not None:
            if entry.refresh.changes == entry.changes:
                return entry.refresh
            if entry.again is None:
                entry.again = Refresh(self._clock(), entry.changes)
            return entry.again
        refresh = Refresh(self._clock(), entry.changes)
        if self._tasks is None or not self._breaker.admits(now_s=self._clock()):
            refresh.done.set()
            return refresh
        entry.refresh = refresh
        self._tasks.start_soon(self._read_until_current, agent_id, entry, refresh)
        return refresh

    async def forget(self, agent_id: str) -> None:
        """Erase an agent's memory here and on disk.

        Promises: a read that began before does not bring it back.

        Raises:
            OSError: the copy could not be erased.
        """
        entry = self._entry(agent_id)
        entry.forgotten += 1
        async with entry.disk_lock:
            self._cache(entry, None)
            entry.saved_version = ""
            await self._store.forget(agent_id)

    async def agent_ids(self) -> set[str]:
        """Return the ids of the agents whose memory is here or on disk."""
        here = {agent_id for agent_id, entry in self._entries.items() if entry.cached}
        return here | await self._store.agent_ids()

    async def _read_until_current(self, agent_id: str, entry: _Entry, refresh: Refresh) -> None:
        while True:
            try:
                refresh.succeeded = await self._read(agent_id, entry)
            except Exception as error:  # noqa: BLE001 - one read's fault must not end the calls
                self._emit(
                    telemetry.part_failed, part="memory read", error=type(error).__name__, hint=""
                )
            finally:
                refresh.done.set()
                entry.refresh, entry.again = entry.again, None
            if entry.refresh is None:
                return
            refresh = entry.refresh
            refresh.started_s = self._clock()
            refresh.changes = entry.changes
            if not self._breaker.admits(now_s=refresh.started_s):
                refresh.done.set()
                entry.refresh = None
                return

    async def _read(self, agent_id: str, entry: _Entry) -> bool:
        read_at_s = self._clock()
        forgotten = entry.forgotten
        changes = entry.changes
        verdict = False
        try:
            blocks = await self._read_in_time(agent_id)
            verdict = True
        except LettaError as error:
            verdict = True
            self._failed(agent_id, error, began_s=read_at_s)
            await self._forget_when_gone(agent_id, entry, error)
            return False
        finally:
            if not verdict:
                self._breaker.abandoned()
        self._answered()
        entry.missing_reads = 0
        if entry.forgotten != forgotten:
            return False
        before = entry.cached
        if not self._believable(agent_id, entry, blocks):
            return False
        snapshot = Snapshot.of(agent_id, blocks, read_at_s=read_at_s)
        self._cache(
            entry, CachedSnapshot(snapshot, from_disk=False, outdated=entry.changes != changes)
        )
        self._emit(
            telemetry.memory_read,
            agent=agent_id,
            version=snapshot.version,
            blocks=len(blocks),
            took_s=self._clock() - read_at_s,
        )
        if before is None or before.snapshot.version != snapshot.version:
            self._emit(
                telemetry.memory_changed,
                agent=agent_id,
                version=snapshot.version,
                blocks=len(blocks),
            )
        if self.on_read is not None:
            await self.on_read(agent_id)
        await self._save(entry, snapshot, forgotten=forgotten)
        return True

    async def _forget_when_gone(self, agent_id: str, entry: _Entry, error: LettaError) -> None:
        if not isinstance(error, AgentNotFound):
            return
        entry.missing_reads += 1
        if entry.missing_reads >= MISSING_READS and entry.cached is not None:
            try:
                await self.forget(agent_id)
            except OSError as failure:
                self._store_failed(failure)

    async def _read_in_time(self, agent_id: str) -> tuple[Block, ...]:
        try:
            with anyio.fail_after(self._read_timeout_s):
                return await self._source.read_blocks(agent_id)
        except TimeoutError:
            raise LettaUnavailable(
                f"no answer within {self._read_timeout_s:g} s",
                hint="check Letta's load, or raise SIDECAR_READ_TIMEOUT_S",
            ) from None

    def _answered(self) -> None:
        if self._breaker.succeeded(now_s=self._clock()):
            self._emit(telemetry.memory_breaker_closed)

    def _failed(self, agent_id: str, error: SidecarError, *, began_s: float) -> None:
        now_s = self._clock()
        self._emit(
            telemetry.memory_read_failed,
            agent=agent_id,
            error=f"{type(error).__name__}: {error.message}",
            hint=error.hint,
            took_s=now_s - began_s,
        )
        if isinstance(error, AgentNotFound):
            self._answered()  # the endpoint works; only this agent is missing
        elif self._breaker.failed(now_s=now_s, began_s=began_s):
            self._emit(
                telemetry.memory_breaker_opened, retry_in_s=self._breaker.retry_in_s(now_s=now_s)
            )

    def _believable(self, agent_id: str, entry: _Entry, blocks: tuple[Block, ...]) -> bool:
        """Return whether to believe a read: one that suddenly finds no blocks is repeated first."""
        had = len(entry.cached.snapshot.blocks) if entry.cached else 0
        if blocks or not had:
            entry.empty_reads = 0
            return True
        now_s = self._clock()
        if entry.empty_reads == 0:
            entry.empty_since_s = now_s
        entry.empty_reads += 1
        self._emit(telemetry.memory_suspect, agent=agent_id, blocks_before=had)
        return entry.empty_reads >= SUSPECT_READS and now_s - entry.empty_since_s >= SUSPECT_S

    async def _save(self, entry: _Entry, snapshot: Snapshot, *, forgotten: int) -> None:
        """Store the copy when it changed, and once a minute to keep its age current."""
        unchanged = entry.saved_version == snapshot.version
        if unchanged and snapshot.read_at_s - entry.saved_at_s < 60:  # noqa: PLR2004
            return
        async with entry.disk_lock:
            if entry.forgotten != forgotten:
                return
            try:
                await self._store.save(snapshot)
            except OSError as error:
                self._store_failed(error)
                return
            entry.saved_version = snapshot.version
            entry.saved_at_s = snapshot.read_at_s

    def _store_failed(self, error: OSError) -> None:
        self._emit(
            telemetry.part_failed,
            part="snapshot store",
            error=type(error).__name__,
            hint="check the free space and permissions of SIDECAR_DATA_DIR",
        )

    def _cache(self, entry: _Entry, cached: CachedSnapshot | None) -> None:
        entry.cached = cached
        before, entry.size_bytes = entry.size_bytes, _bytes_of(cached)
        self._bytes += entry.size_bytes - before
        self._evict(entry)

    def _entry(self, agent_id: str) -> _Entry:
        entry = self._entries.get(agent_id)
        if entry is None:
            entry = self._entries[agent_id] = _Entry()
            self._evict(entry)
        else:
            self._entries.move_to_end(agent_id)
        return entry

    def _evict(self, wanted: _Entry) -> None:
        """Drop the least recently used agents that no call, read or file uses, except `wanted`."""
        if self._fits():
            return
        for agent_id in list(islice(self._entries, _LOOKED_AT)):
            if self._fits():
                return
            entry = self._entries[agent_id]
            at_work = entry.watchers or entry.refresh is not None or entry.disk_lock.locked()
            if entry is not wanted and not at_work:
                self._bytes -= entry.size_bytes
                del self._entries[agent_id]

    def _fits(self) -> bool:
        return len(self._entries) <= self._max_agents and self._bytes <= self._max_bytes


def _bytes_of(cached: CachedSnapshot | None) -> int:
    """Return roughly how many bytes a snapshot takes up."""
    if cached is None:
        return 0
    blocks = cached.snapshot.blocks
    return sum(getsizeof(block.value) + getsizeof(block.description) for block in blocks)
