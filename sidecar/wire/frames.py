"""The frames of the link between a worker process and the sidecar, version `letta-sidecar.v1`.

One JSON object per WebSocket text frame, told apart by `type`. The protocol with its rules is
docs/link-protocol.md; this file is its one machine-readable copy and both ends use it.

`traceparent` (W3C Trace Context) names the span a frame belongs to; one that is wrong is ignored.
"""

from typing import Annotated, Final, Literal, TypeAlias, TypeVar, get_args

import msgspec

from sidecar.errors import LinkError
from sidecar.model import (
    CHANNEL_PATTERN,
    CHANNEL_RULE,
    MAX_SEQ,
    CallerHints,
    Channel,
    Turn,
    call_key,
    is_channel,
)
from sidecar.tracing import traceparent_or_empty
from sidecar.untrusted import MALFORMED

SUBPROTOCOL = "letta-sidecar.v1"
MAX_FRAME_BYTES = 1 << 20
MAX_METRICS = 64
CLOSE_DRAINING = 4503  # come back after the seconds named in the `drain` frame
CLOSE_PROTOCOL = 4400
CLOSE_DENIED = 4401

ErrorCode: TypeAlias = Literal[
    "malformed",
    "too_large",
    "bad_value",
    "unknown_call",
    "call_claimed",
    "draining",
    "too_many_calls",
    "journal_full",
]
"""The codes of an `error`; a later version may have more."""
OPEN_AGAIN: Final = frozenset[str]({"unknown_call", "call_claimed", "draining", "too_many_calls"})
"""After these codes the worker keeps what was refused, opens the call again, and resends it."""

Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
MaybeId: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
Short: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]
ChannelName: TypeAlias = Annotated[
    Channel, msgspec.Meta(extra_json_schema={"pattern": f"^{CHANNEL_PATTERN}$"})
]
"""Checked by `CallOpen` itself: in a pattern of Python's, `$` lets a newline pass."""
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """Worker: the first frame. `worker` names the process, new with each start."""

    worker: Id
    version: Short = ""


class Hints(msgspec.Struct, frozen=True):
    """Who is on the line, as far as the worker knows (`sidecar.model.CallerHints`)."""

    caller: Short = ""
    phone: Short = ""
    identity: Short = ""
    agent_id: Short = ""
    consent: Literal["", "yes", "no"] = ""


class CallOpen(msgspec.Struct, tag="call.open", frozen=True):
    """Worker: a call is live. Sent again for each live call after a reconnect.

    `channel` is the worker's own word for where calls come from, as in `livekit` or `pipecat`.
    `room` names what other calls may hear as well: of several calls of one room and caller, one is
    stored.
    """

    call: Id
    channel: ChannelName
    hints: Hints
    opened_at_s: Seconds
    traceparent: str = ""
    room: MaybeId = ""

    def __post_init__(self) -> None:
        """Check what no type can. Raises ValueError, which a decoder reports as its own."""
        if not is_channel(self.channel):
            raise ValueError(f"field `channel`: {CHANNEL_RULE}")


class SpeechStarted(msgspec.Struct, tag="speech.started", frozen=True):
    """Worker: the caller began to speak; answered by a `memory` frame with the newest memory."""

    call: Id
    traceparent: str = ""


class TurnFrame(msgspec.Struct, tag="turn", frozen=True):
    """Worker: one turn. The worker keeps it, and sends it again, until it is acked."""

    call: Id
    item: Id
    seq: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQ)]
    speaker: Literal["caller", "agent"]
    text: Annotated[str, msgspec.Meta(min_length=1)]
    at_s: Seconds
    interrupted: bool = False
    metrics: Annotated[dict[str, float], msgspec.Meta(max_length=MAX_METRICS)] = {}
    traceparent: str = ""


class CallClose(msgspec.Struct, tag="call.close", frozen=True):
    """Worker: the call has ended and every turn of it was sent."""

    call: Id
    at_s: Seconds
    reason: Short = ""


class Welcome(msgspec.Struct, tag="welcome", frozen=True):
    """Sidecar: answers `hello`. The waits are what the worker may spend at a prompt.

    `now_s` is the sidecar's clock, which the worker uses for all times it sends; 0: not given.
    """

    memory_wait_s: float
    cold_start_s: float
    max_frame_bytes: int
    now_s: Seconds = 0.0


class Memory(msgspec.Struct, tag="memory", frozen=True):
    """Sidecar: what goes into the next prompt of this call.

    Attributes:
        call: The call.
        text: The fenced text, ready for the prompt; empty when there is no memory.
        version: Changes when `text` changes.
        read_at_s: Unix time of the read that `text` comes from; 0 when there is none.
        served: How the memory was served.
        newest: Answers a `speech.started`, or ends the cold start: no newer text is on its way.
        continues: The call was going on with another worker, which was lost or hears it, too: the
            caller has been greeted. The first frame says it.
    """

    call: str
    text: str
    version: str
    read_at_s: float
    served: Literal["fresh", "stale", "disk", "none"]
    newest: bool = False
    continues: bool = False


class Ack(msgspec.Struct, tag="ack", frozen=True):
    """Sidecar: these turns, and with `closed` the end of the call, are on disk."""

    call: str
    items: list[str] = []
    closed: bool = False


class Guidance(msgspec.Struct, tag="guidance", frozen=True):
    """Sidecar: text for the voice agent to follow in this call; it is not spoken."""

    call: str
    text: str


class Say(msgspec.Struct, tag="say", frozen=True):
    """Sidecar: text for the voice agent to speak now, word for word."""

    call: str
    text: str


class HangUp(msgspec.Struct, tag="hang_up", frozen=True):
    """Sidecar: end this call now, as if the agent had hung up."""

    call: str


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Sidecar: it goes away soon. Live calls go on; open no new ones here.

    `retry_after_s`: seconds after which a new connection is worth a try.
    """

    retry_after_s: float


class ErrorFrame(msgspec.Struct, tag="error", frozen=True):
    """Sidecar: a frame was refused.

    Attributes:
        code: A stable word; a later version may send others than `ErrorCode` lists.
        message: What is wrong.
        field: Dotted path of the field at fault, or empty.
        remedy: What to do.
        call: The call it concerns, or empty.
        item: The turn it concerns, or empty.
        retryable: The same frame may be sent again later.
    """

    code: Annotated[str, msgspec.Meta(examples=list(get_args(ErrorCode)))]
    message: str
    field: str = ""
    remedy: str = ""
    call: str = ""
    item: str = ""
    retryable: bool = False


def turn_of(tenant: str, frame: TurnFrame) -> Turn:
    """Return the turn a frame carries."""
    return Turn(
        call=call_key(tenant, frame.call),
        item_id=frame.item,
        seq=frame.seq,
        speaker=frame.speaker,
        text=frame.text,
        at_s=frame.at_s,
        interrupted=frame.interrupted,
        metrics=frame.metrics,
        traceparent=traceparent_or_empty(frame.traceparent),
    )


def hints_of(frame: CallOpen) -> CallerHints:
    """Return the caller hints a frame carries."""
    return CallerHints(
        caller=frame.hints.caller,
        phone=frame.hints.phone,
        identity=frame.hints.identity,
        agent_id=frame.hints.agent_id,
        consent=frame.hints.consent,
    )


FromWorker: TypeAlias = Hello | CallOpen | SpeechStarted | TurnFrame | CallClose
SpoolFrame: TypeAlias = CallOpen | TurnFrame | CallClose
"""What one line of a spool file holds."""
FromSidecar: TypeAlias = Welcome | Memory | Ack | Guidance | Say | HangUp | Drain | ErrorFrame

_worker_decoder: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(
    Hello | CallOpen | SpeechStarted | TurnFrame | CallClose
)
_sidecar_decoder: msgspec.json.Decoder[FromSidecar] = msgspec.json.Decoder(
    Welcome | Memory | Ack | Guidance | Say | HangUp | Drain | ErrorFrame
)
_encoder = msgspec.json.Encoder()


T = TypeVar("T")


class _Typed(msgspec.Struct):
    type: str


class _CallAndItem(msgspec.Struct):
    call: MaybeId = ""
    item: MaybeId = ""


_typed_decoder = msgspec.json.Decoder(_Typed)
_named_decoder = msgspec.json.Decoder(_CallAndItem)
_WORKER_TYPES = frozenset({"hello", "call.open", "speech.started", "turn", "call.close"})
_SIDECAR_TYPES = frozenset(
    {"welcome", "memory", "ack", "guidance", "say", "hang_up", "drain", "error"}
)


def encode(frame: FromWorker | FromSidecar) -> str:
    """Return the frame as JSON text."""
    return _encoder.encode(frame).decode()


def decode_from_worker(raw: str | bytes) -> FromWorker | None:
    """Read a frame a worker sent; None for a type this version does not know.

    Raises:
        LinkError: it is not JSON, or a field is missing or wrong (named in `field`). The error
            names the frame's call and item where these can be read.
    """
    return _decode(raw, _worker_decoder, _WORKER_TYPES)


def decode_from_sidecar(raw: str | bytes) -> FromSidecar | None:
    """Read a frame the sidecar sent; None for a type this version does not know.

    Raises:
        LinkError: it is not JSON, or a field is missing or wrong (named in `field`).
    """
    return _decode(raw, _sidecar_decoder, _SIDECAR_TYPES)


def _decode(raw: str | bytes, decoder: msgspec.json.Decoder[T], types: frozenset[str]) -> T | None:
    if len(raw) > MAX_FRAME_BYTES:
        named = _named_in(raw)
        raise LinkError(
            "too_large",
            f"a frame of {len(raw)} bytes; the limit is {MAX_FRAME_BYTES}",
            hint="split long turns",
            call=named.call,
            item=named.item,
        )
    try:
        kind = _typed_decoder.decode(raw).type
        if kind not in types:
            return None
        return decoder.decode(raw)
    except MALFORMED as error:
        message, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").lstrip(".")
        if not field and "field `" in message:
            field = message.partition("field `")[2].partition("`")[0]
        named = _named_in(raw)
        raise LinkError(
            "malformed",
            _without_values(message),
            field=field,
            hint="see docs/link-protocol.md for the frame's fields",
            call=named.call,
            item=named.item,
        ) from None


def _named_in(raw: str | bytes) -> _CallAndItem:
    """Return the call and item that a wrong frame names, as far as these can be read."""
    try:
        return _named_decoder.decode(raw)
    except MALFORMED:
        return _CallAndItem()


def _without_values(message: str) -> str:
    """Keep the decoder's complaint, which names types and bounds, never the value itself."""
    return message[:200]
