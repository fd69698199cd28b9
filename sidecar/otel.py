"""OpenTelemetry: the only module that imports it, and only if its variables ask for traces.

Spans wait in a bounded queue of the SDK and are sent by the SDK's thread. A collector that is away
or hangs costs no more than that queue (`OTEL_BSP_MAX_QUEUE_SIZE`, 2,048 spans), one event when
spans are lost and one when they arrive again; the SDK's own log lines, one per try, are off.
"""

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self, cast

import anyio
from opentelemetry import context, trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from typing_extensions import override

from sidecar import telemetry
from sidecar.environment import said, wrong
from sidecar.errors import ConfigError
from sidecar.otel_environment import exporter_of, wrong_variables
from sidecar.telemetry import Emit
from sidecar.tracing import TEXT, Kind, Span, Value, traceparent_or_empty

_KINDS: Final = {
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
    "server": SpanKind.SERVER,
}
for _loud in (
    # These log each failed try and each dropped span; `_Watched` reports it once.
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    # It logs a header it can't read, and with it a key.
    "opentelemetry.util.re",
):
    logging.getLogger(_loud).setLevel(logging.CRITICAL + 1)


def tracer_of(
    environ: Mapping[str, str],
    *,
    service: str,
    text: bool,
    emit: Emit,
    redact: Callable[[str], str] | None = None,
) -> "OtelTracer | None":
    """Return the tracer that OpenTelemetry's variables ask for, None if they ask for none.

    Args:
        environ: Names the exporter; the SDK reads the rest from the process's own environment.
        service: See `OtelTracer.exporting`, as for the others.
        text: Callers' words are exported.
        emit: Called when spans are lost.
        redact: Applied to callers' words.

    Raises:
        ConfigError: a variable is wrong.
    """
    if fields := wrong_variables(environ):
        raise wrong(fields)
    exporter, protocol = exporter_of(environ)
    if exporter == "none":
        return None
    _as_said()
    try:
        made = ConsoleSpanExporter(out=sys.stderr) if exporter == "console" else _otlp(protocol)
        return OtelTracer.exporting(made, service=service, text=text, emit=emit, redact=redact)
    except Exception as error:  # noqa: BLE001 - whatever the SDK makes of a variable
        raise ConfigError(
            f"the exporter of traces can't be made: {type(error).__name__}",
            fields=(("OTEL_*", "check OTEL_EXPORTER_OTLP_… and OTEL_BSP_…: one can't be used"),),
        ) from None


def _as_said() -> None:
    """Strip the blanks around OpenTelemetry's variables, and unset blank ones: the SDK doesn't."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        if (text := said(os.environ, name)) is not None:
            os.environ[name] = text
        else:
            del os.environ[name]


def _otlp(protocol: str) -> SpanExporter:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter as OverGrpc,
        )

        return OverGrpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter as OverHttp,
    )

    return OverHttp()


class OtelTracer:
    """Makes spans with OpenTelemetry's SDK (`sidecar.tracing.Tracer`).

    Args:
        provider: Where spans go.
        text: Callers' words are exported.
        redact: Applied to them.
    """

    def __init__(
        self,
        provider: trace.TracerProvider,
        *,
        text: bool,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("letta-voice-sidecar")
        self._text = text
        self._redact = redact

    @classmethod
    def exporting(
        cls,
        exporter: SpanExporter,
        *,
        service: str,
        text: bool,
        emit: Emit,
        redact: Callable[[str], str] | None = None,
    ) -> Self:
        """Return a tracer whose spans are exported in the background.

        Args:
            exporter: Takes them, in a thread.
            service: The `service.name`, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES`
                sets one.
            text: Callers' words are exported.
            emit: Called, from that thread, when spans are lost.
            redact: Applied to callers' words.
        """
        named = Resource.create()
        if str(named.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            named = named.merge(Resource({SERVICE_NAME: service}))
        provider = TracerProvider(resource=named, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(_Watched(exporter, emit)))
        return cls(provider, text=text, redact=redact)

    def start(
        self,
        name: str,
        *,
        parent: str = "",
        kind: Kind = "internal",
        links: Iterable[str] = (),
        attributes: Mapping[str, Value | None] | None = None,
        start_s: float | None = None,
        inside: bool = False,
    ) -> Span:
        """See `sidecar.tracing.Tracer.start`."""
        within = context.Context()
        if inside and trace.get_current_span().get_span_context().is_valid:
            within = context.get_current()
        elif remote := _context_of(parent):
            within = trace.set_span_in_context(trace.NonRecordingSpan(remote), within)
        span = self._tracer.start_span(
            name,
            context=within,
            kind=_KINDS[kind],
            links=[trace.Link(linked) for one in links if (linked := _context_of(one))],
            start_time=None if start_s is None else int(start_s * 1e9),
        )
        started = _OtelSpan(span, self._shown)
        started.set(attributes or {})
        return started

    def make_current(self, span: Span) -> None:
        """See `sidecar.tracing.Tracer.make_current`."""
        if isinstance(span, _OtelSpan):
            context.attach(trace.set_span_in_context(span.span))

    def current(self) -> str:
        """Return the `traceparent` of the span that is current in this task, or empty."""
        return _traceparent_of(trace.get_current_span().get_span_context())

    async def flush(self, budget_s: float, *, last: bool = False) -> None:
        """Send waiting spans within `budget_s`; what is not sent by then is lost if this is `last`.

        Args:
            budget_s: Seconds.
            last: Stop the exporter, too.
        """
        if not isinstance(self.provider, TracerProvider):
            return
        provider = self.provider
        loop = asyncio.get_running_loop()
        done = anyio.Event()

        def send() -> None:
            if last:
                provider.shutdown()
            else:
                provider.force_flush()
            with contextlib.suppress(RuntimeError):  # the loop did not wait and is closed
                loop.call_soon_threadsafe(done.set)

        # Neither takes a deadline, so a thread runs it that the exit of the process does not join.
        threading.Thread(target=send, name="traces-flush", daemon=True).start()
        with anyio.move_on_after(budget_s):
            await done.wait()

    def _shown(self, attributes: Mapping[str, Value | None]) -> dict[str, Value]:
        shown = {name: value for name, value in attributes.items() if value is not None}
        if not self._text:
            shown.pop(TEXT, None)
        elif self._redact is not None and TEXT in shown:
            shown[TEXT] = self._redact(str(shown[TEXT]))
        return shown


class _OtelSpan:
    def __init__(
        self, span: trace.Span, shown: Callable[[Mapping[str, Value | None]], dict[str, Value]]
    ) -> None:
        self.span = span
        self._shown = shown

    @property
    def traceparent(self) -> str:
        return _traceparent_of(self.span.get_span_context())

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        if self.span.is_recording():
            self.span.set_attributes(self._shown(attributes))

    def end(self, *, error: str = "") -> None:
        if not self.span.is_recording():
            return
        if error:
            self.span.set_attribute("error.type", error)
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(error=kind.__name__ if kind else "")


class _Watched(SpanExporter):
    """Reports once that spans are lost, and once that they arrive again."""

    def __init__(self, exporter: SpanExporter, emit: Emit) -> None:
        self._exporter = exporter
        self._emit = emit
        self._lost = 0

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        error = "refused"
        try:
            result = self._exporter.export(spans)
        except Exception as failure:  # noqa: BLE001 - whatever a collector makes of it
            result, error = SpanExportResult.FAILURE, type(failure).__name__
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                self._emit(telemetry.traces_restored, spans=self._lost)
                self._lost = 0
            return result
        if not self._lost:
            self._emit(
                telemetry.traces_lost,
                spans=len(spans),
                error=error,
                hint="is the collector at OTEL_EXPORTER_OTLP_ENDPOINT up?",
            )
        self._lost += len(spans)
        return result

    @override
    def shutdown(self) -> None:
        self._exporter.shutdown()

    @override
    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _traceparent_of(span: SpanContext) -> str:
    if not span.is_valid:
        return ""
    return (
        f"00-{trace.format_trace_id(span.trace_id)}-{trace.format_span_id(span.span_id)}"
        f"-{span.trace_flags & TraceFlags.SAMPLED:02x}"
    )


def _context_of(traceparent: str) -> SpanContext | None:
    """Return the span that a `traceparent` names; None for a text that names none."""
    if not traceparent_or_empty(traceparent):
        return None
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )


def global_provider() -> trace.TracerProvider | None:
    """Return the provider that the owner of this process has set for all libraries, or None."""
    provider = trace.get_tracer_provider()
    return provider if isinstance(cast("object", provider), TracerProvider) else None
