"""From the end of a caller's turn to the LLM call, through LiveKit's own session.

One process holds many `AgentSession`s in a studio (no audio, scripted ears, preemptive generation
on, as by default). Some remember their caller through a real sidecar process with a Letta that has
one kind of trouble; others are the same session without memory. All run at the same time and end a
caller's turn by turns, so that other load on the machine affects all of them.
"""

import gc
import logging
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from livekit import rtc
from livekit.agents import Agent, JobContext, ModelSettings, llm
from livekit.agents.testing import fake_job_context
from typing_extensions import override

from benchmarks.figures import Figures, latency, milliseconds, percentile
from benchmarks.processes import MEMORY, LettaProcess, sidecar
from sidecar import telemetry
from sidecar.livekit import CallerMemory, LinkSettings, finish, remember
from sidecar.telemetry import Telemetry
from tests.livekit_room.studio import Studio, on_air, studio

SECONDS = 65.0
QUICK_SECONDS = 4.0
CALLS = 2
"""Concurrent calls for each backend; without memory there are twice as many."""
SPEECH_S = (0.3, 0.8)
"""How long a caller speaks until the final transcript: a short answer or a short sentence."""
PAUSE_S = (0.1, 0.3)
SPACING_S = 0.03
"""Between an LLM call and the next end of a turn: LiveKit computes for about this long."""
TURN_S = 20.0
WARM_UP_TURNS = 2
"""Turns of each call that are not measured, as the first ones import and compile."""

TROUBLES: dict[str, dict[str, Any]] = {
    "5 ms": {"latency_s": 0.005},
    "50 ms": {"latency_s": 0.05},
    "300 ms": {"latency_s": 0.3},
    "503": {"chances": {"unavailable": 1.0}},
    "hang": {"chances": {"hang": 1.0}},
}
"""What each Letta does with reads and posts once every call has its first memory."""


@dataclass
class Turns:
    """The measurements of the turns of one kind of call.

    Attributes:
        waits_s: From the last word to the LLM call whose answer was spoken.
        nodes_s: The part of that wait from the agent's `llm_node` on, which adds the memory.
        cpus_s: CPU time of this thread in that part: its cost without other load.
        llm_calls: All LLM calls.
        with_memory: LLM calls whose prompt held the memory exactly once.
        ages_s: Age of the memory at each LLM call.
    """

    waits_s: list[float] = field(default_factory=list[float])
    nodes_s: list[float] = field(default_factory=list[float])
    cpus_s: list[float] = field(default_factory=list[float])
    llm_calls: int = 0
    with_memory: int = 0
    ages_s: list[float] = field(default_factory=list[float])


async def measure(quick: bool) -> Figures:
    """Return a row for each backend, and one for the calls without memory.

    Rows: `p50_ms` and `p99_ms` from the last word (final transcript) to the LLM call, `node_…` for
    the part from the agent's `llm_node` on, `llm_calls_per_turn`, `memory_age_s` (median, and
    `_max`), `with_memory` (share of the LLM calls whose prompt held it once), and the p50 and p99
    without memory and the differences.
    """
    seconds = QUICK_SECONDS if quick else SECONDS
    logging.getLogger("livekit.agents").setLevel(logging.ERROR)  # it warns about studio mouths
    plain = Turns()
    remembered = {trouble: Turns() for trouble in TROUBLES}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lettas = {name: stack.enter_context(LettaProcess(delay_ms=20)) for name in TROUBLES}
        sidecars = {
            name: stack.enter_context(
                sidecar(directory / str(n), lettas[name], SIDECAR_LOG_LEVEL="error")
            )
            for n, name in enumerate(TROUBLES)
        }
        floor = Floor(seconds, expected=(len(TROUBLES) + 2) * CALLS)
        async with anyio.create_task_group() as calls:
            for name, process in sidecars.items():
                for n in range(CALLS):
                    agent_id = await anyio.to_thread.run_sync(lettas[name].agent, f"agent {n}")
                    settings = LinkSettings(
                        process.link_url, process.link_token, process.data_dir / "spool"
                    )
                    calls.start_soon(
                        _call_with_memory, f"{n}", agent_id, settings, floor, remembered[name]
                    )
            for _ in range(2 * CALLS):
                calls.start_soon(_call_without, floor, plain)
            await floor.filled()
            for name, trouble in TROUBLES.items():
                script = {"reads": trouble, "posts": trouble}
                await anyio.to_thread.run_sync(lettas[name].fault, script)
            gc.collect()
            gc.freeze()  # as LiveKit does in the process from which it forks jobs
            floor.begin()
    return {name: _row(turns, plain) for name, turns in remembered.items()} | {
        "no memory": {
            **latency(plain.waits_s),
            **_node(plain),
            "llm_calls_per_turn": _per_turn(plain.llm_calls, plain),
        }
    }


def _row(turns: Turns, plain: Turns) -> Figures:
    p50_s, p99_s = (percentile(turns.waits_s, share) for share in (0.50, 0.99))
    plain50_s, plain99_s = (percentile(plain.waits_s, share) for share in (0.50, 0.99))
    return {
        **latency(turns.waits_s),
        **_node(turns),
        "llm_calls_per_turn": _per_turn(turns.llm_calls, turns),
        "with_memory": round(turns.with_memory / max(1, turns.llm_calls), 3),
        "memory_age_s": round(percentile(turns.ages_s, 0.50), 2),
        "memory_age_max_s": round(percentile(turns.ages_s, 1.0), 2),
        "no_memory_p50_ms": milliseconds(plain50_s),
        "no_memory_p99_ms": milliseconds(plain99_s),
        "over_p50_ms": milliseconds(p50_s - plain50_s),
        "over_p99_ms": milliseconds(p99_s - plain99_s),
    }


def _node(turns: Turns) -> Figures:
    return {
        "node_p50_ms": milliseconds(percentile(turns.nodes_s, 0.50)),
        "node_p99_ms": milliseconds(percentile(turns.nodes_s, 0.99)),
        "node_cpu_p99_ms": milliseconds(percentile(turns.cpus_s, 0.99)),
    }


def _per_turn(count: int, turns: Turns) -> float:
    return round(count / max(1, len(turns.waits_s)), 3)


class Floor:
    """Lets one call at a time end a turn, for a limited time.

    Args:
        seconds: How long turns may begin.
        expected: Calls that must be ready before the first turn.
    """

    def __init__(self, seconds: float, *, expected: int) -> None:
        self._seconds = seconds
        self._missing = expected
        self._filled = anyio.Event()
        self._begun = anyio.Event()
        self._until_s = 0.0
        self.turn = anyio.Lock()

    @property
    def open(self) -> bool:
        """Whether another turn may begin."""
        return anyio.current_time() < self._until_s

    async def filled(self) -> None:
        """Wait until every call is ready."""
        with anyio.fail_after(60):
            await self._filled.wait()

    def begin(self) -> None:
        """Let the turns begin."""
        self._until_s = anyio.current_time() + self._seconds
        self._begun.set()

    async def enter(self) -> None:
        """Report that a call is ready; returns when the turns begin."""
        self._missing -= 1
        if not self._missing:
            self._filled.set()
        await self._begun.wait()


class _Agent(Agent):
    """Notes when LiveKit asks it for a reply."""

    def __init__(self, talk: "_Talk") -> None:
        # LiveKit leaves the event type of speech engines open.
        super().__init__(instructions="Be brief.")  # pyright: ignore[reportUnknownMemberType]
        self._talk = talk

    @override
    def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> Any:
        self._talk.entered_s = time.perf_counter()
        self._talk.entered_cpu_s = time.thread_time()
        return super().llm_node(chat_ctx, tools, model_settings)


class _Plain(_Agent):
    pass


class _Remembering(_Agent, CallerMemory):
    pass


class _Room(rtc.EventEmitter[Any]):
    """A room with nobody in it; the job names the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "bench"
        self.remote_participants: dict[str, rtc.RemoteParticipant] = {}

    def isconnected(self) -> bool:
        return True


@contextmanager
def _job(name: str, metadata: str) -> Generator[JobContext]:
    with fake_job_context(
        job_id=name,
        job_metadata=metadata,
        room=_Room(),  # type: ignore[arg-type]
    ) as ctx:
        try:
            yield ctx
        finally:
            # A fake job does not clean up by itself.
            ctx._tempdir.cleanup()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


async def _call_without(floor: Floor, turns: Turns) -> None:
    async with _talking(floor, turns) as made, on_air(made.studio, _Plain(made)):
        await floor.enter()
        await made.talk()


async def _call_with_memory(
    name: str, agent_id: str, settings: LinkSettings, floor: Floor, turns: Turns
) -> None:
    events = Telemetry(logger=_NoLog())

    def emit(event: telemetry.Event, /, **fields: object) -> None:
        events.emit(event, **fields)
        if event is telemetry.prompt_served and isinstance(fields.get("age_s"), float):
            turns.ages_s.append(float(str(fields["age_s"])))

    metadata = f'{{"caller": "caller-{name}", "agent_id": "{agent_id}"}}'
    with _job(f"AJ_{agent_id}", metadata) as ctx:
        async with _talking(floor, turns) as made:
            call = await remember(ctx, made.studio.session, settings=settings, emit=emit)
            try:
                async with on_air(made.studio, _Remembering(made)):
                    await made.studio.until(
                        lambda: call.memory is not None and MEMORY in call.memory.text
                    )
                    await floor.enter()
                    await made.talk()
            finally:
                with anyio.CancelScope(shield=True):
                    await finish(ctx)


class _NoLog:
    """A log that drops every line."""

    def debug(self, event: str, **fields: object) -> None:
        """Drop it."""

    info = warning = error = debug


class _Talk:
    """A studio whose LLM calls are timed."""

    def __init__(self, made: Studio, floor: Floor, turns: Turns) -> None:
        self.studio = made
        self._floor = floor
        self._turns = turns
        self._dice = random.Random(len(turns.waits_s))
        self.entered_s = self.entered_cpu_s = 0.0
        self._ended_s = self._asked_cpu_s = 0.0
        self._asked_s: list[float] = []
        self._asked = anyio.Event()
        self._committed = anyio.Event()
        chat = made.model.chat

        def timed(**asked: Any) -> Any:
            self._asked_s.append(time.perf_counter())
            self._asked_cpu_s = time.thread_time()
            self._asked.set()
            return chat(**asked)

        made.model.chat = timed
        session: Any = made.session  # LiveKit leaves the handlers of its events untyped

        @session.on("conversation_item_added")
        def added(event: Any) -> None:
            if event.item.type == "message" and event.item.role == "assistant":
                self._committed.set()

    async def talk(self) -> None:
        """Say one thing after another while the floor is open, and until one is measured."""
        number = 0
        while self._floor.open or number <= WARM_UP_TURNS:
            number += 1
            await anyio.sleep(self._dice.uniform(*PAUSE_S))
            with anyio.fail_after(TURN_S):
                await self._say(f"this is sentence number {number}")
            if number > WARM_UP_TURNS:
                self._note()

    async def _say(self, text: str) -> None:
        ear = self.studio.ear
        self._asked_s.clear()
        self.studio.model.prompts.clear()
        self.studio.model.contexts.clear()
        self._asked, self._committed = anyio.Event(), anyio.Event()
        ear.starts()
        await anyio.sleep(self._dice.uniform(*SPEECH_S))
        async with self._floor.turn:
            self._ended_s = time.perf_counter()
            ear.stops()
            ear.final(text)
            await self._asked.wait()
            await anyio.sleep(SPACING_S)
        await self._committed.wait()

    def _note(self) -> None:
        self._turns.waits_s.append(self._asked_s[-1] - self._ended_s)
        self._turns.nodes_s.append(self._asked_s[-1] - self.entered_s)
        self._turns.cpus_s.append(self._asked_cpu_s - self.entered_cpu_s)
        self._turns.llm_calls += len(self._asked_s)
        for prompt in self.studio.model.prompts:
            times = sum(MEMORY in str(message["content"]) for message in prompt)
            self._turns.with_memory += times == 1


@asynccontextmanager
async def _talking(floor: Floor, turns: Turns) -> AsyncGenerator[_Talk]:
    yield _Talk(studio(lambda _: "Yes."), floor, turns)
