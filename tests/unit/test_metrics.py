"""What /metrics exposes, and that the dashboard and alert rules use nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sidecar import telemetry
from sidecar.errors import JournalError
from sidecar.http.metrics import CHANNELS, SERVED, Gauges, Metrics
from sidecar.journal.backlog import Backlog
from sidecar.journal.states import BatchEvent
from sidecar.model import prompt_metrics, prompt_of
from sidecar.telemetry import Telemetry
from tests.quiet import Quiet

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

OPS = Path(__file__).parents[2] / "ops"
STATE = Gauges(
    backlog=Backlog(7, 1, 900.0),
    journal_ok=True,
    live_calls={"livekit": 2},
    connections=3,
    breaker_open={"memory": True, "relay": False},
    draining=False,
    replicas=2,
    now_s=1_000.0,
)
NAMES = re.compile(r"\b(sidecar_[a-z_]+|process_[a-z_]+)\b")


@pytest.fixture
def metrics() -> Metrics:
    async def state() -> Gauges:
        return STATE

    return Metrics(state)


@pytest.fixture
def events(metrics: Metrics) -> Telemetry:
    return Telemetry(strict=True, logger=Quiet(), observe=metrics.observe)


async def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = (await metrics.text()).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_is_held_is_shown_at_each_scrape(metrics: Metrics) -> None:
    """Undelivered turns, the age of the oldest, dead batches, calls, links and breakers show."""
    found = await samples(metrics)
    assert found["sidecar_undelivered_turns", ()] == 7
    assert found["sidecar_oldest_undelivered_age_seconds", ()] == 100
    assert found["sidecar_dead_batches", ()] == 1
    assert found["sidecar_live_calls", (("channel", "livekit"),)] == 2
    assert found["sidecar_live_calls", (("channel", "vapi"),)] == 0
    assert found["sidecar_link_connections", ()] == 3
    assert found["sidecar_breaker_open", (("breaker", "memory"),)] == 1
    assert found["sidecar_journal_up", ()] == 1


async def test_events_are_counted_and_timed(metrics: Metrics, events: Telemetry) -> None:
    """Each event counts under its name; prompts, reads, posts and batches are timed."""
    events.emit(
        telemetry.prompt_served, call="c", version="v", served="fresh", age_s=1.5, wait_s=0.02
    )
    events.emit(
        telemetry.prompt_served, call="c", version="", served="none", age_s=None, wait_s=0.0
    )
    events.emit(telemetry.memory_read, agent="a", version="v", blocks=2, took_s=0.2)
    events.emit(telemetry.memory_read_failed, agent="a", error="e", hint="", took_s=5.0)
    events.emit(telemetry.post_ended, lane="l", batch="b", outcome="digested", took_s=3.0)
    events.emit(
        telemetry.batch_settled, lane="l", batch="b", turns=2, attempt=1, age_s=4.0, how="posted"
    )
    events.emit(telemetry.turn_measured, call="c", e2e_latency=0.9, llm_node_ttft=0.3)
    found = await samples(metrics)
    of_e2e = (("stage", "e2e_latency"),)
    assert found["sidecar_turn_seconds_sum", of_e2e] == pytest.approx(0.9)
    assert found["sidecar_turn_seconds_count", (("stage", "llm_node_ttft"),)] == 1
    assert found["sidecar_turn_seconds_count", (("stage", "tts_node_ttfb"),)] == 0
    assert found["sidecar_events_total", (("event", "prompt_served"),)] == 2
    assert found["sidecar_prompts_total", (("served", "fresh"),)] == 1
    assert found["sidecar_prompts_total", (("served", "none"),)] == 1
    assert found["sidecar_prompt_memory_age_seconds_count", ()] == 1
    assert found["sidecar_prompt_wait_seconds_sum", ()] == pytest.approx(0.02)
    assert found["sidecar_memory_read_seconds_sum", (("outcome", "ok"),)] == pytest.approx(0.2)
    assert found["sidecar_memory_read_seconds_count", (("outcome", "failed"),)] == 1
    assert found["sidecar_post_seconds_count", (("outcome", "digested"),)] == 1
    assert found["sidecar_batch_settle_seconds_sum", ()] == pytest.approx(4.0)


async def test_no_peer_makes_up_labels(metrics: Metrics, events: Telemetry) -> None:
    """Whatever callers, workers and Lettas send, no new time series appear."""
    for n in range(50):
        events.emit(
            telemetry.call_opened, call=f"c{n}", channel=f"x{n}", lane=f"l{n}", resumed=False
        )
        events.emit(
            telemetry.prompt_served, call=f"c{n}", version="", served=f"s{n}", age_s=1, wait_s=0
        )
    first = set(await samples(metrics))
    for n in range(50, 100):
        events.emit(
            telemetry.call_opened, call=f"c{n}", channel=f"x{n}", lane=f"l{n}", resumed=False
        )
    assert set(await samples(metrics)) == first
    allowed = {"event", "channel", "served", "outcome", "breaker", "speaker", "stage", "le"}
    assert {name for _, labels in first for name, _ in labels} <= allowed
    assert len(first) < 500


async def test_a_journal_that_fails_shows_as_down() -> None:
    """When the journal fails, the scrape is answered and reports it as down."""

    async def broken() -> Gauges:
        raise JournalError("no")

    assert (await samples(Metrics(broken)))["sidecar_journal_up", ()] == 0


async def test_a_journal_that_hangs_does_not_hang_the_scrape() -> None:
    """A scrape ends within its budget when the journal hangs, and reports it as down."""

    async def hangs() -> Gauges:
        await anyio.sleep_forever()
        return STATE

    with anyio.fail_after(10):
        found = await samples(Metrics(hangs))
    assert found["sidecar_journal_up", ()] == 0


async def test_every_metric_the_operator_files_name_exists(
    metrics: Metrics, events: Telemetry
) -> None:
    """The dashboard and the alert rules name only metrics, events and labels that exist."""
    for channel in CHANNELS:
        events.emit(telemetry.call_opened, call="c", channel=channel, lane="l", resumed=False)
    for served in SERVED:
        events.emit(telemetry.prompt_served, call="c", version="", served=served, age_s=1, wait_s=0)
    events.emit(telemetry.turn_recorded, call="c", speaker="agent", chars=1, pii_text="x")
    for outcome in BatchEvent:
        events.emit(telemetry.post_ended, lane="l", batch="b", outcome=outcome.value, took_s=1.0)
    found = await samples(metrics)
    exposed = {name for name, _ in found}
    labels_of: dict[str, set[str]] = {}
    for name, labels in found:
        labels_of.setdefault(name, {"instance"}).update(label for label, _ in labels)
    expressions = [*dashboard_expressions(), *alert_expressions()]
    assert len(expressions) > 20
    known_events = {event.name for event in telemetry.catalogue()}
    for expression in expressions:
        named = set[str](NAMES.findall(expression))
        assert named <= exposed, named - exposed
        allowed = set[str]().union(*(labels_of[name] for name in named))
        for by in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in by.split(",")} <= allowed, expression
        for events_named in re.findall(r'event=~?"([^"]+)"', expression):
            assert set(events_named.split("|")) <= known_events, expression


def dashboard_expressions() -> list[str]:
    dashboard = json.loads((OPS / "grafana-dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def alert_rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in OPS.glob("prometheus-alerts*.yaml")]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alert_expressions() -> list[str]:
    # SidecarDown uses Prometheus' own `up`.
    return [rule["expr"] for rule in alert_rules() if rule["alert"] != "SidecarDown"]


def test_every_alert_says_what_to_do() -> None:
    """Each alert rule has a severity, a summary and an action."""
    for rule in alert_rules():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]


@pytest.mark.parametrize(("served", "age_s"), [("fresh", 1.5), ("disk", 90.0), ("none", None)])
def test_a_turn_carries_how_its_memory_was_had(served: str, age_s: float | None) -> None:
    """The sidecar reads the same values from a turn's metrics that a worker wrote."""
    metrics = prompt_metrics(served, age_s=age_s, wait_s=0.05)  # type: ignore[arg-type]
    assert prompt_of(metrics) == (served, age_s, 0.05)
    assert prompt_of({"llm_node_ttft": 0.3}) is None
