"""The traces of a LiveKit job: LiveKit's own spans and ours, in one trace."""

import os
from typing import TYPE_CHECKING, ClassVar, Final

from livekit.agents.telemetry import set_tracer_provider

from sidecar import telemetry
from sidecar.otel_environment import exporter_of
from sidecar.telemetry import Emit
from sidecar.tracing import CONVERSATION, NO_TRACES, Span, Tracer

if TYPE_CHECKING:
    from sidecar.otel import OtelTracer

FLUSH_TRACES_S: Final = 1.0


class JobTraces:
    """The spans of one job: LiveKit's own and ours, in the trace of the call.

    Off unless OpenTelemetry's standard variables ask for traces. A process has one exporter, made
    at its first job. If the owner has set a global tracer provider, spans go to that one, and the
    owner decides what LiveKit's spans hold there. No error in here reaches the call.

    Args:
        text: What is said goes into the spans, LiveKit's too.
        emit: Events.

    Attributes:
        tracer: Makes spans.
        traceparent: The span of the call, once `begin` was called; empty without traces.
    """

    _of_process: "ClassVar[OtelTracer | None]" = None

    def __init__(self, *, text: bool, emit: Emit) -> None:
        self.tracer: Tracer = NO_TRACES
        self.traceparent = ""
        self._otel: OtelTracer | None = None
        self._span: Span | None = None
        try:
            if exporter_of(os.environ)[0] != "none":
                self._otel = JobTraces._of_process or self._made(text=text, emit=emit)
                self.tracer = JobTraces._of_process = self._otel
        except Exception as error:  # noqa: BLE001 - a call without traces beats no call
            emit(
                telemetry.part_failed,
                part="traces",
                error=type(error).__name__,
                hint="check the OTEL_* variables; the call goes on without traces",
            )

    @staticmethod
    def _made(*, text: bool, emit: Emit) -> "OtelTracer":
        from sidecar.otel import OtelTracer, global_provider, tracer_of  # noqa: PLC0415

        if provider := global_provider():
            return OtelTracer(provider, text=text)
        tracer = tracer_of(os.environ, service="letta-voice-worker", text=text, emit=emit)
        assert tracer is not None
        # LiveKit's spans hold the whole conversation, and are exported with it by default.
        set_tracer_provider(tracer.provider, allow_pii=text)
        return tracer

    def begin(self, call_id: str) -> None:
        """Begin the span of a call: spans that LiveKit starts later in this task belong to it."""
        self._span = self.tracer.start("call", inside=True, attributes={CONVERSATION: call_id})
        self.traceparent = self._span.traceparent
        self.tracer.make_current(self._span)

    @classmethod
    def current(cls) -> str:
        """Return the `traceparent` of LiveKit's span around this line; empty without traces."""
        return cls._of_process.current() if cls._of_process else ""

    async def end(self) -> None:
        """The call is over: send its spans, within `FLUSH_TRACES_S`."""
        if self._span is not None:
            self._span.end()
        if self._otel is not None:
            await self._otel.flush(FLUSH_TRACES_S)
