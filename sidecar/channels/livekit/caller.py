"""Who is on the line, as a LiveKit job and its room tell."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from livekit import rtc
from livekit.agents import AgentSession, JobContext
from livekit.agents.job import DEFAULT_PARTICIPANT_KINDS
from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
from livekit.protocol import models

from sidecar.channels.link.frames import Hints
from sidecar.model import consent_of
from sidecar.untrusted import MALFORMED


def hints_of_metadata(metadata: str) -> Hints:
    """Read `{"caller": …, "agent_id": …, "consent": "no"}` from a job's metadata; other metadata says nothing.

    The owner's own backend writes it, so all of it is vouched for.
    """
    fields = _fields_of(metadata)

    def text(name: str) -> str:
        value = fields.get(name)
        return value.strip() if isinstance(value, str) else ""

    consent = consent_of(fields.get("consent"))
    return Hints(caller=text("caller"), agent_id=text("agent_id"), consent=consent)


def _fields_of(metadata: str) -> dict[str, object]:
    try:
        raw: object = json.loads(metadata) if metadata.strip() else {}
    except MALFORMED:
        return {}
    return cast("dict[str, object]", raw) if isinstance(raw, dict) else {}


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


class Identification:
    """Finds out who is on the line: from the job, the room, and then from whom the agent hears.

    `AgentSession` links its ears to one participant, and may link them to another in the middle
    of a job (`RoomIO.set_participant`, or one leaves and the next comes). It has no event for it,
    so this asks each time.

    Args:
        ctx: The job.
        session: Whose ears they are.
        participant_identity: Whom the agent listens to, where `RoomOptions` name one.
        shared_line: All who hear the agent may hear what is remembered of its caller.
    """

    def __init__(
        self,
        ctx: JobContext,
        session: AgentSession[Any],
        participant_identity: str | None,
        *,
        shared_line: bool = False,
    ) -> None:
        self._ctx = ctx
        self._session = session
        self._wanted = participant_identity
        self._shared_line = shared_line or _says_shared_line(ctx.job.metadata)
        self._person: str | None = None
        self._number = ""
        self.named = hints_of_metadata(ctx.job.metadata)
        """What the job says, whoever is on the line."""

    def from_job(self) -> Hints | None:
        """Return what the job says, or None when it does not name a caller."""
        seen = Hints()
        if self._ctx.job.HasField("participant"):
            info = self._ctx.job.participant
            self._person = info.identity
            sip = info.kind == models.ParticipantInfo.Kind.SIP
            seen = hints_of_participant(info.identity, dict(info.attributes), sip=sip)
            self._number = seen.phone
        if self.named.caller:
            return self.named
        return _joined(self.named, seen) if self._person is not None else None

    def from_room(self) -> Hints | None:
        """Return who in the room is the caller; None while nobody is.

        One who comes by telephone is preferred. Between several nobody is picked: nothing tells
        yet which of them the agent will listen to.
        """
        callers = [p for p in self._people() if self._wanted in {None, p.identity}]
        if not callers:
            return None
        by_telephone = [p for p in callers if _is_sip(p)]
        if len(callers) > 1 and len(by_telephone) == 1:
            callers = by_telephone
        return self._hints_of(callers[0]) if len(callers) == 1 else None

    def changed(self) -> Hints | None:
        """Return who is heard now, if it is somebody else than before; None otherwise."""
        linked = self._linked()
        if linked is not None:
            return None if self._is_heard(linked) else self._hints_of(linked)
        if self._person is None and not self.named.caller:
            return self.from_room()
        return None

    @property
    def shared(self) -> bool:
        """Whether somebody hears the agent who is not the one on the line."""
        if self._shared_line:
            return False
        others = [p for p in self._people() if p.identity != self._person]
        return len(others) > (1 if self._person is None else 0)

    def _is_heard(self, participant: rtc.RemoteParticipant) -> bool:
        """Whether a participant is the one on the line: all callers may have one identity."""
        sip = _is_sip(participant)
        seen = hints_of_participant(participant.identity, participant.attributes, sip=sip)
        return participant.identity == self._person and seen.phone == self._number

    def _hints_of(self, participant: rtc.RemoteParticipant) -> Hints:
        """Return who a participant is, and take him for the one on the line.

        Who the job names is the first; what it says of that caller does not hold for the next.
        """
        first, self._person = self._person is None, participant.identity
        seen = hints_of_participant(
            participant.identity, participant.attributes, sip=_is_sip(participant)
        )
        self._number = seen.phone
        if first:
            return self.named if self.named.caller else _joined(self.named, seen)
        agent_id = "" if self.named.caller else self.named.agent_id
        consent = "no" if self.named.consent == "no" else ""
        return _joined(Hints(agent_id=agent_id, consent=consent), seen)

    def _linked(self) -> rtc.RemoteParticipant | None:
        try:
            return self._session.room_io.linked_participant
        except RuntimeError:  # not started, or not in a room
            return None

    def _people(self) -> list[rtc.RemoteParticipant]:
        """Return those in the room who hear: no agents, no recorders, no avatars of an agent."""
        return [
            p
            for p in self._ctx.room.remote_participants.values()
            if p.kind in DEFAULT_PARTICIPANT_KINDS
            and not p.attributes.get(ATTRIBUTE_PUBLISH_ON_BEHALF)
        ]

    def when_moved(self, look: Callable[[], None]) -> None:
        """Have somebody look when a participant comes or goes, and once LiveKit has heeded it."""
        loop = asyncio.get_running_loop()

        def moved(_: rtc.RemoteParticipant) -> None:
            look()
            loop.call_soon(look)

        events = cast("_Events", self._ctx.room)
        events.on("participant_connected", moved)
        events.on("participant_disconnected", moved)


def _is_sip(participant: rtc.RemoteParticipant) -> bool:
    return participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_SIP


def _says_shared_line(metadata: str) -> bool:
    return _fields_of(metadata).get("shared_line") is True
