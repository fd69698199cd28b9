"""`/metrics` in the text format of Prometheus: the sidecar's counts, times and current state.

Every label has few values, all known here or in the catalogue of events: no call, caller, agent,
tenant or lane is ever a label. ops/ holds a dashboard and alert rules that use these names.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import anyio
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from sidecar import telemetry
from sidecar.errors import JournalError
from sidecar.journal.backlog import Backlog
from sidecar.journal.states import BatchEvent
from sidecar.model import OTHER_CHANNEL, TURN_SECONDS
from sidecar.peer import forwarded, from_this_machine, is_loopback
from sidecar.telemetry import Event

STATE_BUDGET_S = 2.0
CHANNELS = ("livekit", "vapi", "console")
"""The channels that ship; all others together are counted as `OTHER_CHANNEL`."""
OUTCOMES = tuple(outcome.value for outcome in BatchEvent)
SERVED = ("fresh", "stale", "disk", "none")
BREAKERS = ("memory", "relay")
_WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 0.8, 1.5)
_READ_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_STAGE_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2, 4, 8)
_AGE_S = (0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3_600, 86_400)
_POST_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 120, 300)
_SETTLE_S = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3_600, 21_600, 86_400, 604_800)


@dataclass(frozen=True, slots=True)
class Gauges:
    """The state at the moment of a scrape, which is read and not counted.

    Attributes:
        backlog: Of the journal.
        journal_ok: Turns can be stored at present.
        live_calls: Live calls by channel.
        connections: Workers that are connected.
        breaker_open: Whether each of `BREAKERS` is open, by name.
        draining: The sidecar is draining.
        now_s: Unix time of the clock that `backlog` was made with.
    """

    backlog: Backlog
    journal_ok: bool
    live_calls: Mapping[str, int]
    connections: int
    breaker_open: Mapping[str, bool]
    draining: bool
    replicas: int
    now_s: float


class Metrics:
    """All metrics of one sidecar, in their own registry.

    Args:
        state: Called at each scrape. If it raises JournalError or takes longer than
            `STATE_BUDGET_S`, `sidecar_journal_up` is 0.
    """

    def __init__(self, state: Callable[[], Awaitable[Gauges]]) -> None:
        self._state = state
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._events = Counter(
            "sidecar_events", "Events by name (sidecar/telemetry.py).", ["event"], registry=registry
        )
        self._calls = Counter("sidecar_calls", "Calls opened.", ["channel"], registry=registry)
        self._turns = Counter("sidecar_turns", "Turns stored.", ["speaker"], registry=registry)
        self._prompts = Counter(
            "sidecar_prompts", "Prompts by how their memory was had.", ["served"], registry=registry
        )
        self._age = Histogram(
            "sidecar_prompt_memory_age_seconds",
            "Age of the memory in a prompt, where there was any.",
            registry=registry,
            buckets=_AGE_S,
        )
        self._wait = Histogram(
            "sidecar_prompt_wait_seconds",
            "What a prompt waited for memory.",
            registry=registry,
            buckets=_WAIT_S,
        )
        self._stages = Histogram(
            "sidecar_turn_seconds",
            "What LiveKit measured of a turn, by its own name of the stage.",
            ["stage"],
            registry=registry,
            buckets=_STAGE_S,
        )
        self._reads = Histogram(
            "sidecar_memory_read_seconds",
            "Reads of an agent's blocks.",
            ["outcome"],
            registry=registry,
            buckets=_READ_S,
        )
        self._posts = Histogram(
            "sidecar_post_seconds",
            "Posts to Letta, their digestion included.",
            ["outcome"],
            registry=registry,
            buckets=_POST_S,
        )
        self._settled = Histogram(
            "sidecar_batch_settle_seconds",
            "From the sealing of a batch until Letta had digested it.",
            registry=registry,
            buckets=_SETTLE_S,
        )
        gauge = _gauges(registry)
        self._undelivered = gauge(
            "sidecar_undelivered_turns", "Turns that Letta has not digested yet."
        )
        self._oldest = gauge(
            "sidecar_oldest_undelivered_age_seconds", "Age of the oldest undelivered turn, or 0."
        )
        self._dead = gauge("sidecar_dead_batches", "Batches that were given up and wait for you.")
        self._journal_up = gauge("sidecar_journal_up", "1 while turns can be stored.")
        self._draining = gauge("sidecar_draining", "1 while the sidecar is draining.")
        self._replicas = gauge(
            "sidecar_replicas",
            "Replicas that write to the journal, with this one; 0: this one can't.",
        )
        self._connections = gauge("sidecar_link_connections", "Workers that are connected.")
        self._tasks = gauge("sidecar_tasks", "Tasks that run on the event loop.")
        self._live = Gauge(
            "sidecar_live_calls", "Calls that are live.", ["channel"], registry=registry
        )
        self._breakers = Gauge(
            "sidecar_breaker_open",
            "1 while only probes go to Letta.",
            ["breaker"],
            registry=registry,
        )
        for served in SERVED:
            self._prompts.labels(served)
        for stage in TURN_SECONDS:
            self._stages.labels(stage)
        for event in telemetry.catalogue():
            self._events.labels(event.name)
        for outcome in ("ok", "failed"):
            self._reads.labels(outcome)

    def observe(self, event: Event, fields: Mapping[str, object]) -> None:
        """Count one event, and record the durations in it. Never raises."""
        self._events.labels(event.name).inc()
        if event is telemetry.call_opened:
            self._calls.labels(_one_of(fields.get("channel"), CHANNELS)).inc()
        elif event is telemetry.turn_recorded:
            self._turns.labels(_one_of(fields.get("speaker"), ("caller", "agent"))).inc()
        elif event is telemetry.turn_measured:
            for stage in TURN_SECONDS:
                if (measured_s := _number(fields.get(stage))) is not None:
                    self._stages.labels(stage).observe(measured_s)
        elif event is telemetry.prompt_served:
            self._observe_prompt(fields)
        else:
            self._observe_letta(event, fields)

    def _observe_letta(self, event: Event, fields: Mapping[str, object]) -> None:
        took_s = _number(fields.get("took_s"))
        if event is telemetry.memory_read and took_s is not None:
            self._reads.labels("ok").observe(took_s)
        elif event is telemetry.memory_read_failed and took_s is not None:
            self._reads.labels("failed").observe(took_s)
        elif event is telemetry.post_ended and took_s is not None:
            self._posts.labels(_one_of(fields.get("outcome"), OUTCOMES)).observe(took_s)
        elif event is telemetry.batch_settled:
            age_s = _number(fields.get("age_s"))
            if age_s is not None:
                self._settled.observe(age_s)

    def _observe_prompt(self, fields: Mapping[str, object]) -> None:
        self._prompts.labels(_one_of(fields.get("served"), SERVED)).inc()
        age_s, wait_s = _number(fields.get("age_s")), _number(fields.get("wait_s"))
        if age_s is not None:
            self._age.observe(age_s)
        if wait_s is not None:
            self._wait.observe(wait_s)

    async def text(self) -> bytes:
        """Return all metrics with their current values."""
        try:
            with anyio.fail_after(STATE_BUDGET_S):
                self._show(await self._state())
        except (JournalError, TimeoutError):
            self._journal_up.set(0)
            self._replicas.set(0)
        return generate_latest(self.registry)

    def _show(self, state: Gauges) -> None:
        backlog = state.backlog
        oldest_s = backlog.oldest_undelivered_s
        self._undelivered.set(backlog.undelivered)
        self._oldest.set(0 if oldest_s is None else max(0.0, state.now_s - oldest_s))
        self._dead.set(backlog.dead_batches)
        self._journal_up.set(state.journal_ok)
        self._draining.set(state.draining)
        self._replicas.set(state.replicas)
        self._connections.set(state.connections)
        self._tasks.set(len(anyio.get_running_tasks()))
        for channel in CHANNELS:
            self._live.labels(channel).set(state.live_calls.get(channel, 0))
        others = (n for channel, n in state.live_calls.items() if channel not in CHANNELS)
        self._live.labels(OTHER_CHANNEL).set(sum(others))
        for breaker in BREAKERS:
            self._breakers.labels(breaker).set(state.breaker_open.get(breaker, False))

    def routes(self) -> list[BaseRoute]:
        """Return the route of `/metrics`; requests through a tunnel or a proxy are refused."""

        async def metrics(request: Request) -> Response:
            client = request.client.host if request.client else ""
            headers = request.headers
            inside = from_this_machine(headers, client) if is_loopback(client) else True
            if forwarded(headers) or not inside:
                return PlainTextResponse("not for the outside\n", 403)
            return Response(await self.text(), headers={"content-type": CONTENT_TYPE_LATEST})

        return [Route("/metrics", metrics)]


def _gauges(registry: CollectorRegistry) -> Callable[[str, str], Gauge]:
    def gauge(name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=registry)

    return gauge


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _one_of(value: object, known: tuple[str, ...]) -> str:
    """Return a label's value, `other` for an unknown one, so that no peer can make up labels."""
    return value if isinstance(value, str) and value in known else "other"
