"""The catalogue of events: all that the sidecar says about itself.

An event is a past-tense name with named fields. `Telemetry.emit` logs it (structlog) and counts
it. The fields of each event are listed here; a field that is not listed raises in tests and is
dropped in production. No field carries a caller's words, number or key: an operator who sets
`SIDECAR_LOG_TEXT=1` gets turn texts in `pii_text` fields, and only there.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast

from sidecar.log_limit import LogLimit
from sidecar.model import TURN_SECONDS

Level: TypeAlias = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that can happen.

    Attributes:
        name: Past tense, stable; dashboards and alerts refer to it.
        level: How loud it is logged.
        fields: The names it may carry.
        kinds: For an event that strangers can cause as often as they like: the fields that tell
            one reason from another. A few of each are logged in a minute, the next with the number
            left out; all are counted. None: each is logged.
    """

    name: str
    level: Level
    fields: frozenset[str]
    kinds: tuple[str, ...] | None = None


def _event(name: str, level: Level, *fields: str, kinds: tuple[str, ...] | None = None) -> Event:
    return Event(name, level, frozenset(fields), kinds)


# Process
draining = _event("draining", "info", "live_calls", "budget_s", "reason")
drained = _event("drained", "info", "undelivered", "live_calls", "took_s")
part_failed = _event("part_failed", "error", "part", "error", "hint")
traces_lost = _event("traces_lost", "warning", "spans", "error", "hint")
traces_restored = _event("traces_restored", "info", "spans")
# Calls
call_opened = _event("call_opened", "info", "call", "channel", "lane", "resumed")
call_closed = _event("call_closed", "info", "call", "reason", "turns")
caller_unresolved = _event("caller_unresolved", "warning", "call", "channel", "why")
caller_in_doubt = _event("caller_in_doubt", "warning", "call", "channel", "why")
agent_created = _event("agent_created", "info", "lane", "agent")
agent_found = _event("agent_found", "info", "lane", "agent")
agent_unresolved = _event("agent_unresolved", "warning", "lane", "error", "hint")
turn_recorded = _event("turn_recorded", "debug", "call", "speaker", "chars", "pii_text")
turn_measured = _event("turn_measured", "debug", "call", *TURN_SECONDS)
turn_refused = _event("turn_refused", "error", "call", "code", "error", kinds=("code",))
turn_seq_gap = _event("turn_seq_gap", "warning", "call", "expected", "got", kinds=())
turns_not_kept = _event("turns_not_kept", "debug", "call", "turns")
erased_call_refused = _event("erased_call_refused", "info", "call")
call_recorded_elsewhere = _event("call_recorded_elsewhere", "warning", "call", "by", kinds=())
# Memory
memory_read = _event("memory_read", "debug", "agent", "version", "blocks", "took_s")
memory_withheld = _event("memory_withheld", "warning", "call", "channel")
memory_changed = _event("memory_changed", "info", "agent", "version", "blocks")
memory_read_failed = _event("memory_read_failed", "warning", "agent", "error", "hint", "took_s")
memory_suspect = _event("memory_suspect", "warning", "agent", "blocks_before")
memory_breaker_opened = _event("memory_breaker_opened", "warning", "retry_in_s")
memory_breaker_closed = _event("memory_breaker_closed", "info")
plug_pulled = _event("plug_pulled", "warning")
plug_restored = _event("plug_restored", "warning")
prompt_served = _event("prompt_served", "debug", "call", "version", "age_s", "served", "wait_s")
prompt_cut = _event("prompt_cut", "warning", "agent", "cut_chars")
guidance_taken = _event("guidance_taken", "info", "call", "chars", "cut_chars")
archive_searched = _event("archive_searched", "debug", "agent", "passages", "took_s")
archive_search_failed = _event(
    "archive_search_failed", "warning", "agent", "error", "hint", "took_s"
)
# Transcript
batch_settled = _event("batch_settled", "info", "lane", "batch", "turns", "attempt", "age_s", "how")
post_ended = _event("post_ended", "debug", "lane", "batch", "outcome", "took_s")
batch_retried = _event("batch_retried", "warning", "lane", "batch", "attempt", "error", "due_in_s")
batch_in_doubt = _event("batch_in_doubt", "warning", "lane", "batch", "attempt", "error")
batch_looked_up = _event("batch_looked_up", "info", "lane", "batch", "finding")
batch_dead = _event("batch_dead", "error", "lane", "batch", "turns", "error", "hint")
relay_breaker_opened = _event("relay_breaker_opened", "warning", "retry_in_s")
relay_breaker_closed = _event("relay_breaker_closed", "info")
call_taken_over = _event("call_taken_over", "warning", "call")
lane_taken_over = _event("lane_taken_over", "warning", "lane", "batch")
journal_failed = _event("journal_failed", "error", "error", "hint")
spool_taken = _event("spool_taken", "info", "call", "turns")
spool_refused = _event("spool_refused", "error", "file", "error")
turns_erased = _event("turns_erased", "info", "turns")
copy_erased = _event("copy_erased", "info", "agent")
copy_not_erased = _event("copy_not_erased", "error", "agent", "error")
caller_forgotten = _event("caller_forgotten", "info", "turns", "agents", "conversations")
# Link
link_opened = _event("link_opened", "info", "worker", "tenant")
link_closed = _event("link_closed", "info", "worker", "code")
link_refused = _event("link_refused", "warning", "why", kinds=("why",))
frame_refused = _event("frame_refused", "warning", "worker", "code", "field", kinds=("code",))
# The worker's end
link_lost = _event("link_lost", "warning", "error", "retry_in_s", "unacked")
link_restored = _event("link_restored", "info", "unacked", "down_s")
link_token_unread = _event("link_token_unread", "warning", "file", "error", "hint")
turns_spooled = _event("turns_spooled", "warning", "call", "turns", kinds=("call",))
turns_dropped = _event("turns_dropped", "error", "call", "turns", "why")
# VAPI
vapi_refused = _event(
    "vapi_refused", "warning", "route", "status", "why", kinds=("route", "status")
)
deliveries_not_kept = _event("deliveries_not_kept", "warning", "error")
vapi_call_unnamed = _event("vapi_call_unnamed", "warning", "tenant", kinds=("tenant",))
vapi_call_over = _event("vapi_call_over", "info", "call", kinds=())
vapi_caller_changed = _event("vapi_caller_changed", "error", "call")
vapi_stream_ended = _event(
    "vapi_stream_ended", "debug", "call", "how", "first_token_s", "took_s", "bytes", "tokens"
)
vapi_reported = _event("vapi_reported", "info", "call", "turns", "reason")
turns_mended = _event("turns_mended", "info", "call", "turns", "kept")
control_failed = _event("control_failed", "warning", "call", "command", "error")
vapi_held_back = _event("vapi_held_back", "warning", "names", "hint", kinds=("names",))
# Language model
model_dialect_learnt = _event("model_dialect_learnt", "info", "model", "refused", "roles", "thinks")
reply_failed = _event("reply_failed", "warning", "call", "error", "hint")


def catalogue() -> tuple[Event, ...]:
    """Return every event there is."""
    return tuple(value for value in globals().values() if isinstance(value, Event))


def _structlog() -> object:
    import structlog  # noqa: PLC0415 - of the extra `server`

    return structlog.get_logger()


class Emit(Protocol):
    """What the parts get to report events with."""

    def __call__(self, event: Event, /, **fields: object) -> None:
        """Report that `event` happened."""
        ...


class Telemetry:
    """Logs and counts events.

    Args:
        strict: Raise on a field the catalogue does not list (tests do).
        log_text: Let `pii_` fields through.
        logger: Anything with `debug`, `info`, `warning` and `error`; by default structlog's. A
            voice worker gives its own log, and so does not need structlog.
        log_limit: Bounds the lines of events that strangers cause.
        redact: Applied to `pii_` texts: what the journal may not keep, no log shows.
        observe: Called with each event and the fields its entry lists; returns at once.

    Attributes:
        counts: Events so far by name; `log_failed` counts those that could not be logged.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        log_text: bool = False,
        logger: object | None = None,
        log_limit: LogLimit | None = None,
        redact: Callable[[str], str] | None = None,
        observe: Callable[[Event, Mapping[str, object]], None] | None = None,
    ) -> None:
        self._strict = strict
        self._log_text = log_text
        self._logger = logger if logger is not None else _structlog()
        self._log_limit = log_limit or LogLimit()
        self._redact = redact
        self.observe = observe
        self.counts: Counter[str] = Counter()

    def emit(self, event: Event, /, **fields: object) -> None:
        """Log and count one event. A failure to log is counted, and is not raised."""
        unknown = fields.keys() - event.fields
        if unknown and self._strict:
            msg = (
                f"{event.name} carries fields its catalogue entry does not list: {sorted(unknown)}"
            )
            raise TypeError(msg)
        self.counts[event.name] += 1
        try:
            self._say(event, fields)
        except Exception:  # noqa: BLE001 - whatever the log's trouble is, the calls go on
            self.counts["log_failed"] += 1

    def _say(self, event: Event, fields: Mapping[str, object]) -> None:
        if self.observe is not None:
            self.observe(event, fields)
        left_out: int | None = 0
        if event.kinds is not None:
            kind = (event.name, *(str(fields.get(name)) for name in event.kinds))
            left_out = self._log_limit.admits(kind)
            if left_out is None:
                return
        shown = {
            name: self._safe(name, value)
            for name, value in fields.items()
            if name in event.fields and (self._log_text or not name.startswith("pii_"))
        }
        if left_out:
            shown["left_out"] = left_out
        cast("Callable[..., None]", getattr(self._logger, event.level))(event.name, **shown)

    def _safe(self, name: str, value: object) -> object:
        if self._redact is not None and name.startswith("pii_") and isinstance(value, str):
            return self._redact(value)
        return value
