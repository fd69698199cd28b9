"""The nouns: frozen values and ids, nothing that needs I/O.

A *call* is one LiveKit job, one VAPI call or one console chat. A *turn* is one finished utterance
of one speaker in it, as it was heard. A *snapshot* is all memory blocks of one agent at one
moment. An *agent reference* says whose memory a call belongs to, before Letta was asked.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

Speaker: TypeAlias = Literal["caller", "agent"]
Channel: TypeAlias = str
"""Where a call comes from: any id that `is_channel` accepts."""
Consent: TypeAlias = Literal["", "yes", "no"]
Command: TypeAlias = Literal["guide", "say", "hang-up"]
Served: TypeAlias = Literal["fresh", "stale", "disk", "none"]
SERVED: Final[tuple[Served, ...]] = ("fresh", "stale", "disk", "none")

NOBODY = "nobody"
CHANNEL_PATTERN: Final = "[a-z][a-z0-9-]{0,31}"
CHANNEL_RULE: Final = "a letter of a-z, then at most 31 of a-z, 0-9 and -"
OTHER_CHANNEL: Final[Channel] = "other"
"""Stands for a channel whose name is not valid; a channel may also have this name."""
MAX_SEQ: Final = (1 << 63) - 1
"""The largest `seq` of a turn that the journal can hold."""


@dataclass(frozen=True, slots=True)
class Block:
    """One memory block of an agent.

    Attributes:
        label: Letta's label, unique within the agent.
        value: The text.
        description: What the block is for, in the agent's words.
        limit_chars: Letta's limit for the value, or None if it has none.
        read_only: The agent's own tools may not change it.
    """

    label: str
    value: str
    description: str = ""
    limit_chars: int | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of an agent's archival memory. `passage_id` is Letta's own."""

    passage_id: str
    text: str


def version_of(blocks: Sequence[Block]) -> str:
    """Return the version of a set of blocks: 16 hex digits over label, value and description.

    Letta has no ETag and no block time (letta-client 1.12.1), so the content is the version.
    The order of `blocks` does not matter.
    """
    digest = hashlib.sha256()
    for block in sorted(blocks, key=lambda b: b.label):
        for part in (block.label, block.value, block.description):
            raw = part.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "big"))
            digest.update(raw)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All blocks of one agent at one moment.

    Attributes:
        agent_id: Letta's id of the agent.
        blocks: Sorted by label.
        version: `version_of(blocks)`.
        read_at_s: Unix time at which the read *started*: what Letta changed before it is in here.
    """

    agent_id: str
    blocks: tuple[Block, ...]
    version: str
    read_at_s: float

    @classmethod
    def of(cls, agent_id: str, blocks: Sequence[Block], *, read_at_s: float) -> "Snapshot":
        """Build a snapshot: sorts the blocks and computes the version."""
        ordered = tuple(sorted(blocks, key=lambda b: b.label))
        return cls(agent_id, ordered, version_of(ordered), read_at_s)


@dataclass(frozen=True, slots=True)
class AgentRef:
    """Whose memory a call belongs to, known before Letta is asked.

    At most one of the two ids is set: that of the agent (fixed agent, map file), or that of the
    caller, who has an agent of their own, found by tag or created. Without either, the call has
    nobody's memory.

    Attributes:
        tenant: From the credential only, never from what a call says.
        agent_id: Letta's id, if the configuration names the agent.
        caller_key: `caller_key(...)` of the caller, if the agent is the caller's own.
    """

    tenant: str
    agent_id: str | None = None
    caller_key: str | None = None

    @property
    def known(self) -> bool:
        """Whether the call has anybody's memory at all."""
        return self.agent_id is not None or self.caller_key is not None

    @property
    def lane(self) -> str:
        """The queue of this agent in the journal: one post at a time goes out of it."""
        if self.agent_id is not None:
            return f"{self.tenant}/agent/{self.agent_id}"
        if self.caller_key is not None:
            return f"{self.tenant}/caller/{self.caller_key}"
        return f"{self.tenant}/{NOBODY}"

    @classmethod
    def of_lane(cls, lane: str) -> "AgentRef":
        """Return the reference a lane was named after."""
        tenant, _, rest = lane.partition("/")
        kind, _, name = rest.partition("/")
        if kind == "agent":
            return cls(tenant, agent_id=name)
        if kind == "caller":
            return cls(tenant, caller_key=name)
        return cls(tenant)


def caller_key(tenant: str, caller: str) -> str:
    """Return the key of a caller within a tenant: 32 hex digits.

    Tags, lanes, file names and logs have it in place of the number or identity itself.
    It is not secret: anybody who knows a number can compute its key.
    """
    return hashlib.sha256(f"{tenant}\0{caller}".encode()).hexdigest()[:32]


_CHANNEL = re.compile(CHANNEL_PATTERN)


def is_channel(name: str) -> bool:
    """Whether a channel may have this name: all of it has to match `CHANNEL_PATTERN`."""
    return _CHANNEL.fullmatch(name) is not None


def joined_consent(stored: Consent, said: Consent) -> Consent:
    """Return the consent of a call that was stored with one and is opened with another.

    A `no` is never taken back by a later opening.
    """
    return "no" if "no" in {stored, said} else stored or said


def call_key(tenant: str, call_id: str) -> str:
    """Return the id of a call among all tenants. `call_id` is the channel's own."""
    return f"{tenant}/{call_id}"


def call_id_of(key: str) -> str:
    """Return the channel's own id of a call, from the call's key."""
    return key.partition("/")[2]


def room_key(tenant: str, room: str) -> str:
    """Return the id of a room among all tenants. `room` is the channel's own."""
    return f"{tenant}/{room}"


def succeeding_item(key: str, item_id: str) -> str:
    """Return the id of a turn in the call that a successor goes on with.

    The workers of one call number their turns each from 1, and may use the same ids.

    Args:
        key: Of the successor.
        item_id: As the successor's worker gives it; empty: what all of them begin with.
    """
    return f"{call_id_of(key)}/{item_id}"


def consent_of(said: object) -> Consent:
    """Read consent in an owner's data: a value that is not plainly a yes counts as a no.

    Args:
        said: A JSON value; None and the empty string mean that nobody asked.
    """
    if said is None or said == "":
        return ""
    agreed = said is True or (isinstance(said, str) and said.strip().casefold() in {"yes", "true"})
    return "yes" if agreed else "no"


@dataclass(frozen=True, slots=True)
class CallerHints:
    """What a channel knows about who is on the line; identity rules turn it into an `AgentRef`.

    Attributes:
        caller: An id the owner's own backend vouches for (job metadata, signed metadata).
        phone: A number as the carrier reported it: a claim, not proof.
        identity: The participant identity of a signed LiveKit token, or the console's chat name.
        agent_id: An agent the owner's own backend named for this call.
        consent: Whether the caller agrees that the call is kept; empty: nobody asked.
    """

    caller: str = ""
    phone: str = ""
    identity: str = ""
    agent_id: str = ""
    consent: Consent = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the journal keeps it.

    Attributes:
        key: `call_key(tenant, call_id)`.
        ref: Whose memory it belongs to.
        channel: Where it comes from.
        caller_key: Key of the caller, or empty when anonymous. Set also where the agent is
            fixed: turns of one caller are never shown to another of the same agent.
        opened_at_s: Unix time.
        closed_at_s: Unix time, None while the call is live.
        conversation_id: Letta's conversation for this call, once one was opened.
        consent: Whether the caller agreed that it is kept; after a `no`, only what was stored
            before the `no` is kept.
        final: Its channel has had the last word on it: only a further last word corrects it.
        room: Key of the room in which it is heard (`room_key`), as long as it may go on there;
            empty: in none, or it was ended.
        epoch: Grows each time a replica takes the call; as stored when it was opened. Not compared:
            it says who has the call, not what it is.
    """

    key: str
    ref: AgentRef
    channel: Channel
    caller_key: str
    opened_at_s: float
    closed_at_s: float | None = None
    conversation_id: str | None = None
    consent: Consent = ""
    final: bool = False
    room: str = ""
    epoch: int = field(default=0, compare=False)

    @property
    def call_id(self) -> str:
        """The channel's own id of the call."""
        return call_id_of(self.key)


@dataclass(frozen=True, slots=True)
class Utterance:
    """What one speaker said, finished and as it was heard, as a worker's channel reports it.

    On the sidecar's side it becomes a `Turn`, or several if it is long.

    Attributes:
        item_id: The channel's id of the utterance; the same id again is the same utterance.
        speaker: `caller` or `agent`.
        text: What was heard; empty text is no turn.
        at_s: Unix time in seconds by the clock of the worker's process; None: now.
        interrupted: The other side cut it off.
        metrics: Seconds by name.
        traceparent: The span of the turn (W3C Trace Context), or empty.
    """

    item_id: str
    speaker: Speaker
    text: str
    at_s: float | None = None
    interrupted: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One finished utterance, as it was heard.

    Attributes:
        call: Key of the call.
        item_id: The channel's id of the utterance; (call, item_id) identifies the turn.
        seq: Place in the call as the worker counted it, from 1; 0 when it does not count; at most
            `MAX_SEQ`.
        speaker: `caller` or `agent`.
        text: What was said, never empty.
        at_s: Unix time at which it was said.
        interrupted: The other side cut it off; `text` holds what was heard.
        metrics: Seconds by name, as LiveKit measured them for this turn.
        traceparent: The span of this turn (W3C), or empty.
    """

    call: str
    item_id: str
    seq: int
    speaker: Speaker
    text: str
    at_s: float
    interrupted: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    traceparent: str = ""


TURN_SECONDS: Final = (
    "transcription_delay",
    "end_of_turn_delay",
    "on_user_turn_completed_delay",
    "llm_node_ttft",
    "llm_node_ttfs",
    "tts_node_ttfb",
    "playback_latency",
    "e2e_latency",
)
"""What LiveKit measures of a turn, in seconds: entries of its `ChatMessage.metrics` (1.8.9)."""


def prompt_metrics(served: Served, *, age_s: float | None, wait_s: float) -> dict[str, float]:
    """Return how a prompt's memory was served, for the `metrics` of the turn that answers it.

    Args:
        served: How the memory was served.
        age_s: Age of the read that it comes from; None when there is none.
        wait_s: How long the prompt waited for it.
    """
    metrics = {f"memory_served_{served}": 1.0, "memory_wait_s": wait_s}
    if age_s is not None:
        metrics["memory_age_s"] = age_s
    return metrics


def prompt_of(metrics: Mapping[str, float]) -> tuple[Served, float | None, float] | None:
    """Return what `prompt_metrics` was given, or None for a turn without it."""
    for served in SERVED:
        if f"memory_served_{served}" in metrics:
            return served, metrics.get("memory_age_s"), metrics.get("memory_wait_s", 0.0)
    return None


@dataclass(frozen=True, slots=True)
class Batch:
    """Turns of one call, sealed for one post.

    Attributes:
        batch_id: A UUID; Letta's `otid` of the post. Its turns never change.
        lane: The queue it came out of.
        call: The call, with its conversation id where one is known.
        agent_id: Letta's id if the journal knows it, else None (the lane's ref says whose).
        part: 1 for the first batch of the call.
        turns: In order, never empty.
        attempt: How often it was sent before; 0 before the first try.
        in_doubt: An earlier try may have landed: look it up before sending.
        horizon_s: Unix time until which an earlier try may still land.
        sealed_at_s: Unix time of sealing: no try of it is older.
        tried_since_s: Unix time from which the time to give up counts: sealing, or the last replay.
        last_part: The call is closed and nothing of it comes after this batch.
        epoch: Grows each time the lane is claimed; a claim with an older one changes nothing.
    """

    batch_id: str
    lane: str
    call: Call
    agent_id: str | None
    part: int
    turns: tuple[Turn, ...]
    attempt: int
    in_doubt: bool
    horizon_s: float
    sealed_at_s: float
    tried_since_s: float
    last_part: bool
    epoch: int = 0


_LAST_SECOND_S = 253_402_300_799.0  # 9999-12-31T23:59:59Z, the last `datetime` can name


def utc_of(at_s: float) -> datetime:
    """Return a Unix time as a date for people; beyond the calendar, the nearest date."""
    at_s = min(max(at_s, 0.0), _LAST_SECOND_S) if at_s == at_s else 0.0  # noqa: PLR0124 - NaN
    return datetime.fromtimestamp(at_s, UTC)
