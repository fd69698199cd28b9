"""The cache of snapshots, in virtual time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
import trio.testing

from sidecar.errors import AgentNotFound, LettaError, LettaUnavailable
from sidecar.memory.snapshots import SUSPECT_S, Snapshots
from sidecar.model import Block, Snapshot
from sidecar.telemetry import Telemetry

pytestmark = pytest.mark.unit

A = "agent-a"


class Source:
    """Blocks that a test sets; each read takes `delay_s` and fails with `error`."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[Block, ...]] = {A: (Block("human", "Ada"),)}
        self.delay_s = 0.0
        self.error: LettaError | None = None
        self.reads = 0
        self.at_once = 0

    async def read_blocks(self, agent_id: str) -> tuple[Block, ...]:
        self.reads += 1
        self.at_once += 1
        try:
            seen = self.values.get(agent_id, ())
            await anyio.sleep(self.delay_s)
            if self.error is not None:
                raise self.error
            return seen
        finally:
            self.at_once -= 1


class Store:
    def __init__(self) -> None:
        self.copies: dict[str, Snapshot] = {}

    async def load(self, agent_id: str) -> Snapshot | None:
        return self.copies.get(agent_id)

    async def save(self, snapshot: Snapshot) -> None:
        self.copies[snapshot.agent_id] = snapshot

    async def forget(self, agent_id: str) -> None:
        self.copies.pop(agent_id, None)


class Bench:
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
    async def running(self) -> AsyncIterator["Bench"]:
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.snapshots.run)
            yield self
            tasks.cancel_scope.cancel()

    def value(self) -> str | None:
        held = self.snapshots.held(A)
        return held.snapshot.blocks[0].value if held and held.snapshot.blocks else None


def virtual(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Bench().running() as bench:
            await test(bench)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_many_who_ask_at_once_share_one_read() -> None:
    """Single flight: a hundred refreshes while one read is under way cost one request."""

    async def body(bench: Bench) -> None:
        bench.source.delay_s = 0.3
        refreshes = {id(bench.snapshots.refresh(A)) for _ in range(100)}
        await bench.snapshots.refresh(A).done.wait()
        assert len(refreshes) == 1
        assert bench.source.reads == 1
        assert bench.value() == "Ada"

    virtual(body)


def test_a_read_from_before_a_change_does_not_answer_for_it() -> None:
    """After a settled batch the memory shown is the one read after it."""

    async def body(bench: Bench) -> None:
        bench.source.delay_s = 1.0
        early = bench.snapshots.refresh(A)
        await anyio.sleep(0.5)
        bench.source.values[A] = (Block("human", "Grace"),)
        late = bench.snapshots.refresh(A, changed_since=True)
        assert late is bench.snapshots.refresh(A, changed_since=True)
        await early.done.wait()
        assert bench.value() == "Ada"
        await late.done.wait()
        assert bench.value() == "Grace"
        assert bench.source.reads == 2

    virtual(body)


def test_while_letta_is_down_the_last_good_copy_serves_and_the_breaker_spares_it() -> None:
    """Failures leave the copy in place; after five in a row reads are refused but for probes."""

    async def body(bench: Bench) -> None:
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
    """A read that gets no answer is given up after its time-out and counted as a failure."""

    async def body(bench: Bench) -> None:
        bench.source.delay_s = 10_000.0
        started = trio.current_time()
        refresh = bench.snapshots.refresh(A)
        await refresh.done.wait()
        assert not refresh.succeeded
        assert trio.current_time() - started == pytest.approx(5.0)
        assert bench.telemetry.counts["memory_read_failed"] == 1

    virtual(body)


def test_a_missing_agent_does_not_open_the_breaker_for_the_others() -> None:
    """One wrong agent id is that agent's trouble alone."""

    async def body(bench: Bench) -> None:
        bench.source.error = AgentNotFound("gone")
        for _ in range(20):
            await bench.snapshots.refresh("agent-x").done.wait()
        bench.source.error = None
        await bench.snapshots.refresh(A).done.wait()
        assert bench.value() == "Ada"
        assert bench.telemetry.counts["memory_breaker_opened"] == 0

    virtual(body)


def test_the_memory_of_an_agent_that_is_gone_is_served_no_more() -> None:
    """One 404 may be a fault; after three in a row the copy is erased, here and on disk."""

    async def body(bench: Bench) -> None:
        await bench.snapshots.refresh(A).done.wait()
        bench.source.error = AgentNotFound("gone")
        for expected in ("Ada", "Ada", None):
            await bench.snapshots.refresh(A).done.wait()
            assert bench.value() == expected
        assert bench.store.copies == {}

    virtual(body)


def test_memory_that_is_suddenly_empty_is_not_believed_at_once() -> None:
    """An empty list after a full one keeps the last good copy, until it is empty for long."""

    async def body(bench: Bench) -> None:
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
    """The last good copy is at hand at once and marked as unconfirmed."""

    async def body(bench: Bench) -> None:
        bench.store.copies[A] = Snapshot.of(A, [Block("human", "old")], read_at_s=1.0)
        held = await bench.snapshots.load(A)
        assert held is not None
        assert held.from_disk
        assert bench.value() == "old"
        await bench.snapshots.refresh(A).done.wait()
        assert bench.value() == "Ada"
        assert bench.store.copies[A].blocks[0].value == "Ada"

    virtual(body)


def test_agents_of_live_calls_are_polled_and_others_are_not() -> None:
    """A watched agent is read each poll; after the call ends it is left alone."""

    async def body(bench: Bench) -> None:
        bench.snapshots.watch(A)
        await anyio.sleep(35.0)
        assert bench.source.reads == 3
        bench.snapshots.unwatch(A)
        await anyio.sleep(100.0)
        assert bench.source.reads == 3

    virtual(body)


def test_forgetting_an_agent_erases_what_is_held_and_kept() -> None:
    """Nothing of a forgotten agent is served again from memory or disk."""

    async def body(bench: Bench) -> None:
        await bench.snapshots.refresh(A).done.wait()
        await bench.snapshots.forget(A)
        assert bench.value() is None
        assert bench.store.copies == {}

    virtual(body)
