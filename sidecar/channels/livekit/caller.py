"""Who is on the line, as a LiveKit job and its room tell."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from livekit import rtc
from livekit.agents import JobContext
from livekit.agents.job import DEFAULT_PARTICIPANT_KINDS
from livekit.protocol import models

from sidecar import telemetry
from sidecar.channels.link.frames import Hints
from sidecar.model import consent_of
from sidecar.telemetry import Emit


def hints_of_metadata(metadata: str) -> Hints:
    """Read `{"caller": …, "agent_id": …, "consent": "no"}` from a job's metadata; other metadata says nothing.

    The owner's own backend writes it, so all of it is vouched for.
    """
    try:
        raw: object = json.loads(metadata) if metadata.strip() else {}
    except (ValueError, RecursionError):
        return Hints()
    if not isinstance(raw, dict):
        return Hints()
    fields = cast("dict[str, object]", raw)

    def text(name: str) -> str:
        value = fields.get(name)
        return value.strip() if isinstance(value, str) else ""

    consent = consent_of(fields.get("consent"))
    return Hints(caller=text("caller"), agent_id=text("agent_id"), consent=consent)


def hints_of_participant(identity: str, attributes: Mapping[str, str], *, sip: bool) -> Hints:
    """Return what a participant tells of itself.

    A number counts only where LiveKit's SIP bridge wrote it: another participant may set any
    attribute. And a SIP participant's identity is made from the number, so it proves nothing.
    """
    if sip:
        return Hints(phone=attributes.get("sip.phoneNumber", "").strip())
    return Hints(identity=identity)


def _joined(named: Hints, seen: Hints) -> Hints:
    return Hints(
        caller=named.caller,
        agent_id=named.agent_id,
        phone=seen.phone,
        identity=seen.identity,
        consent=named.consent,
    )


class _Events(Protocol):
    """A room as a source of events; its own types say less."""

    def on(self, event: str, callback: Callable[[Any], None]) -> object: ...

    def off(self, event: str, callback: Callable[[Any], None]) -> None: ...


class Identification:
    """Finds out who is on the line: from the job, from the room, or when the caller joins it."""

    def __init__(self, ctx: JobContext, participant_identity: str | None, emit: Emit) -> None:
        self._ctx = ctx
        self._wanted = participant_identity
        self._emit = emit
        self.named = hints_of_metadata(ctx.job.metadata)
        """What the job says, whoever is on the line."""

    def from_job(self) -> Hints | None:
        """Return what the job says, or None when it does not name a caller."""
        if self.named.caller:
            return self.named
        if self._ctx.job.HasField("participant"):
            info = self._ctx.job.participant
            sip = info.kind == models.ParticipantInfo.Kind.SIP
            seen = hints_of_participant(info.identity, dict(info.attributes), sip=sip)
            return _joined(self.named, seen)
        return None

    def from_room(self) -> Hints | None:
        """Return what the room says; None while no caller is in it, nobody if there are several.

        With two people in the room nothing tells which of them the agent will listen to, and
        one's memory must not be heard by the other.
        """
        callers = [
            p
            for p in self._ctx.room.remote_participants.values()
            if p.kind in DEFAULT_PARTICIPANT_KINDS and self._wanted in {None, p.identity}
        ]
        if not callers:
            return None
        if len(callers) > 1:
            self._emit(
                telemetry.caller_unresolved,
                call=self._ctx.job.id,
                channel="livekit",
                why="several participants; name the caller in the job's metadata",
            )
            return self.named
        caller = callers[0]
        sip = caller.kind == rtc.ParticipantKind.PARTICIPANT_KIND_SIP
        return _joined(
            self.named, hints_of_participant(caller.identity, caller.attributes, sip=sip)
        )

    def when_joined(self, tell: Callable[[Hints], None]) -> None:
        """Tell who it is when the first caller joins the room."""

        def joined(_: rtc.RemoteParticipant) -> None:
            if hints := self.from_room():
                events.off("participant_connected", joined)
                tell(hints)

        events = cast("_Events", self._ctx.room)
        events.on("participant_connected", joined)
