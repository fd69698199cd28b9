"""The cache of snapshots, in virtual time."""

import stat
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import AgentNotFound, LettaUnavailable
from sidecar.memory.snapshots import POLLS_AT_ONCE, SUSPECT_S, Snapshots
from sidecar.memory.store import DirectoryStore
from sidecar.model import Block, Snapshot
from sidecar.telemetry import Telemetry

pytestmark = pytest.mark.unit

A = "agent-a"


class Source:
    """Blocks that a test sets; each read takes `delay_s` and fails with `error`."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[Block, ...]] = {A: (Block("human", "Ada"),)}
        self.delay_s = 0.0
        self.error: Exception | None = None
        self.connections = 10_000
        self.reads = 0
        self.at_once = 0
        self.most_at_once = 0
        self._connected = anyio.Condition()

    async def read_blocks(self, agent_id: str) -> tuple[Block, ...]:
        self.reads += 1
        async with self._connected:
            while self.at_once >= self.connections:
                await self._connected.wait()
            self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            seen = self.values.get(agent_id, ())
            await anyio.sleep(self.delay_s)
            if self.error is not None:
                raise self.error
            return seen
        finally:
            self.at_once -= 1
            with anyio.CancelScope(shield=True):
                async with self._connected:
                    self._connected.notify()


class Store:
    def __init__(self) -> None:
        self.copies: dict[str, Snapshot] = {}
        self.save_s = 0.0
        self.read_only = False

    async def load(self, agent_id: str) -> Snapshot | None:
        return self.copies.get(agent_id)

    async def save(self, snapshot: Snapshot) -> None:
        await anyio.sleep(self.save_s)
        self.copies[snapshot.agent_id] = snapshot

    async def agent_ids(self) -> set[str]:
        return set(self.copies)

    async def forget(self, agent_id: str) -> None:
        if self.read_only:
            raise OSError(30, "Read-only file system")
        self.copies.pop(agent_id, None)


class SnapshotsBench:
    def __init__(self) -> None:
        self.source = Source()
        self.store = Store()
        self.telemetry = Telemetry(strict=True)
        self.snapshots = Snapshots(
            self.source,
            self.store,
            emit=self.telemetry.emit,
            clock=lambda: 1_000.0 + trio.current_time(),
            read_timeout_s=5.0,
            poll_s=10.0,
        )

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["SnapshotsBench"]:
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.snapshots.run)
            yield self
            tasks.cancel_scope.cancel()

    def outdated(self) -> bool:
        cached = self.snapshots.cached(A)
        return cached is not None and cached.outdated

    def value(self) -> str | None:
        cached = self.snapshots.cached(A)
        return cached.snapshot.blocks[0].value if cached and cached.snapshot.blocks else None


def virtual(test: Callable[[SnapshotsBench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with SnapshotsBench().running() as bench:
            await test(bench)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_many_who_ask_at_once_share_one_read() -> None:
    """A hundred refreshes while a read is under way share that one read."""

    async def body(bench: SnapshotsBench) -> None:
        bench.source.delay_s = 0.3
        refreshes = {id(bench.snapshots.refresh(A)) for _ in range(100)}
        await bench.snapshots.refresh(A).done.wait()
        assert len(refreshes) == 1
        assert bench.source.reads == 1
        assert bench.value() == "Ada"

    virtual(body)


def test_a_read_from_before_a_change_does_not_answer_for_it() -> None:
    """A read that began before a change leaves the memory outdated until the next read."""

    async def body(bench: SnapshotsBench) -> None:
        bench.source.delay_s = 1.0
        early = bench.snapshots.refresh(A)
        await anyio.sleep(0.5)
        bench.source.values[A] = (Block("human", "Grace"),)
        bench.snapshots.changed(A)
        late = bench.snapshots.refresh(A)
        assert late is bench.snapshots.refresh(A)
        await early.done.wait()
        assert bench.value() == "Ada"
        assert bench.outdated()
        await late.done.wait()
        assert bench.value() == "Grace"
        assert not bench.outdated()
        assert bench.source.reads == 2

    virtual(body)


@given(st.lists(st.sampled_from(["change", "read", "time"]), max_size=30))
def test_a_snapshot_older_than_a_known_change_is_outdated(steps: list[str]) -> None:
    """However reads and changes overlap, memory not outdated was read after the last change."""

    async def body(bench: SnapshotsBench) -> None:
        bench.source.delay_s = 1.0
        bench.source.values[A] = (Block("human", "0"),)
        changes = 0
        for step in steps:
            if step == "change":
                changes += 1
                bench.source.values[A] = (Block("human", str(changes)),)
                bench.snapshots.changed(A)
            elif step == "read":
                bench.snapshots.refresh(A)
            await anyio.sleep(0.4 if step == "time" else 0.0)
            if bench.snapshots.cached(A) is not None and not bench.outdated():
                assert bench.value() == str(changes)
        await bench.snapshots.refresh(A).done.wait()
        assert (bench.value(), bench.outdated()) == (str(changes), False)

    virtual(body)


def test_while_letta_is_down_the_last_good_copy_serves_and_the_breaker_spares_it() -> None:
    """Failures keep the copy, and after five in a row only probes read until one succeeds."""

    async def body(bench: SnapshotsBench) -> None:
        await bench.snapshots.refresh(A).done.wait()
        bench.source.error = LettaUnavailable("down")
        for _ in range(50):
            await bench.snapshots.refresh(A).done.wait()
        assert bench.value() == "Ada"
        assert bench.source.reads == 6
        assert bench.telemetry.counts["memory_breaker_opened"] == 1
        bench.source.error = None
        await anyio.sleep(2.0)
        refresh = bench.snapshots.refresh(A)
        await refresh.done.wait()
        assert refresh.succeeded
        assert bench.telemetry.counts["memory_breaker_closed"] == 1

    virtual(body)


def test_a_hanging_letta_ends_at_the_deadline() -> None:
    """A read without an answer ends at its time-out and counts as a failure."""

    async def body(bench: SnapshotsBench) -> None:
        bench.source.delay_s = 10_000.0
        started = trio.current_time()
        refresh = bench.snapshots.refresh(A)
        await refresh.done.wait()
        assert not refresh.succeeded
        assert trio.current_time() - started == pytest.approx(5.0)
        assert bench.telemetry.counts["memory_read_failed"] == 1

    virtual(body)


def test_a_missing_agent_does_not_open_the_breaker_for_the_others() -> None:
    """A missing agent does not open the breaker for other agents."""

    async def body(bench: SnapshotsBench) -> None:
        bench.source.error = AgentNotFound("gone")
        for _ in range(20):
            await bench.snapshots.refresh("agent-x").done.wait()
        bench.source.error = None
        await bench.snapshots.refresh(A).done.wait()
        assert bench.value() == "Ada"
        assert bench.telemetry.counts["memory_breaker_opened"] == 0

    virtual(body)


def test_the_memory_of_an_agent_that_is_gone_is_served_no_more() -> None:
    """After three 404s in a row an agent's copy is erased from memory and from disk."""

    async def body(bench: SnapshotsBench) -> None:
        await bench.snapshots.refresh(A).done.wait()
        bench.source.error = AgentNotFound("gone")
        for expected in ("Ada", "Ada", None):
            await bench.snapshots.refresh(A).done.wait()
            assert bench.value() == expected
        assert bench.store.copies == {}

    virtual(body)


def test_memory_that_is_suddenly_empty_is_not_believed_at_once() -> None:
    """An empty answer replaces a full copy only after it has been empty for long."""

    async def body(bench: SnapshotsBench) -> None:
        await bench.snapshots.refresh(A).done.wait()
        bench.source.values[A] = ()
        await bench.snapshots.refresh(A).done.wait()
        assert bench.value() == "Ada"
        assert bench.telemetry.counts["memory_suspect"] == 1
        for _ in range(4):
            await anyio.sleep(SUSPECT_S / 3)
            await bench.snapshots.refresh(A).done.wait()
        assert bench.value() is None

    virtual(body)


def test_a_start_without_letta_serves_the_copy_on_disk() -> None:
    """The copy on disk is served at once, marked as read from disk, until a read confirms it."""

    async def body(bench: SnapshotsBench) -> None:
        bench.store.copies[A] = Snapshot.of(A, [Block("human", "old")], read_at_s=1.0)
        cached = await bench.snapshots.load(A)
        assert cached is not None
        assert cached.from_disk
        assert bench.value() == "old"
        await bench.snapshots.refresh(A).done.wait()
        assert bench.value() == "Ada"
        assert bench.store.copies[A].blocks[0].value == "Ada"

    virtual(body)


def test_a_copy_of_a_clock_that_was_ahead_is_no_younger_than_now() -> None:
    """A copy dated in the future is taken to be no younger than now."""

    async def body(bench: SnapshotsBench) -> None:
        bench.store.copies[A] = Snapshot.of(A, [Block("human", "old")], read_at_s=9e12)
        cached = await bench.snapshots.load(A)
        assert cached is not None
        assert 0 <= cached.snapshot.read_at_s < 9e12

    virtual(body)


def test_what_is_held_for_calls_to_come_is_bounded_in_bytes() -> None:
    """Copies held for later calls are bounded in bytes; live calls' and those on disk are not."""

    async def body(bench: SnapshotsBench) -> None:
        bench.snapshots.watch(A)
        await bench.snapshots.refresh(A).done.wait()
        names = [f"agent-{n}" for n in range(300)]
        for name in names:
            bench.source.values[name] = (Block("human", name[-1] * (1 << 20)),)
            await bench.snapshots.refresh(name).done.wait()
        await anyio.sleep(1)
        cached = [one for name in names if (one := bench.snapshots.cached(name))]
        assert 32 <= len(cached) <= 64
        assert bench.value() == "Ada"
        assert bench.snapshots.cached(names[-1]) is not None
        again = await bench.snapshots.load(names[0])
        assert again is not None
        assert again.snapshot.blocks == bench.source.values[names[0]]

    virtual(body)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("wurlfc")), max_size=60))
def test_no_call_loses_its_memory_to_a_bound(steps: list[tuple[int, str]]) -> None:
    """However agents are used, a watched agent stays in memory."""

    async def body(bench: SnapshotsBench) -> None:
        snapshots, watched = bench.snapshots, Counter[str]()
        snapshots._max_agents, snapshots._max_bytes = 2, 200
        for number, step in steps:
            name = f"agent-{number}"
            bench.source.values[name] = (Block("human", "x" * 40 * number),)
            match step:
                case "w":
                    snapshots.watch(name)
                    watched[name] += 1
                    await snapshots.refresh(name).done.wait()
                case "u" if watched[name]:
                    snapshots.unwatch(name)
                    watched[name] -= 1
                case "r":
                    await snapshots.refresh(name).done.wait()
                case "l":
                    await snapshots.load(name)
                case "f" if not watched[name]:
                    await snapshots.forget(name)
                case "c":
                    snapshots.changed(name)
                case _:
                    pass
            await anyio.sleep(0.1)
            assert all(snapshots.cached(one) for one, times in watched.items() if times)
            entries = snapshots._entries.values()
            assert snapshots._bytes == sum(entry.size_bytes for entry in entries)

    virtual(body)


def test_agents_of_live_calls_are_polled_and_others_are_not() -> None:
    """A watched agent is read at each poll, and no more after its call ends."""

    async def body(bench: SnapshotsBench) -> None:
        bench.snapshots.watch(A)
        await anyio.sleep(35.0)
        assert bench.source.reads == 3
        bench.snapshots.unwatch(A)
        await anyio.sleep(100.0)
        assert bench.source.reads == 3

    virtual(body)


def test_a_poll_passes_over_what_was_just_read() -> None:
    """An agent that was read for its caller's speech is not polled, unless it has changed since."""

    async def body(bench: SnapshotsBench) -> None:
        bench.snapshots.watch(A)
        for _ in range(10):
            await bench.snapshots.refresh(A).done.wait()
            await anyio.sleep(4.1)  # polls come at 10, 20, ... s: at no moment of these
        assert bench.source.reads == 10
        bench.snapshots.changed(A)
        await anyio.sleep(12.0)
        assert bench.source.reads == 11

    virtual(body)


def test_a_hiccup_costs_one_cool_down_however_many_are_on_the_line() -> None:
    """Reads that all hung at once cost one cool-down of the breaker, not several."""

    async def body(bench: SnapshotsBench) -> None:
        bench.source.delay_s = 10_000.0
        refreshes = [bench.snapshots.refresh(f"agent-{n}") for n in range(50)]
        for refresh in refreshes:
            await refresh.done.wait()
        bench.source.delay_s = 0.02
        await anyio.sleep(1.1)
        refresh = bench.snapshots.refresh(A)
        await refresh.done.wait()
        assert refresh.succeeded
        assert bench.telemetry.counts["memory_breaker_opened"] == 1

    virtual(body)


def test_a_thousand_live_agents_are_polled_over_fifty_connections() -> None:
    """A poll of a thousand agents causes no failed reads, and reads each about once per period."""

    async def body(bench: SnapshotsBench) -> None:
        bench.source.delay_s = 0.3
        bench.source.connections = 50
        for n in range(1_000):
            bench.snapshots.watch(f"agent-{n}")
        await anyio.sleep(41.0)
        assert bench.telemetry.counts["memory_read_failed"] == 0
        assert 3_000 <= bench.source.reads <= 4_000
        bench.source.delay_s = 1.0
        await anyio.sleep(40.0)
        assert bench.telemetry.counts["memory_read_failed"] == 0
        assert bench.source.most_at_once <= POLLS_AT_ONCE

    virtual(body)


def test_one_reads_fault_ends_neither_the_others_nor_the_sidecar() -> None:
    """An unexpected error in a read or on the disk is logged, and reads go on."""

    async def body(bench: SnapshotsBench) -> None:
        await bench.snapshots.refresh(A).done.wait()
        bench.source.error = KeyError("not ours")
        refresh = bench.snapshots.refresh(A)
        await refresh.done.wait()
        assert not refresh.succeeded
        bench.store.read_only = True
        bench.source.error = AgentNotFound("gone")
        for _ in range(3):
            await bench.snapshots.refresh(A).done.wait()
        assert bench.value() is None
        assert bench.telemetry.counts["part_failed"] == 2
        bench.source.error = None
        await bench.snapshots.refresh(A).done.wait()
        assert bench.value() == "Ada"

    virtual(body)


@pytest.mark.parametrize("at_s", [0.5, 1.5], ids=["while it reads", "while it saves"])
def test_a_read_under_way_brings_nothing_forgotten_back(at_s: float) -> None:
    """A read that began before its agent was forgotten brings nothing back."""

    async def body(bench: SnapshotsBench) -> None:
        bench.source.delay_s = 1.0
        bench.store.save_s = 1.0
        refresh = bench.snapshots.refresh(A)
        await anyio.sleep(at_s)
        await bench.snapshots.forget(A)
        await refresh.done.wait()
        assert bench.value() is None
        assert bench.store.copies == {}

    virtual(body)


def test_forgetting_erases_the_copy_that_a_kill_left_half_way(tmp_path: Path) -> None:
    """A copy left half written by a kill is replaced by the next one, and erased with it."""
    store = DirectoryStore(tmp_path)
    snapshot = Snapshot.of(A, [Block("human", "Ada")], read_at_s=1.0)
    anyio.run(store.save, snapshot)
    (copy,) = tmp_path.iterdir()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    copy.rename(copy.with_suffix(".new"))  # as a kill before the rename leaves it
    anyio.run(store.save, snapshot)
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]
    copy.rename(copy.with_suffix(".new"))
    anyio.run(store.forget, A)
    assert list(tmp_path.iterdir()) == []


def test_forgetting_an_agent_erases_what_is_held_and_kept() -> None:
    """A forgotten agent's copy is erased from memory and from disk."""

    async def body(bench: SnapshotsBench) -> None:
        await bench.snapshots.refresh(A).done.wait()
        await bench.snapshots.forget(A)
        assert bench.value() is None
        assert bench.store.copies == {}

    virtual(body)
