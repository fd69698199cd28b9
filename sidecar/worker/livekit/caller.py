"""Who is on the line, according to a LiveKit job and its room."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from livekit import rtc
from livekit.agents import AgentSession, JobContext
from livekit.agents.job import DEFAULT_PARTICIPANT_KINDS
from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
from livekit.protocol import models

from sidecar import telemetry
from sidecar.model import consent_of
from sidecar.telemetry import Emit
from sidecar.untrusted import MALFORMED
from sidecar.wire.frames import Hints
from sidecar.worker.livekit.metadata_caller import MetadataCaller, Person


def hints_of_metadata(metadata: str) -> Hints:
    """Read the hints in a job's metadata, `{"caller": …, "agent_id": …, "consent": "no"}`.

    Other metadata gives empty hints. The owner's own backend writes it, so all of it is vouched
    for.
    """
    fields = _fields_of(metadata)
    consent = consent_of(fields.get("consent"))
    caller, agent_id = _text(fields, "caller"), _text(fields, "agent_id")
    return Hints(caller=caller, agent_id=agent_id, consent=consent)


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    return value.strip() if isinstance(value, str) else ""


def _fields_of(metadata: str) -> dict[str, object]:
    try:
        raw: object = json.loads(metadata) if metadata.strip() else {}
    except MALFORMED:
        return {}
    return cast("dict[str, object]", raw) if isinstance(raw, dict) else {}


def person_of(
    identity: str,
    attributes: Mapping[str, str],
    *,
    sip: bool,
    silent: bool = False,
    session: str = "",
) -> Person:
    """Return a participant as a person.

    A number counts only if LiveKit's SIP bridge wrote it: other participants may set any
    attribute.
    """
    number = attributes.get("sip.phoneNumber", "").strip() if sip else ""
    return Person(identity, by_telephone=sip, number=number, silent=silent, session=session)


def hints_of_person(person: Person) -> Hints:
    """Return the hints of a person: a telephone's number, or the identity of anybody else.

    A telephone's identity is made from its number, and proves nothing.
    """
    if person.by_telephone:
        return Hints(phone=person.number)
    return Hints(identity=person.identity)


def _joined(named: Hints, seen: Hints) -> Hints:
    return Hints(
        caller=named.caller,
        agent_id=named.agent_id,
        phone=seen.phone,
        identity=seen.identity,
        consent=named.consent,
    )


class _RoomEvents(Protocol):
    """A room as a source of events; its own types say less."""

    def on(self, event: str, callback: Callable[[Any], None]) -> object: ...


class Identification:
    """Finds out who is on the line: from the job, from the room, then from whom the agent hears.

    `AgentSession` listens to one participant, and may change to another in the middle of a job
    (`RoomIO.set_participant`, or one leaves and the next comes). It has no event for that, so this
    looks each time.

    Args:
        ctx: The job.
        session: The session that listens.
        participant_identity: Whom the agent listens to, if `RoomOptions` name somebody.
        shared_line: All who hear the agent may hear what is remembered of its caller.
        emit: Events.
    """

    def __init__(
        self,
        ctx: JobContext,
        session: AgentSession[Any],
        participant_identity: str | None,
        *,
        shared_line: bool = False,
        emit: Emit,
    ) -> None:
        self._ctx = ctx
        self._session = session
        self._emit = emit
        self._shared_line = shared_line or _says_shared_line(ctx.job.metadata)
        self.named = hints_of_metadata(ctx.job.metadata)
        """What the job says, no matter who is on the line."""
        named = _text(_fields_of(ctx.job.metadata), "participant")
        of_job = ctx.job.participant.identity if ctx.job.HasField("participant") else ""
        meant = named or of_job or participant_identity or ""
        self._awaited = participant_identity or meant
        self._metadata_caller = MetadataCaller(self.named.caller, meant)
        self._person: Person | None = None
        self._heard_any = False
        self._last_hints: Hints | None = None

    def from_job(self) -> Hints | None:
        """Return what the job says, or None when it does not name a caller."""
        if self._ctx.job.HasField("participant"):
            info = self._ctx.job.participant
            sip = info.kind == models.ParticipantInfo.Kind.SIP
            attributes = dict(info.attributes)
            self._person = person_of(info.identity, attributes, sip=sip, session=info.sid)
            self._metadata_caller.see([self._person])
            self._last_hints = self._hints_of(self._person)
        elif self.named.caller:
            self._last_hints = self.named
        return self._last_hints

    def changed(self) -> Hints | None:
        """Return the hints of the person heard now, if they or the person changed; else None.

        Until the agent hears somebody, that is the caller among the people in the room: one who
        comes by telephone is preferred, and of several nobody is picked.
        """
        linked = self._linked()
        heard = _person_in(linked) if linked is not None else None
        people = self._people()
        # People who share a line on purpose need not come alone.
        doubt = self._metadata_caller.see(
            [heard] if self._shared_line and heard is not None else people
        )
        if doubt and (self.named.caller or self.named.consent == "yes"):
            self._emit(
                telemetry.caller_in_doubt, call=self._ctx.job.id, channel="livekit", why=doubt
            )
        if heard is not None:
            return self._on_line(heard)
        expected = None if self._heard_any else self._expected(people)
        return self._on_line(expected, heard=False) if expected is not None else None

    def heard(self) -> None:
        """The person on the line has said something."""
        if self._person is not None:
            self._metadata_caller.heard(self._person)

    @property
    def shared(self) -> bool:
        """Whether somebody other than the person on the line hears the agent."""
        if self._shared_line:
            return False
        if self._person is None:
            return not all(self._metadata_caller.speaks_for(person) for person in self._people())
        return any(person.identity != self._person.identity for person in self._people())

    def _on_line(self, person: Person, *, heard: bool = True) -> Hints | None:
        """Put a person on the line; return the hints if the person or the hints are new.

        A call opened before anybody was heard belongs to the first person heard, if that person
        has the same hints.
        """
        before, self._person = self._person if self._heard_any else None, person
        self._heard_any = self._heard_any or heard
        earlier, self._last_hints = self._last_hints, self._hints_of(person)
        same = before is None or (before.identity == person.identity and before.is_same(person))
        return None if same and earlier == self._last_hints else self._last_hints

    def _expected(self, people: Sequence[Person]) -> Person | None:
        if self.named.caller:
            callers = [person for person in people if self._metadata_caller.speaks_for(person)]
        else:
            callers = [p for p in people if self._awaited in {"", p.identity} and not p.silent]
        by_telephone = [person for person in callers if person.by_telephone]
        if len(callers) > 1 and len(by_telephone) == 1:
            callers = by_telephone
        return callers[0] if len(callers) == 1 else None

    def _hints_of(self, person: Person) -> Hints:
        """Return who a person is; what the job says of its caller counts only for whom it means."""
        seen = hints_of_person(person)
        if self._metadata_caller.speaks_for(person):
            return self.named if self.named.caller else _joined(self.named, seen)
        agent_id = "" if self.named.caller else self.named.agent_id
        consent = "no" if self.named.consent == "no" else ""
        return _joined(Hints(agent_id=agent_id, consent=consent), seen)

    def _linked(self) -> rtc.RemoteParticipant | None:
        try:
            return self._session.room_io.linked_participant
        except RuntimeError:  # not started, or not in a room
            return None

    def _people(self) -> list[Person]:
        """Return the people in the room who hear: no agents, recorders or avatars of an agent."""
        return [
            _person_in(p)
            for p in self._ctx.room.remote_participants.values()
            if p.kind in DEFAULT_PARTICIPANT_KINDS
            and not p.attributes.get(ATTRIBUTE_PUBLISH_ON_BEHALF)
        ]

    def when_moved(self, look: Callable[[], None]) -> None:
        """Call `look` when a participant comes or goes, and again once LiveKit has processed it."""
        loop = asyncio.get_running_loop()

        def moved(_: rtc.RemoteParticipant) -> None:
            look()
            loop.call_soon(look)

        events = cast("_RoomEvents", self._ctx.room)
        events.on("participant_connected", moved)
        events.on("participant_disconnected", moved)


def _person_in(participant: rtc.RemoteParticipant) -> Person:
    sip = participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_SIP
    may = participant.permissions
    silent = may.can_subscribe and not (may.can_publish or may.can_publish_data)
    return person_of(
        participant.identity,
        participant.attributes,
        sip=sip,
        silent=silent,
        session=participant.sid,
    )


def _says_shared_line(metadata: str) -> bool:
    return _fields_of(metadata).get("shared_line") is True
