"""What a delivery shows of itself: its events, its spans and their attributes."""

from typing import Final

from sidecar import telemetry
from sidecar.delivery.courier import Addressed
from sidecar.delivery.decisions import Outcome, Release, Retire, Settle, Split
from sidecar.journal.states import BatchEvent
from sidecar.model import Batch
from sidecar.telemetry import Emit
from sidecar.tracing import CONVERSATION, Span, Tracer, Value

FINDINGS: Final = frozenset({BatchEvent.FOUND, BatchEvent.RUNNING, BatchEvent.ABSENT})
_OPERATOR_MENDS: Final = frozenset(
    {BatchEvent.UNADDRESSED, BatchEvent.NO_AGENT, BatchEvent.AGENT_GONE, BatchEvent.DENIED}
)


def delivery_span(tracer: Tracer, batch: Batch) -> Span:
    """Start the span of a delivery: in the trace of its first turn, linked to each turn.

    The turns' spans are stored with them, so this works after a restart, too.
    """
    return tracer.start(
        "deliver batch",
        parent=batch.turns[0].traceparent,
        links=dict.fromkeys(turn.traceparent for turn in batch.turns),
        attributes={
            CONVERSATION: batch.call.call_id,
            "sidecar.batch.id": batch.batch_id,
            "sidecar.batch.part": batch.part,
            "sidecar.batch.attempt": batch.attempt + 1,
            "sidecar.batch.in_doubt": batch.in_doubt,
            "sidecar.turns": len(batch.turns),
        },
    )


def post_span(tracer: Tracer, addressed: Addressed, *, parent: str) -> Span:
    """Start the span of a post, named by OpenTelemetry's conventions for GenAI."""
    return tracer.start(
        "invoke_agent",
        parent=parent,
        kind="client",
        attributes={
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "letta",
            "gen_ai.agent.id": addressed.post.agent_id,
            CONVERSATION: addressed.batch.call.call_id,
        },
    )


def end_attributes(
    batch: Batch, outcome: Outcome, step: Settle | Release | Retire | Split, now_s: float
) -> dict[str, Value | None]:
    """Return what the span of a delivery says of its end."""
    return {
        "gen_ai.agent.id": batch.agent_id,
        "sidecar.batch.outcome": outcome.event.value,
        "sidecar.batch.state": _state_after(step),
        "sidecar.batch.age_s": now_s - batch.sealed_at_s,
    }


def _state_after(step: Settle | Release | Retire | Split) -> str:
    match step:
        case Settle():
            return "settled"
        case Retire():
            return "dead"
        case Split():
            return "split"
        case Release():
            return "unknown" if step.unknown else "retry"


def emit_post(emit: Emit, batch: Batch, outcome: Outcome, *, took_s: float) -> None:
    """Emit how a post ended."""
    emit(
        telemetry.post_ended,
        lane=batch.lane,
        batch=batch.batch_id,
        outcome=outcome.event.value,
        took_s=took_s,
    )


def emit_finding(emit: Emit, batch: Batch, outcome: Outcome) -> None:
    """Emit what a look-up found, where it found something out."""
    if outcome.event in FINDINGS:
        emit(
            telemetry.batch_looked_up,
            lane=batch.lane,
            batch=batch.batch_id,
            finding=outcome.event.value,
        )


def emit_settled(emit: Emit, batch: Batch, outcome: Outcome, *, now_s: float) -> None:
    """Emit that Letta has digested a batch."""
    emit(
        telemetry.batch_settled,
        lane=batch.lane,
        batch=batch.batch_id,
        turns=len(batch.turns),
        attempt=batch.attempt,
        age_s=now_s - batch.sealed_at_s,
        how="found" if outcome.event is BatchEvent.FOUND else "posted",
    )


def emit_released(emit: Emit, batch: Batch, outcome: Outcome, *, due_in_s: float) -> None:
    """Emit why a batch went back into its lane."""
    if outcome.event in _OPERATOR_MENDS:
        emit(telemetry.agent_unresolved, lane=batch.lane, error=outcome.error, hint="")
    elif outcome.event in {BatchEvent.LOST, BatchEvent.FAILED}:
        emit(
            telemetry.batch_in_doubt,
            lane=batch.lane,
            batch=batch.batch_id,
            attempt=batch.attempt,
            error=outcome.error,
        )
    elif outcome.event not in FINDINGS:
        emit(
            telemetry.batch_retried,
            lane=batch.lane,
            batch=batch.batch_id,
            attempt=batch.attempt,
            error=outcome.error,
            due_in_s=due_in_s,
        )


def emit_dead(emit: Emit, batch: Batch, outcome: Outcome) -> None:
    """Emit that a batch was given up."""
    emit(
        telemetry.batch_dead,
        lane=batch.lane,
        batch=batch.batch_id,
        turns=len(batch.turns),
        error=outcome.error,
        hint="its turns are kept: mend the cause, then replay it",
    )
