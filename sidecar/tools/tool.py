"""Tools that a model may call during a call, and their runs, each of which happens once.

A channel announces the tools and returns their answers in its own wire format; a tool knows no
channel. To add one: make a `Tool` in a file of this package, and name it in `sidecar/app/vapi.py`.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import anyio
import msgspec

from sidecar.calls import LiveCall
from sidecar.errors import JournalError
from sidecar.journal.once import Once
from sidecar.tools.ranking import Spoken

RUNS_LIMIT: Final = 200
"""Runs of one call whose answers are kept, to repeat them when the same id is asked again."""
TOO_LONG: Final = "the tool took too long"
FAILED: Final = "the tool failed"
KNOWN_S: Final = 600.0
"""How long all replicas know a run; a platform repeats a request within seconds."""
LOOK_EVERY_S: Final = 0.25
"""How often a replica looks for the answer of another one."""


Spawn: TypeAlias = Callable[..., None]
"""Starts an async function with its arguments, and returns at once."""


@dataclass(frozen=True, slots=True)
class InCall:
    """The call in which a tool is called.

    Attributes:
        live: That call.
        said: Returns what was said in it so far, oldest first.
    """

    live: LiveCall
    said: Callable[[], Awaitable[Sequence[Spoken]]]


class RunTool(Protocol):
    """What a tool does."""

    async def __call__(self, call: InCall | None, arguments: Mapping[str, Any]) -> str:
        """Return the answer to the model.

        Args:
            call: None if the call is not known: then nothing may be told of any caller.
            arguments: As the model wrote them; they may have any shape.
        """
        ...


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool.

    Attributes:
        name: As the model calls it.
        description: For the model: when to call it.
        parameters: JSON Schema of its arguments.
        deadline_s: Longest a run may take; then the model is answered that it took too long.
        run: What it does. Runs of one call may overlap.
        repeatable: Running twice does no harm, so that no replica asks the others whether it ran.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    deadline_s: float
    run: RunTool
    repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of a run, for the model: its text or, if it failed, what went wrong."""

    text: str
    failed: bool = False


@dataclass(slots=True)
class _ToolRun:
    done: anyio.Event = field(default_factory=anyio.Event)
    answered: Answered = Answered(FAILED, failed=True)


class ToolRuns:
    """The runs of one call, by the id that the model's platform gave each.

    A platform repeats a request whose answer it did not get, maybe at another replica. An id runs
    once; a repeated request waits for the run under way, or gets its answer. Runs are dropped with
    their call: nothing is repeated of a call that was erased.

    Args:
        once: What replicas do once; a tool that is not repeatable does not run while it fails.
        clock: Unix time in seconds.
        spawn: Starts what the model does not wait for.
    """

    def __init__(self, once: Once, *, clock: Callable[[], float], spawn: Spawn) -> None:
        self._once = once
        self._clock = clock
        self._spawn = spawn
        self._runs: dict[str, _ToolRun] = {}

    async def run(
        self, tool: Tool, run_id: str, call: InCall | None, arguments: Mapping[str, Any]
    ) -> Answered:
        """Run a tool, or wait for the run of this id, within the tool's deadline.

        Args:
            tool: The tool.
            run_id: The platform's id; if it is empty, each request runs.
            call: As for `RunTool`.
            arguments: As for `RunTool`.
        """
        run = self._runs.get(run_id) if run_id else None
        if run is None:
            run = _ToolRun()
            if run_id:
                self._add_run(run_id, run)
            try:
                with anyio.move_on_after(tool.deadline_s) as budget:
                    run.answered = await self._run_at_one(tool, run_id, call, arguments)
                if budget.cancelled_caught:
                    run.answered = Answered(TOO_LONG, failed=True)
            finally:
                run.done.set()
        with anyio.move_on_after(tool.deadline_s):
            await run.done.wait()
            return run.answered
        return Answered(TOO_LONG, failed=True)

    async def _run_at_one(
        self, tool: Tool, run_id: str, call: InCall | None, arguments: Mapping[str, Any]
    ) -> Answered:
        """Run a tool, unless another replica was asked before; then return what it answers."""
        if not run_id or call is None or tool.repeatable:
            return Answered(await tool.run(call, arguments))
        key = call.live.call.key
        name = f"tool/{hashlib.sha256(f'{key}/{run_id}'.encode(errors='replace')).hexdigest()}"
        until_s = self._clock() + KNOWN_S
        try:
            text = await self._once.first(name, call=key, until_s=until_s)
            while text == "":
                await anyio.sleep(LOOK_EVERY_S)
                text = await self._once.first(name, call=key, until_s=until_s)
        except JournalError:
            return Answered(FAILED, failed=True)
        if text is not None:
            return msgspec.json.decode(text, type=Answered)
        answered = Answered(await tool.run(call, arguments))
        self._spawn(self._store, name, msgspec.json.encode(answered).decode())
        return answered

    async def _store(self, name: str, text: str) -> None:
        with suppress(JournalError):  # it was done, and is not done again
            await self._once.answer(name, text)

    def _add_run(self, run_id: str, run: _ToolRun) -> None:
        self._runs[run_id] = run
        while len(self._runs) > RUNS_LIMIT:
            del self._runs[next(iter(self._runs))]
