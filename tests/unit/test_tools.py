"""Tools: each id runs once within its deadline, and the example declares them correctly."""

import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trio
from anyio.abc import TaskGroup

from sidecar.errors import JournalError
from sidecar.journal.sql import SqlJournal
from sidecar.memory.archive import Archive
from sidecar.model import AgentRef, Call, Passage
from sidecar.testing.memory_journal import POLICY, MemoryJournal
from sidecar.tools.recall import Recall
from sidecar.tools.tool import FAILED, RUNS_LIMIT, TOO_LONG, Answered, InCall, Tool, ToolRuns

pytestmark = [pytest.mark.unit, pytest.mark.anyio, pytest.mark.backend("virtual-time")]

CALL = Call("t/c1", AgentRef("t", agent_id="agent-1"), "vapi", "k1", 0.0)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples/vapi"


class Slow:
    """A tool that takes `takes_s` and counts its runs."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.runs = 0
        self.tool = Tool("slow", "", {}, 5.0, self)

    async def __call__(self, call: InCall | None, arguments: Mapping[str, Any]) -> str:
        self.runs += 1
        number = self.runs
        await anyio.sleep(self.takes_s)
        return f"answer {number}"


def runs_of() -> ToolRuns:
    """The runs of one call, at a replica of its own journal."""
    return ToolRuns(
        MemoryJournal(clock=trio.current_time), clock=trio.current_time, spawn=nothing_else
    )


def nothing_else(*_: object) -> None:
    pytest.fail("a call that is not stored stores no answer")


class Nothing:
    """An archive with nothing in it."""

    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        return ()


async def test_an_id_runs_once_and_answers_every_time() -> None:
    """Repeats of an id wait for its run or get its answer, and the tool runs once."""
    runs, slow = runs_of(), Slow(1.0)
    answers: list[Answered] = []

    async def ask() -> None:
        answers.append(await runs.run(slow.tool, "one", None, {}))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)
    await ask()
    assert answers == [Answered("answer 1")] * 4
    assert slow.runs == 1


async def test_requests_without_an_id_each_run() -> None:
    """Requests without an id each run."""
    runs, slow = runs_of(), Slow(0.0)
    texts = [(await runs.run(slow.tool, "", None, {})).text for _ in range(2)]
    assert texts == ["answer 1", "answer 2"]


async def test_a_run_ends_at_its_deadline() -> None:
    """A tool that exceeds its deadline is cancelled, and each request of that id says so."""
    runs, slow = runs_of(), Slow(60.0)
    began_s = trio.current_time()
    assert await runs.run(slow.tool, "one", None, {}) == Answered(TOO_LONG, failed=True)
    assert trio.current_time() - began_s == pytest.approx(5.0)
    assert await runs.run(slow.tool, "one", None, {}) == Answered(TOO_LONG, failed=True)
    assert slow.runs == 1


async def test_a_run_that_fails_keeps_nobody_waiting() -> None:
    """A repeat of a run that raised is answered as failed."""

    async def fails(*_: object, **__: object) -> str:
        raise RuntimeError

    runs, tool = runs_of(), Tool("fails", "", {}, 5.0, fails)
    with pytest.raises(RuntimeError):
        await runs.run(tool, "one", None, {})
    assert (await runs.run(tool, "one", None, {})).failed


async def test_no_more_runs_are_kept_than_said() -> None:
    """Only the newest answers of a call are kept."""
    runs, slow = runs_of(), Slow(0.0)
    for number in range(RUNS_LIMIT + 1):
        await runs.run(slow.tool, str(number), None, {})
    assert (await runs.run(slow.tool, "1", None, {})).text == "answer 2"
    assert (await runs.run(slow.tool, "0", None, {})).text == f"answer {RUNS_LIMIT + 2}"


class Replicas:
    """The runs of one stored call at two replicas on one journal."""

    def __init__(self, tasks: TaskGroup) -> None:
        journal = MemoryJournal(clock=trio.current_time)
        other = SqlJournal(
            journal.executor, policy=POLICY, secret=b"", clock=trio.current_time, replica="other"
        )
        self.journals = journal, other

        def spawn(job: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
            tasks.start_soon(job, *args)

        self.runs = [ToolRuns(one, clock=trio.current_time, spawn=spawn) for one in self.journals]
        live: Any = SimpleNamespace(call=CALL)
        self.call = InCall(live, _nothing_said)

    async def ask(self, which: int, tool: Tool, run_id: str = "one") -> Answered:
        return await self.runs[which].run(tool, run_id, self.call, {})


@asynccontextmanager
async def replicas_of_a_call(*, stored: bool = True) -> AsyncGenerator[Replicas]:
    async with anyio.create_task_group() as tasks:
        replicas = Replicas(tasks)
        if stored:
            await replicas.journals[0].open_call(CALL)
        yield replicas


async def _nothing_said() -> tuple[()]:
    return ()


async def test_a_tool_runs_at_one_replica() -> None:
    """A repeat that reaches another replica waits for the run of the first, and has its answer."""
    slow = Slow(1.0)
    answers: list[Answered] = []
    async with replicas_of_a_call() as replicas:

        async def ask(which: int) -> None:
            answers.append(await replicas.ask(which, slow.tool))

        async with anyio.create_task_group() as tasks:
            for which in (0, 1):
                tasks.start_soon(ask, which)
        await ask(1)
    assert answers == [Answered("answer 1")] * 3
    assert slow.runs == 1


async def test_a_run_of_a_replica_that_died_is_not_run_again() -> None:
    """What another replica began and did not end may have been done: the model is told no more."""
    slow = Slow(0.0)
    async with replicas_of_a_call() as replicas:
        with anyio.move_on_after(0.5):
            await replicas.ask(0, Slow(60.0).tool)
        assert await replicas.ask(1, slow.tool) == Answered(TOO_LONG, failed=True)
    assert slow.runs == 0


async def test_an_answer_waits_for_no_journal() -> None:
    """What a tool has done is answered at once, however long it takes to store that."""
    slow = Slow(0.0)
    async with replicas_of_a_call() as replicas:
        stores = anyio.Event()

        async def hangs(*_: object) -> None:
            stores.set()
            await anyio.sleep(1_000.0)

        replicas.journals[0].answer = hangs  # type: ignore[method-assign]
        began_s = trio.current_time()
        assert await replicas.ask(0, slow.tool) == Answered("answer 1")
        assert trio.current_time() == began_s
        await stores.wait()


async def test_no_answer_is_stored_for_a_call_that_is_not() -> None:
    """Of a call that is not stored nothing is, since nobody could erase it with its caller."""
    slow = Slow(0.0)
    async with replicas_of_a_call(stored=False) as replicas:
        assert await replicas.ask(0, slow.tool) == Answered("answer 1")
        assert await replicas.ask(1, slow.tool) == Answered(TOO_LONG, failed=True)
    assert slow.runs == 1
    rows = await replicas.journals[0].executor.read(lambda tx: tx.rows("SELECT answer FROM once"))
    assert rows == [("",)]


async def test_a_repeatable_tool_asks_no_other_replica() -> None:
    """A tool that only reads runs where it is asked, also while the journal fails."""
    slow = Slow(0.0)
    async with replicas_of_a_call() as replicas:

        async def fails(*_: object, **__: object) -> str | None:
            raise JournalError("the disk is gone", hint="")

        for journal in replicas.journals:
            journal.first = fails
        reads = replace(slow.tool, repeatable=True)
        answers = [(await replicas.ask(which, reads)).text for which in (0, 1)]
        assert answers == ["answer 1", "answer 2"]
        assert await replicas.ask(0, slow.tool, "two") == Answered(FAILED, failed=True)
    assert slow.runs == 2


async def test_nothing_is_told_of_a_call_that_is_not_known() -> None:
    """`recall` without a known call answers that nothing is remembered."""
    recall = Recall(Archive(Nothing(), emit=lambda _event, **_fields: None, clock=lambda: 0.0))
    answered = await runs_of().run(recall.tool, "one", None, {"query": "her dog"})
    assert answered == Answered("Nothing about this is remembered.")


def test_the_example_declares_the_tools_as_they_are() -> None:
    """The example's assistant declares the tool's name, description and parameters."""
    recall = Recall(Archive(Nothing(), emit=lambda _event, **_fields: None, clock=lambda: 0.0))
    assistant = json.loads((EXAMPLES / "assistant.json").read_text())
    declared = [one["function"] for one in assistant["model"]["tools"]]
    assert declared == [
        {
            "name": recall.tool.name,
            "description": recall.tool.description,
            "parameters": recall.tool.parameters,
        }
    ]
