"""Spans: which exporter is chosen, what spans hold, and what a lost collector costs."""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typing_extensions import override

from sidecar.config.load import load
from sidecar.errors import ConfigError
from sidecar.otel import OtelTracer, tracer_of
from sidecar.otel_environment import exporter_of
from sidecar.telemetry import Event
from sidecar.tracing import NO_TRACES, TEXT, traceparent_or_empty
from sidecar.worker.livekit.traces import JobTraces
from tests.quiet import unheard

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WRONG = [
    "",
    "00-" + "0" * 32 + "-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
    "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    GIVEN.upper(),
    GIVEN + "\n",
    GIVEN * 100,
]


def tracer(*, text: bool = False) -> tuple[OtelTracer, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OtelTracer(provider, text=text, redact=lambda said: said.replace("42", "[x]")), exporter


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, ("none", "http/protobuf")),
        ({"OTEL_SERVICE_NAME": "x"}, ("none", "http/protobuf")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ("otlp", "http/protobuf")),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1"}, ("otlp", "http/protobuf")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, ("none", "http/protobuf")),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp", "http/protobuf")),
        ({"OTEL_TRACES_EXPORTER": "console"}, ("console", "http/protobuf")),
        (
            {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"},
            ("none", "http/protobuf"),
        ),
        (
            {"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"},
            ("none", "http/protobuf"),
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            ("otlp", "grpc"),
        ),
        (
            {
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            ("otlp", "http/protobuf"),
        ),
    ],
)
def test_the_standard_variables_say_which_exporter(
    environ: Mapping[str, str], asked: tuple[str, str]
) -> None:
    """Traces are exported only with an endpoint or exporter set, and the specific one wins."""
    assert exporter_of(environ) == asked


@pytest.mark.parametrize(
    ("endpoint", "asked"),
    [
        ("http://collector:4318 \r", "http://collector:4318/v1/traces"),
        (" ", "http://localhost:4318/v1/traces"),
    ],
)
def test_the_sdk_reads_its_variables_as_we_do(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, asked: str
) -> None:
    """A carriage return behind an endpoint is removed, and a blank endpoint counts as unset."""
    made: list[Any] = []

    def exporting(exporter: object, **_: object) -> None:
        made.append(exporter)

    monkeypatch.setattr(OtelTracer, "exporting", exporting)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp\r")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    tracer_of(os.environ, service="test", text=False, emit=unheard)
    assert made[0]._endpoint == asked


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")],
)
def test_an_exporter_that_there_is_not_is_a_wrong_setting(name: str, value: str) -> None:
    """An unknown exporter or protocol is refused by its variable, with the allowed values."""
    with pytest.raises(ConfigError) as caught:
        load({name: value})
    assert caught.value.fields[0][0] == name
    assert "one of" in caught.value.fields[0][1]


@pytest.mark.parametrize("value", ["abc", "0", "-1", "1e3", "\u0661", "9" * 11])
@pytest.mark.parametrize("name", ["OTEL_BSP_SCHEDULE_DELAY", "OTEL_EXPORTER_OTLP_TIMEOUT"])
def test_a_number_that_the_sdk_can_not_use_is_a_wrong_setting(name: str, value: str) -> None:
    """A bad number is refused with its remedy if traces are on, and ignored if they are off."""
    assert load({name: value})
    with pytest.raises(ConfigError) as caught:
        load({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", name: value})
    assert caught.value.fields == ((name, "write a number above 0"),)


OTLP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318"}
GRPC = {**OTLP, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
NO_HEADERS = ("a", "=x", "a=\x01", "a=b%00", "a=b%0A", "a=ü", "ä=b", "a b=c", "x=1,y")
NO_LIMITS = ("-1", "many", "1.5", "\u0661")
UNUSABLE: dict[str, tuple[str, ...]] = {
    "HEADERS": NO_HEADERS,
    "TRACES_HEADERS": NO_HEADERS,
    "CERTIFICATE": ("/no/such/file", "/tmp", "/dev/zero", os.__file__),
    "TRACES_CLIENT_KEY": ("/no/such/file", "/tmp", "/dev/zero", os.__file__),
    "CLIENT_CERTIFICATE": ("/no/such/file", "/tmp", "/dev/zero", os.__file__),
    "COMPRESSION": ("brotli",),
    "INSECURE": ("maybe",),
    "TRACES_ENDPOINT": ("http://a b", "ftp://a", "http://", "http://a:0", f"http://{'a' * 300}"),
}


@pytest.mark.parametrize("asked", [OTLP, GRPC], ids=["http", "grpc"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_variable_that_would_lose_the_traces_is_a_wrong_setting(
    asked: dict[str, str], name: str
) -> None:
    """An unusable variable is refused with its remedy if traces are on, else ignored."""
    variable = f"OTEL_EXPORTER_OTLP_{name}"
    for value in UNUSABLE[name]:
        with pytest.raises(ConfigError) as caught:
            load({**asked, variable: value})
        ((field, remedy),) = caught.value.fields
        assert field == variable
        assert remedy
        with pytest.raises(ConfigError, match=variable):
            tracer_of({**asked, variable: value}, service="s", text=False, emit=unheard)
        assert load({**asked, variable: value, "OTEL_TRACES_EXPORTER": "none"})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((f"OTEL_{of}_COUNT_LIMIT", NO_LIMITS) for of in ("ATTRIBUTE", "SPAN_LINK", "SPAN_EVENT")),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", NO_LIMITS),
        ("OTEL_TRACES_SAMPLER_ARG", ("half", "-0.1", "1.1", "nan")),
        ("OTEL_BSP_MAX_QUEUE_SIZE", ("1", "511")),
    ],
)
@pytest.mark.parametrize(
    "asked", [OTLP, {"OTEL_TRACES_EXPORTER": "console"}], ids=["otlp", "console"]
)
def test_a_figure_that_the_sdk_does_not_take_is_a_wrong_setting(
    asked: dict[str, str], name: str, values: tuple[str, ...]
) -> None:
    """A figure that the SDK does not accept is refused by name before the SDK is loaded."""
    for value in values:
        with pytest.raises(ConfigError) as caught:
            load({**asked, name: value})
        assert [field for field, _ in caught.value.fields] == [name]
    assert load({name: values[0]})


def test_what_collectors_ask_for_is_taken(tmp_path: Path) -> None:
    """Values that collectors need are accepted, such as blanks in tokens and certificates."""
    pem = tmp_path / "ca.pem"
    pem.write_text("-----BEGIN CERTIFICATE-----\n")
    usual = {
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer abc=, x-team=a%20b ,api-key=k",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(pem),
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_SPAN_LINK_COUNT_LIMIT": "unset",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_BSP_MAX_QUEUE_SIZE": "512",
    }
    assert load({**OTLP, **usual})
    assert load({**GRPC, **usual, "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"})


def test_a_timeout_may_be_a_fraction() -> None:
    """A timeout may be a fraction, as in the SDK."""
    asked = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TIMEOUT": "2.5"}
    assert load({**asked, "OTEL_BSP_MAX_QUEUE_SIZE": "512"})


@pytest.mark.parametrize("raw", WRONG)
def test_a_wrong_traceparent_is_none(raw: str) -> None:
    """An invalid traceparent is ignored without an error, and the span begins its own trace."""
    assert traceparent_or_empty(raw) == ""
    made, exporter = tracer()
    made.start("work", parent=raw, links=[raw]).end()
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert not span.links


def test_without_traces_the_name_of_a_span_is_passed_on() -> None:
    """Without traces, a span passes its parent's traceparent on."""
    with NO_TRACES.start("work", parent=GIVEN) as span:
        span.set({TEXT: "x"})
        assert span.traceparent == GIVEN
    assert NO_TRACES.start("work", parent="nonsense").traceparent == ""


def test_a_span_belongs_to_its_parent_and_is_linked() -> None:
    """A span takes trace id, parent and links from traceparents, and has its own traceparent."""
    made, exporter = tracer()
    child = made.start("child", parent=GIVEN, links=[GIVEN], attributes={"a": 1, "b": None})
    made.start("grandchild", parent=child.traceparent, start_s=5.0).end()
    child.end(error="TimeoutError")
    child.end()
    grandchild, span = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == GIVEN.split("-")[1]  # type: ignore[union-attr]
    assert f"{span.parent.span_id:016x}" == GIVEN.split("-")[2]  # type: ignore[union-attr]
    assert len(span.links) == 1
    assert dict(span.attributes or {}) == {"a": 1, "error.type": "TimeoutError"}
    assert grandchild.parent.span_id == span.context.span_id  # type: ignore[union-attr]
    assert grandchild.start_time == 5_000_000_000


def test_an_unsampled_trace_stays_unsampled() -> None:
    """A span of a trace that is not sampled is not exported."""
    made, exporter = tracer()
    span = made.start("child", parent=GIVEN[:-1] + "0")
    assert span.traceparent.endswith("-00")
    span.end()
    assert not exporter.get_finished_spans()


@pytest.mark.parametrize(("text", "shown"), [(False, None), (True, "my code is [x]")])
def test_words_are_exported_by_opt_in_and_redacted(text: bool, shown: str | None) -> None:
    """Words are exported only if the owner opted in, and then redacted as in the journal."""
    made, exporter = tracer(text=text)

    def fail() -> None:
        with made.start("w") as span:
            span.set({TEXT: "my code is 42"})
            raise ValueError("my code is 42")

    with pytest.raises(ValueError, match="my code"):
        fail()
    (ended,) = exporter.get_finished_spans()
    assert (ended.attributes or {}).get(TEXT) == shown
    assert (ended.attributes or {})["error.type"] == "ValueError"
    assert not ended.events
    assert ended.status.description is None


class Flaky(SpanExporter):
    """A collector that can be away, or hang until `let_go` is set."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.away = True
        self.let_go = threading.Event()
        if not hangs:
            self.let_go.set()
        self.got: list[str] = []

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.let_go.wait(60)
        if self.away:
            raise ConnectionError("words of a caller")
        self.got += [span.name for span in spans]
        return SpanExportResult.SUCCESS


async def test_a_collector_that_is_away_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """One event is emitted when spans are first lost and one when they arrive again."""
    said: list[tuple[str, dict[str, object]]] = []

    def emit(event: Event, /, **fields: object) -> None:
        assert fields.keys() <= event.fields
        said.append((event.name, fields))

    exporter = Flaky()
    made = OtelTracer.exporting(exporter, service="s", text=False, emit=emit)
    for _ in range(3):
        made.start("lost").end()
        await made.flush(5)
    exporter.away = False
    made.start("sent").end()
    await made.flush(5)
    await made.flush(5, last=True)
    assert [name for name, _ in said] == ["traces_lost", "traces_restored"]
    assert said[0][1]["error"] == "ConnectionError"
    assert said[1][1]["spans"] == 3
    assert exporter.got == ["sent"]
    assert not caplog.records


async def test_a_collector_that_hangs_holds_nobody_up() -> None:
    """With a hanging collector spans can still be started, ended and flushed in time."""
    exporter = Flaky(hangs=True)
    made = OtelTracer.exporting(exporter, service="s", text=False, emit=unheard)
    with anyio.fail_after(30):
        for _ in range(5_000):
            made.start("work").end()
        await made.flush(0.05)
        await made.flush(0.05, last=True)
    exporter.let_go.set()


def test_with_no_variable_set_opentelemetry_is_not_even_imported() -> None:
    """Without traces the sidecar process does not import OpenTelemetry."""
    code = (
        "import sys, sidecar.app.serve; "
        "sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


async def test_spans_go_to_the_tracer_provider_that_a_workers_owner_has_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the process has a tracer provider of its own, spans go there and to no other exporter."""
    exporter = InMemorySpanExporter()
    owners = TracerProvider(shutdown_on_exit=False)
    owners.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: owners)
    monkeypatch.setattr(JobTraces, "_of_process", None)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    traces = JobTraces(text=False, emit=unheard)
    traces.begin("AJ_1")
    assert JobTraces.current() == traces.traceparent
    await traces.end()
    (call,) = exporter.get_finished_spans()
    assert (call.name, dict(call.attributes or {})) == ("call", {"gen_ai.conversation.id": "AJ_1"})


async def test_a_wrong_variable_costs_a_job_its_traces_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job with a wrong OTEL_* variable has no trace but goes on, and the reason is logged."""
    said: list[tuple[str, object]] = []

    def emit(event: Event, /, **fields: object) -> None:
        said.append((event.name, fields["part"]))

    monkeypatch.setattr(JobTraces, "_of_process", None)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    traces = JobTraces(text=False, emit=emit)
    traces.begin("AJ_1")
    await traces.end()
    assert said == [("part_failed", "traces")]
    assert (traces.traceparent, JobTraces.current()) == ("", "")
