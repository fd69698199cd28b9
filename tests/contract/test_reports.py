"""Reports on a journal, from the process that owns it and from a command that reads its file."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.journal.policy import PostPolicy
from sidecar.journal.port import Journal
from sidecar.journal.postgres import PostgresJournal
from sidecar.journal.postgres.reports import reports_of_database
from sidecar.journal.reports import Reports
from sidecar.journal.sqlite import SqliteJournal
from sidecar.journal.sqlite.reports import reports_of_file
from sidecar.model import AgentRef, Call, Turn
from sidecar.testing.memory_journal import MemoryJournal
from tests.set_clock import Clock

pytestmark = [pytest.mark.contract, pytest.mark.anyio]

NOW_S = 1_800_000_000.0
ADA_KEY = "a1b2"
BOB_KEY = "a1c3"
ADA = AgentRef("acme", caller_key=ADA_KEY)
BOB = AgentRef("acme", caller_key=BOB_KEY)
FIXED = AgentRef("acme", agent_id="agent-fixed")


@dataclass
class ReportsBench:
    """A journal, and what reports on it: itself, or a reader of its file or database."""

    clock: Clock
    journal: Journal
    reports: Reports

    async def call(self, name: str, ref: AgentRef, *words: str, caller: str = "") -> None:
        """Store a call of a caller with these words."""
        key = f"acme/{name}"
        await self.journal.open_call(
            Call(key, ref, "livekit", caller or ref.caller_key or "", self.clock())
        )
        await self.journal.append(
            [
                Turn(key, f"{name}-{n}", n, "caller", text, self.clock())
                for n, text in enumerate(words, 1)
            ]
        )


@pytest.fixture(params=["memory", "owner", "file", "postgres-owner", "postgres"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ReportsBench]:
    clock, policy = Clock(NOW_S), PostPolicy(max_turns=2, max_age_s=60.0)
    if request.param == "memory":
        journal = MemoryJournal(policy, clock=clock)
        yield ReportsBench(clock, journal, journal)
        return
    path = tmp_path / "journal.db"
    async with AsyncExitStack() as stack:
        if request.param.startswith("postgres"):
            url = request.getfixturevalue("postgres").emptied()
            journal = await PostgresJournal.open(url, secret=b"s" * 32, policy=policy, clock=clock)
            stack.push_async_callback(journal.aclose)
            reports: Reports = journal
            if request.param == "postgres":
                reports = await stack.enter_async_context(reports_of_database(url))
            yield ReportsBench(clock, journal, reports)
            return
        journal = await SqliteJournal.open(path, policy=policy, clock=clock)
        stack.push_async_callback(journal.aclose)
        reports = journal
        if request.param == "file":
            reports = await stack.enter_async_context(reports_of_file(path))
        yield ReportsBench(clock, journal, reports)


async def test_calls_are_listed_with_their_figures(bench: ReportsBench) -> None:
    """The newest calls come first, all, the live ones or one caller's, each with its figures."""
    await bench.call("one", ADA, "a", "b")
    await bench.call("two", BOB, "c")
    await bench.call("three", ADA)
    await bench.journal.close_call("acme/one", epoch=1, at_s=NOW_S)
    rows = await bench.reports.calls(limit=9)
    assert [(row.call.call_id, row.turns, row.undelivered) for row in rows] == [
        ("three", 0, 0),
        ("two", 1, 1),
        ("one", 2, 2),
    ]
    (batch,) = await bench.journal.claim(1, now_s=NOW_S, post_timeout_s=1.0)
    await bench.journal.settle(batch, now_s=NOW_S)
    one = await bench.reports.call_row("acme/one")
    assert one is not None
    assert (one.turns, one.undelivered) == (2, 0)
    assert await bench.reports.call_row("acme/none") is None
    every = await bench.reports.calls(limit=-1)
    assert every[:2] == await bench.reports.calls(limit=2) == rows[:2]
    live = await bench.reports.calls(limit=9, live=True)
    assert [row.call.call_id for row in live] == ["three", "two"]
    of_ada = await bench.reports.calls(limit=9, caller_key=ADA_KEY)
    assert [row.call.call_id for row in of_ada] == ["three", "one"]
    assert sorted(await bench.reports.call_keys()) == ["acme/one", "acme/three", "acme/two"]


async def test_callers_are_found_by_the_beginning_of_their_key(bench: ReportsBench) -> None:
    """The caller keys that begin with the given digits are listed once each, sorted."""
    await bench.call("one", BOB)
    await bench.call("two", ADA)
    await bench.call("three", ADA)
    assert await bench.reports.caller_keys("a1") == [ADA_KEY, BOB_KEY]
    assert await bench.reports.caller_keys("a1b") == [ADA_KEY]
    assert await bench.reports.caller_keys("b") == []


async def test_a_callers_agents_are_those_its_calls_went_to(bench: ReportsBench) -> None:
    """The agent that was learnt for the caller and one that a call named are both listed."""
    await bench.call("one", ADA)
    await bench.call("two", FIXED, caller=ADA_KEY)
    assert await bench.reports.agents_of(ADA_KEY) == ["agent-fixed"]
    await bench.journal.learn_agent(ADA, "agent-ada")
    assert await bench.reports.agents_of(ADA_KEY) == ["agent-ada", "agent-fixed"]
    assert await bench.reports.agents_of(BOB_KEY) == []


async def test_turns_are_followed_by_the_time_they_were_stored(bench: ReportsBench) -> None:
    """Turns stored at or after a moment come in the order of storage, each with its time."""
    await bench.call("one", ADA, "a", "b")
    bench.clock.now_s += 5
    await bench.call("two", BOB, "c")
    said = [(at_s, turn.text) for at_s, turn in await bench.reports.turns_since(NOW_S)]
    assert said == [(NOW_S, "a"), (NOW_S, "b"), (NOW_S + 5, "c")]
    assert [turn.text for _, turn in await bench.reports.turns_since(NOW_S + 5)] == ["c"]


async def test_a_batch_is_found_by_its_first_characters(bench: ReportsBench) -> None:
    """A batch comes with only its own turns; an id that matches none or several gives None."""
    await bench.call("one", ADA, "a", "b", "c")
    await bench.call("two", BOB, "d", "e")
    one, two = await bench.journal.claim(2, now_s=NOW_S, post_timeout_s=1.0)
    for batch in (one, two):
        for name in (batch.batch_id, batch.batch_id[:20]):
            found = await bench.reports.batch(name)
            assert found is not None
            assert (found[0].batch_id, found[1]) == (batch.batch_id, batch.turns)
    assert await bench.reports.batch("no such batch") is None
    assert await bench.reports.batch("") is None
