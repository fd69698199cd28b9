"""Tools: each id runs once within its deadline, and the example declares them correctly."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from sidecar.memory.archive import Archive
from sidecar.model import Passage
from sidecar.tools.recall import Recall
from sidecar.tools.tool import RUNS_LIMIT, TOO_LONG, Answered, InCall, Tool, ToolRuns

pytestmark = [pytest.mark.unit, pytest.mark.anyio, pytest.mark.backend("virtual-time")]

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


class Nothing:
    """An archive with nothing in it."""

    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        return ()


async def test_an_id_runs_once_and_answers_every_time() -> None:
    """Repeats of an id wait for its run or get its answer, and the tool runs once."""
    runs, slow = ToolRuns(), Slow(1.0)
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
    runs, slow = ToolRuns(), Slow(0.0)
    texts = [(await runs.run(slow.tool, "", None, {})).text for _ in range(2)]
    assert texts == ["answer 1", "answer 2"]


async def test_a_run_ends_at_its_deadline() -> None:
    """A tool that exceeds its deadline is cancelled, and each request of that id says so."""
    runs, slow = ToolRuns(), Slow(60.0)
    began_s = trio.current_time()
    assert await runs.run(slow.tool, "one", None, {}) == Answered(TOO_LONG, failed=True)
    assert trio.current_time() - began_s == pytest.approx(5.0)
    assert await runs.run(slow.tool, "one", None, {}) == Answered(TOO_LONG, failed=True)
    assert slow.runs == 1


async def test_a_run_that_fails_keeps_nobody_waiting() -> None:
    """A repeat of a run that raised is answered as failed."""

    async def fails(*_: object, **__: object) -> str:
        raise RuntimeError

    runs, tool = ToolRuns(), Tool("fails", "", {}, 5.0, fails)
    with pytest.raises(RuntimeError):
        await runs.run(tool, "one", None, {})
    assert (await runs.run(tool, "one", None, {})).failed


async def test_no_more_runs_are_kept_than_said() -> None:
    """Only the newest answers of a call are kept."""
    runs, slow = ToolRuns(), Slow(0.0)
    for number in range(RUNS_LIMIT + 1):
        await runs.run(slow.tool, str(number), None, {})
    assert (await runs.run(slow.tool, "1", None, {})).text == "answer 2"
    assert (await runs.run(slow.tool, "0", None, {})).text == f"answer {RUNS_LIMIT + 2}"


async def test_nothing_is_told_of_a_call_that_is_not_known() -> None:
    """`recall` without a known call answers that nothing is remembered."""
    recall = Recall(Archive(Nothing(), emit=lambda _event, **_fields: None, clock=lambda: 0.0))
    answered = await ToolRuns().run(recall.tool, "one", None, {"query": "her dog"})
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
