"""A job and its room without a server; the test says who joins and leaves."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from livekit import rtc
from livekit.agents import JobContext
from livekit.agents.testing import fake_job_context
from livekit.rtc._proto.participant_pb2 import ParticipantPermission


class FakeRoom(rtc.EventEmitter[Any]):
    """A room with people in it."""

    def __init__(self, *people: rtc.RemoteParticipant) -> None:
        super().__init__()
        self.name = "room"
        self.remote_participants = {person.identity: person for person in people}

    def isconnected(self) -> bool:
        return True

    def joins(self, person: Any) -> None:
        self.remote_participants[person.identity] = person
        self.emit("participant_connected", person)

    def leaves(self, person: Any) -> None:
        del self.remote_participants[person.identity]
        self.emit("participant_disconnected", person)


@dataclass
class Person:
    """A participant, as a room shows one."""

    identity: str
    kind: int = rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD
    attributes: dict[str, str] = field(default_factory=dict[str, str])
    permissions: ParticipantPermission = field(default_factory=ParticipantPermission)
    sid: str = "PA_1"


ADA = Person("ada")
SIP = Person(
    "sip_+12025550100",
    rtc.ParticipantKind.PARTICIPANT_KIND_SIP,
    {"sip.phoneNumber": "+12025550100"},
)


@contextmanager
def job(metadata: object = None, room: FakeRoom | None = None) -> Generator[JobContext]:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata or {"caller": "ada"})
    with fake_job_context(
        job_id="AJ_1",
        job_metadata=text,
        room=room or FakeRoom(),  # type: ignore[arg-type]
    ) as ctx:
        ctx.job.room.sid = "RM_1"
        try:
            yield ctx
        finally:
            ctx._tempdir.cleanup()
