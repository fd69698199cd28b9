"""Searches of archival memory while a caller waits, in virtual time."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio

from sidecar.errors import LettaError, LettaUnavailable, NotOffered
from sidecar.memory.archive import CACHED_S, QUESTION_CHARS, Archive
from sidecar.model import Passage
from sidecar.telemetry import Telemetry

pytestmark = [pytest.mark.unit, pytest.mark.backend("virtual-time")]

BOAT = (Passage("passage-1", "Her boat is called Möwe."),)


class Source:
    """Finds `found` after `delay_s`, or fails with `error`."""

    def __init__(self) -> None:
        self.found = BOAT
        self.delay_s = 0.1
        self.error: LettaError | None = None
        self.asked: list[tuple[str, str]] = []
        self.at_work = 0

    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        self.asked.append((agent_id, query))
        self.at_work += 1
        try:
            await anyio.sleep(self.delay_s)
        finally:
            self.at_work -= 1
        if self.error is not None:
            raise self.error
        return self.found[:limit]


class ArchiveBench:
    def __init__(self) -> None:
        self.source = Source()
        self.telemetry = Telemetry()
        self.archive = Archive(self.source, emit=self.telemetry.emit, clock=trio.current_time)

    async def search(self, question: str, *, agent: str = "a", budget_s: float = 1.0) -> float:
        """Search, expecting what the source has; return how many seconds it took."""
        began_s = trio.current_time()
        assert await self.archive.search(agent, question, budget_s=budget_s) == self.source.found
        return trio.current_time() - began_s


@asynccontextmanager
async def opened() -> AsyncGenerator[ArchiveBench]:
    bench = ArchiveBench()
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.archive.run)
        yield bench
        nursery.cancel_scope.cancel()


@pytest.mark.anyio
class TestArchive:
    async def test_who_asks_waits_for_no_longer_than_the_budget(self) -> None:
        """While Letta hangs, each search ends empty when its budget is used up."""
        async with opened() as bench:
            bench.source.delay_s = 3_600.0
            for question in ("boat", "dog"):
                began_s = trio.current_time()
                assert await bench.archive.search("a", question, budget_s=0.8) == ()
                assert trio.current_time() - began_s == pytest.approx(0.8)

    async def test_a_late_answer_serves_the_same_question(self) -> None:
        """An answer that came after the budget is served at once when the question is repeated."""
        async with opened() as bench:
            bench.source.delay_s = 2.0
            assert await bench.archive.search("a", "Which  boat?", budget_s=0.5) == ()
            await trio.sleep(2.0)
            assert await bench.search("Which boat?") == 0.0
            assert bench.source.asked == [("a", "Which boat?")]

    async def test_one_search_for_the_same_question_at_once(self) -> None:
        """Repeats of a question wait for the search that is already under way, and start none."""
        async with opened() as bench, trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(bench.search, "boat")
        assert len(bench.source.asked) == 1

    async def test_an_answer_is_kept_for_a_while_and_for_its_agent(self) -> None:
        """An answer is kept for its own agent only, and for a limited time."""
        async with opened() as bench:
            await bench.search("boat")
            await bench.search("boat", agent="b")
            await trio.sleep(CACHED_S)
            await bench.search("boat")
            assert [agent for agent, _ in bench.source.asked] == ["a", "b", "a"]

    async def test_failures_open_the_breaker(self) -> None:
        """Three failures in a row stop further searches, and a later probe starts them again."""
        async with opened() as bench:
            bench.source.error = LettaUnavailable("503")
            for number in range(5):
                assert await bench.archive.search("a", f"boat {number}", budget_s=1.0) == ()
            assert len(bench.source.asked) == 3
            assert bench.telemetry.counts["archive_search_failed"] == 3
            bench.source.error = None
            await trio.sleep(2.0)
            await bench.search("boat 9")

    async def test_a_failed_search_is_not_kept(self) -> None:
        """A question whose search failed is searched again."""
        async with opened() as bench:
            bench.source.error = LettaUnavailable("503")
            assert await bench.archive.search("a", "boat", budget_s=1.0) == ()
            bench.source.error = None
            await bench.search("boat")

    async def test_a_letta_without_an_archive_is_asked_once(self) -> None:
        """A Letta without an archive is no failure, and is not asked again."""
        async with opened() as bench:
            bench.source.error = NotOffered("none here")
            for question in ("boat", "dog"):
                assert await bench.archive.search("a", question, budget_s=1.0) == ()
            assert len(bench.source.asked) == 1
            assert bench.telemetry.counts["archive_search_failed"] == 0

    async def test_only_so_many_at_once(self) -> None:
        """At most 16 hanging searches run at once, which leaves connections for block reads."""
        async with opened() as bench:
            bench.source.delay_s = 60.0
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(self._nothing, bench, f"boat {number}")
                await trio.sleep(0.1)
                assert bench.source.at_work == 16

    async def test_no_question_is_not_asked(self) -> None:
        """A blank question is not sent, and a long one is cut."""
        async with opened() as bench:
            assert await bench.archive.search("a", "  ", budget_s=1.0) == ()
            await bench.search("x" * 10_000)
            assert [len(query) for _, query in bench.source.asked] == [QUESTION_CHARS]

    @staticmethod
    async def _nothing(bench: ArchiveBench, question: str) -> None:
        assert await bench.archive.search("a", question, budget_s=0.5) == ()
