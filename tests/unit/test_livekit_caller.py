"""The caller in a LiveKit room, and the person whom the job's metadata names."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from livekit import rtc
from livekit.agents import (
    ConversationItemAddedEvent,
    JobContext,
    UserInputTranscribedEvent,
    UserStateChangedEvent,
    llm,
)
from livekit.protocol import models
from livekit.rtc._proto.participant_pb2 import ParticipantPermission

from sidecar.livekit import LinkSettings, finish, remember
from sidecar.model import Utterance
from sidecar.prompt_wait import Waits
from sidecar.telemetry import Telemetry
from sidecar.testing.fake_sidecar import FakeSidecar
from sidecar.wire.frames import CallOpen, Hints, Memory
from sidecar.worker.call import LinkedCall
from sidecar.worker.livekit.caller import (
    Identification,
    hints_of_metadata,
    hints_of_person,
    person_of,
)
from sidecar.worker.livekit.recorder import CallRecorder
from sidecar.worker.unacked import Unacked
from tests.livekit_room.lobby import ADA, SIP, FakeRoom, Person, job
from tests.livekit_room.studio import studio
from tests.quiet import Quiet

pytestmark = [
    pytest.mark.unit,
    pytest.mark.anyio,
]


@pytest.mark.parametrize(
    ("metadata", "hints"),
    [
        ('{"caller": "ada", "agent_id": "agent-1"}', Hints(caller="ada", agent_id="agent-1")),
        ('{"caller": " ada ", "more": 1}', Hints(caller="ada")),
        ('{"caller": 7, "agent_id": null}', Hints()),
        ("", Hints()),
        ("plain words", Hints()),
        ("[1]", Hints()),
        ('"ada"', Hints()),
    ],
)
def test_job_metadata_names_the_caller(metadata: str, hints: Hints) -> None:
    """A job's metadata can name a caller and an agent, and anything else in it is ignored."""
    assert hints == hints_of_metadata(metadata)


def test_only_the_sip_bridge_vouches_for_a_number() -> None:
    """A `sip.phoneNumber` counts only for a SIP participant, not for a browser that sets it."""
    attributes = {"sip.phoneNumber": "+12025550100"}
    assert Hints(identity="eve") == hints_of_person(person_of("eve", attributes, sip=False))
    assert Hints(phone="+12025550100") == hints_of_person(person_of("sip_1", attributes, sip=True))


async def opened(sidecar: FakeSidecar, ctx: JobContext, tmp_path: Path, **options: Any) -> Hints:
    """Return the hints with which a job opens its call."""
    emit = Telemetry(strict=True, logger=Quiet()).emit
    async with sidecar.serving() as url:
        made = studio(lambda _: "")
        await remember(
            ctx, made.session, settings=LinkSettings(url, None, tmp_path), emit=emit, **options
        )
        if isinstance(ctx.room, FakeRoom) and not ctx.room.remote_participants:
            ctx.room.joins(Person("robot", rtc.ParticipantKind.PARTICIPANT_KIND_AGENT))
            ctx.room.joins(ADA)
            ctx.room.joins(Person("late"))
        await sidecar.until(lambda: bool(sidecar.of_type(CallOpen)))
        await finish(ctx)
    frame = sidecar.of_type(CallOpen)[0]
    assert isinstance(frame, CallOpen)
    assert "AJ_1" == frame.call
    assert "RM_1" == frame.room
    return frame.hints


async def test_a_caller_in_the_room_is_identified_at_once(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """A SIP caller who is there already is known before the session starts."""
    with job("{}", FakeRoom(SIP)) as ctx:  # type: ignore[arg-type]
        assert Hints(phone="+12025550100") == await opened(sidecar, ctx, tmp_path)


async def test_a_caller_who_joins_later_is_identified_then(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """The call opens for the first person who joins, and other agents don't count."""
    with job("{}", FakeRoom()) as ctx:
        assert Hints(identity="ada") == await opened(sidecar, ctx, tmp_path)


async def test_who_comes_by_telephone_is_preferred(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """If a SIP participant and another person are there, the SIP participant is the caller."""
    with job("{}", FakeRoom(ADA, SIP)) as ctx:  # type: ignore[arg-type]
        assert Hints(phone="+12025550100") == await opened(sidecar, ctx, tmp_path)


class FakeSession:
    """A session in a room; the test sets which participant it listens to."""

    def __init__(self) -> None:
        self.linked_participant: Any = None
        self.room_io = self


def identification(
    ctx: JobContext, session: Any, listens_to: str | None = None, **options: Any
) -> Identification:
    emit = options.pop("emit", Telemetry(strict=True, logger=Quiet()).emit)
    return Identification(ctx, session, listens_to, emit=emit, **options)


PEOPLE = (
    Person("ada"),
    Person("wanda"),
    SIP,
    Person("robot", rtc.ParticipantKind.PARTICIPANT_KIND_AGENT),
    Person("recorder", rtc.ParticipantKind.PARTICIPANT_KIND_EGRESS),
    Person("avatar", attributes={"lk.publish_on_behalf": "agent"}),
)


def test_two_numbers_under_one_identity_are_two_callers() -> None:
    """Callers by telephone who share one identity are told apart by their numbers."""
    with job("{}", room := FakeRoom()) as ctx:
        session: Any = FakeSession()
        who = identification(ctx, session)
        for number in ("+12025550100", "+12025550101"):
            caller = replace(SIP, attributes={"sip.phoneNumber": number})
            room.joins(caller)
            session.linked_participant = caller
            assert who.changed() == Hints(phone=number)
            assert who.changed() is None


WANDA = Person("wanda")
WATCHER = Person(
    "watcher", permissions=ParticipantPermission(can_subscribe=True, hidden=False)
)  # may send nothing
SIP_2 = replace(SIP, identity="sip_2", attributes={"sip.phoneNumber": "+12025550101"})
AGAIN = replace(SIP, identity="sip_again")  # the same number calls once more
HIDDEN, KEYPAD, BLANK = (
    replace(SIP, identity="sip_anonymous", attributes={"sip.phoneNumber": number})
    for number in ("Anonymous", "+18656696", "")
)
ROBOT = Person("robot", rtc.ParticipantKind.PARTICIPANT_KIND_AGENT)
RECORDER = Person("recorder", rtc.ParticipantKind.PARTICIPANT_KIND_EGRESS)

KEEPER = {"caller": "keeper"}
A_KEEPER = {"caller": "keeper", "agent_id": "agent-1", "consent": "no"}
THE_KEEPER = Hints(caller="keeper")
PHONE, PHONE_2 = Hints(phone="+12025550100"), Hints(phone="+12025550101")
POSER = Person("+12025550100")  # in a browser, under a name that people may choose
IS_POSER = Hints(identity="+12025550100")
IS_ADA, IS_WANDA = Hints(identity="ada"), Hints(identity="wanda")

# Steps: `+` joins, `-` leaves, `>` is listened to, `!` says something, `*` was there before.
# Then the hints of each call of the job, in order.
MEANT: dict[str, tuple[dict[str, Any], list[tuple[str, Person]], list[Hints]]] = {
    "a person alone": (KEEPER, [("+", ADA), (">", ADA)], [THE_KEEPER]),
    "a telephone alone": (KEEPER, [("+", SIP), (">", SIP)], [THE_KEEPER]),
    "a watcher first, heard never": (
        KEEPER,
        [("+", WANDA), (">", WANDA), ("+", SIP), ("-", WANDA), (">", SIP)],
        [THE_KEEPER, IS_WANDA, THE_KEEPER],
    ),
    "a watcher first, not listened to": (
        KEEPER,
        [("+", WANDA), ("+", SIP), (">", SIP)],
        [THE_KEEPER],
    ),
    "a watcher first, listened to when the telephone is there": (
        KEEPER,
        [("+", WANDA), ("+", SIP), (">", WANDA), (">", SIP)],
        [THE_KEEPER, IS_WANDA, THE_KEEPER],
    ),
    "a watcher second": (
        KEEPER,
        [("+", SIP), ("+", WANDA), (">", SIP), (">", WANDA), (">", SIP)],
        [THE_KEEPER, IS_WANDA, THE_KEEPER],
    ),
    "a watcher who may send nothing": (
        KEEPER,
        [("+", WATCHER), (">", WATCHER), ("-", WATCHER), ("+", ADA), (">", ADA)],
        [THE_KEEPER, Hints(identity="watcher"), THE_KEEPER],
    ),
    "a caller, and a colleague whom the agent rings up": (
        KEEPER,
        [("+", ADA), (">", ADA), ("!", ADA), ("+", SIP), (">", SIP), (">", ADA)],
        [THE_KEEPER, PHONE, THE_KEEPER],
    ),
    "the colleague stays": (
        KEEPER,
        [("+", ADA), (">", ADA), ("!", ADA), ("+", SIP), ("-", ADA), (">", SIP)],
        [THE_KEEPER, PHONE],
    ),
    "two telephones, one after the other": (
        KEEPER,
        [("+", SIP), (">", SIP), ("+", SIP_2), (">", SIP_2), ("-", SIP_2), (">", SIP)],
        [THE_KEEPER, PHONE_2, THE_KEEPER],
    ),
    "two telephones at once": (
        KEEPER,
        [("*", SIP), ("*", SIP_2), (">", SIP), ("-", SIP), (">", SIP_2)],
        [THE_KEEPER, PHONE, PHONE_2],
    ),
    "two persons at once": (
        KEEPER,
        [("*", WANDA), ("*", ADA), (">", WANDA), ("-", WANDA), (">", ADA)],
        [THE_KEEPER, IS_WANDA, IS_ADA],
    ),
    "two persons and a telephone at once": (
        KEEPER,
        [("*", WANDA), ("*", ADA), ("*", SIP), (">", WANDA), (">", SIP)],
        [THE_KEEPER, IS_WANDA, THE_KEEPER],
    ),
    "the next person": (
        KEEPER,
        [("+", ADA), (">", ADA), ("-", ADA), ("+", WANDA), (">", WANDA)],
        [THE_KEEPER, IS_WANDA],
    ),
    "the same number again, under another identity": (
        KEEPER,
        [("+", SIP), (">", SIP), ("-", SIP), ("+", AGAIN), (">", AGAIN)],
        [THE_KEEPER, THE_KEEPER],
    ),
    "the next telephone that withholds its number": (
        KEEPER,
        [("+", HIDDEN), (">", HIDDEN), ("-", HIDDEN)]
        + [(step, replace(HIDDEN, sid="PA_2")) for step in "+>"],
        [THE_KEEPER, Hints(phone="Anonymous")],
    ),
    "the next telephone behind a placeholder": (
        KEEPER,
        [("+", KEYPAD), (">", KEYPAD), ("-", KEYPAD)]
        + [(step, replace(KEYPAD, sid="PA_2")) for step in "+>"],
        [THE_KEEPER, Hints(phone="+18656696")],
    ),
    "the next telephone without a number": (
        KEEPER,
        [("+", BLANK), (">", BLANK), ("-", BLANK)]
        + [(step, replace(BLANK, sid="PA_2")) for step in "+>"],
        [THE_KEEPER, Hints()],
    ),
    "a person who joins again": (
        KEEPER,
        [("+", ADA), (">", ADA), ("-", ADA), *((step, replace(ADA, sid="PA_2")) for step in "+>")],
        [THE_KEEPER],
    ),
    "a number that joins again": (
        KEEPER,
        [("+", SIP), (">", SIP), ("-", SIP), *((step, replace(SIP, sid="PA_2")) for step in "+>")],
        [THE_KEEPER],
    ),
    "an identity that the job calls the caller": (
        {"caller": "ada"},
        [("+", WANDA), (">", WANDA), ("!", WANDA), ("+", ADA), (">", ADA)],
        [Hints(caller="ada"), IS_WANDA, Hints(caller="ada")],
    ),
    "a number that the job calls the caller": (
        {"caller": "+12025550100"},
        [("+", SIP_2), (">", SIP_2), ("+", SIP), (">", SIP)],
        [Hints(caller="+12025550100"), PHONE_2, Hints(caller="+12025550100")],
    ),
    "an identity that is written like the caller's number": (
        {"caller": "+12025550100"},
        [("+", POSER), (">", POSER), ("!", POSER), ("+", SIP), (">", SIP)],
        [Hints(caller="+12025550100"), IS_POSER, Hints(caller="+12025550100")],
    ),
    **{
        f"an identity that is written as {address}": (
            {"caller": address},
            [("+", Person(address)), (">", Person(address)), ("+", SIP), (">", SIP)],
            [Hints(caller=address), Hints(identity=address), Hints(caller=address)],
        )
        for address in ("tel:+12025550100", "sip:+12025550100", "SIP_+12025550100")
    },
    "an identity that is a number, alone": (
        {"caller": "+12025550100"},
        [("+", POSER), (">", POSER)],
        [Hints(caller="+12025550100")],
    ),
    "a participant named": (
        KEEPER | {"participant": "ada"},
        [("+", SIP), (">", SIP), ("-", SIP), ("+", ADA), (">", ADA)],
        [THE_KEEPER, PHONE, THE_KEEPER],
    ),
    "a participant named who never comes": (
        KEEPER | {"participant": "nobody"},
        [("+", ADA), (">", ADA)],
        [THE_KEEPER, IS_ADA],
    ),
    "agents and recorders first": (
        KEEPER,
        [("+", ROBOT), ("+", RECORDER), ("+", ADA), (">", ADA)],
        [THE_KEEPER],
    ),
    "an agent that is listened to": (
        KEEPER,
        [("+", ROBOT), (">", ROBOT), ("+", ADA), (">", ADA)],
        [THE_KEEPER, Hints(identity="robot"), THE_KEEPER],
    ),
    "what else the job says of its caller": (
        A_KEEPER,
        [("+", ADA), (">", ADA), ("-", ADA), ("+", WANDA), (">", WANDA)],
        [
            Hints(caller="keeper", agent_id="agent-1", consent="no"),
            Hints(identity="wanda", consent="no"),
        ],
    ),
    "an agent for whoever comes": (
        {"agent_id": "agent-1", "consent": "yes"},
        [("+", WANDA), (">", WANDA), ("+", SIP), (">", SIP)],
        [
            Hints(identity="wanda", agent_id="agent-1", consent="yes"),
            Hints(identity="wanda", agent_id="agent-1"),
            Hints(phone="+12025550100", agent_id="agent-1", consent="yes"),
        ],
    ),
    "nobody named, a telephone second": (
        {"more": 1},
        [("+", WANDA), ("+", SIP), ("+", ADA), (">", SIP)],
        [IS_WANDA, PHONE],
    ),
    "nobody named, a telephone among others": (
        {"more": 1},
        [("*", WANDA), ("*", SIP), ("+", ADA), (">", ADA)],
        [PHONE, IS_ADA],
    ),
}


@pytest.mark.parametrize("case", MEANT)
def test_the_jobs_metadata_speaks_for_one(case: str) -> None:
    """The caller that the job names is never more than one person, whatever people do."""
    metadata, steps, calls = MEANT[case]
    with job(metadata, room := FakeRoom()) as ctx:
        session: Any = FakeSession()
        who = identification(ctx, session)
        seen = [hints] if (hints := who.from_job()) else []

        def look() -> None:
            if (hints := who.changed()) is not None:
                seen.append(hints)

        for step, person in steps:
            if step == "*":  # there before anybody looks
                room.remote_participants[person.identity] = person  # type: ignore[assignment]
                continue
            if step == "+":
                room.joins(person)
            elif step == "-":
                if session.linked_participant is person:
                    session.linked_participant = None
                room.leaves(person)
            elif step == ">":
                session.linked_participant = person
            look()
            if step == "!":
                assert session.linked_participant is person
                who.heard()
    assert seen == calls


@pytest.mark.parametrize(
    ("metadata", "doubts"), [(KEEPER, 1), ({"consent": "yes"}, 1), ({"agent_id": "agent-1"}, 0)]
)
def test_a_doubt_is_said_once(metadata: dict[str, Any], doubts: int) -> None:
    """If the job's caller may be one of several people, the log says so in one line."""
    telemetry = Telemetry(strict=True, logger=Quiet())
    room = FakeRoom(ADA, WANDA)  # type: ignore[arg-type]
    with job(metadata, room) as ctx:
        who = identification(ctx, FakeSession(), emit=telemetry.emit)
        who.from_job()
        for _ in range(3):
            who.changed()
    assert doubts == telemetry.counts["caller_in_doubt"]


def test_on_a_shared_line_the_job_names_whom_the_agent_hears_first() -> None:
    """On a shared line the job's caller is the first one heard, even with others present."""
    with job(KEEPER, FakeRoom(ADA, WANDA)) as ctx:  # type: ignore[arg-type]
        session: Any = FakeSession()
        who = identification(ctx, session, shared_line=True)
        assert THE_KEEPER == who.from_job()
        session.linked_participant = WANDA
        assert who.changed() is None
        session.linked_participant = ADA
        assert IS_ADA == who.changed()


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["joins", "leaves", "link", "unlink"]),
        st.sampled_from(PEOPLE),
        st.booleans(),
    ),
    max_size=14,
)


class FakeLine:
    """A link that gives each call its own caller's memory."""

    waits = Waits()
    clock = staticmethod(time.time)
    connected = True
    away = False

    def __init__(self) -> None:
        self.recorded: list[tuple[str, str]] = []

    def take(self, call: LinkedCall, said: Utterance) -> None:
        self.recorded.append((owner_of(call), said.text))

    def wake(self) -> None: ...

    def open(self, call_id: str, hints: Hints | None) -> LinkedCall:
        return LinkedCall(self, Unacked(call_id, "livekit", opened_at_s=0, hints=hints))


def owner_of(call: LinkedCall) -> str:
    hints = call.unacked.opening().hints
    return hints.caller or hints.phone or hints.identity


def key_of(person: Person | None) -> str:
    return (person.attributes.get("sip.phoneNumber") or person.identity) if person else ""


class Party:
    """A job with its room, its session and its calls."""

    def __init__(
        self, ctx: JobContext, *, shared: bool, clock: Callable[[], float] = time.time
    ) -> None:
        assert isinstance(ctx.room, FakeRoom)
        self.room, self.session, self.line = ctx.room, FakeSession(), FakeLine()
        self.shared, self.said = shared, 0
        self.meant: str = json.loads(ctx.job.metadata).get("caller", "")
        self.named: set[str] = set()
        who = identification(ctx, self.session, shared_line=shared)
        self.recorder = CallRecorder(
            self.line.open("J", who.from_job()),
            emit=Telemetry(strict=True, logger=Quiet()).emit,
            clock=clock,
            ended=lambda _: None,
            listeners=who,
            open_next=lambda hints: self.line.open("J.n", hints),
        )
        who.when_moved(self.recorder.look)
        self.recorder.look()

    async def step(self, step: str, person: Person) -> None:
        there = person.identity in self.room.remote_participants
        if step == "joins" and not there:
            self.room.joins(person)
        elif step == "leaves" and there:
            if self.session.linked_participant is person:
                self.session.linked_participant = None
            self.room.leaves(person)
        elif step == "link" and there and person in PEOPLE[:3]:
            self.session.linked_participant = person
        elif step == "unlink":
            self.session.linked_participant = None
        await asyncio.sleep(0)

    async def prompt(self) -> None:
        self._remember()  # of the call as it was
        before = await self.recorder.memory()
        self._judge(before)
        self._remember()  # and of the call as it is
        memory = await self.recorder.memory()
        self._judge(memory)
        linked = self.session.linked_participant
        if linked is not None and self._people() == [linked]:
            assert memory is not None, "alone on the line, and no memory"

    def _remember(self) -> None:
        call = self.recorder.call
        if call.identified:
            call.take_memory(Memory("J", owner_of(call), "v", 1.0, "fresh", newest=True))

    def _people(self) -> list[Person]:
        return [p for p in PEOPLE[:3] if p.identity in self.room.remote_participants]

    def _judge(self, memory: Memory | None) -> None:
        linked = self.session.linked_participant
        if memory is not None and linked is not None:
            assert memory.text in {key_of(linked), self.meant}
        if memory is not None and not self.shared:
            assert all(memory.text in {key_of(p), self.meant} for p in self._people())
            assert len(self._people()) <= 1

    def words(self) -> None:
        linked = self.session.linked_participant
        if linked is None:
            return
        self.said += 1
        text = f"word {self.said}"
        self.recorder._transcribed(UserInputTranscribedEvent(transcript=text, is_final=True))
        said = llm.ChatMessage(role="user", content=[text], transcript_confidence=1.0)
        self.recorder._item_added(ConversationItemAddedEvent(item=said))
        owner, recorded = self.line.recorded[-1]
        assert recorded == text
        assert owner in {key_of(linked), self.meant}
        if owner == self.meant:
            self.named.add(key_of(linked))


@pytest.mark.parametrize(
    ("spoke_s", "recognised_s", "whose"),
    [
        ((-2.0, -0.5), 1.0, "ada"),  # her last words, recognised after the switch
        ((-2.0, -0.5), 9.0, "wanda"),  # too late for that
        ((-20.0, -10.0), 1.0, "wanda"),
        ((-2.0, 0.5), 1.0, "wanda"),  # across the switch
        ((0.5, 1.0), 1.5, "wanda"),
    ],
)
async def test_words_said_before_a_split_are_of_whom_was_heard_then(
    spoke_s: tuple[float, float], recognised_s: float, whose: str
) -> None:
    """Words recognised after a switch belong to the person who was heard when they were said."""
    switch_s = time.time()
    with job("{}", FakeRoom(ADA, WANDA)) as ctx:  # type: ignore[arg-type]
        party = Party(ctx, shared=False, clock=lambda: switch_s)
        party.session.linked_participant = ADA
        party.recorder.look()
        at_s = {"speaking": switch_s + spoke_s[0], "listening": switch_s + spoke_s[1]}
        for state, came_s in at_s.items():
            if came_s > switch_s:
                party.session.linked_participant = WANDA
                party.recorder.look()
            before = "listening" if state == "speaking" else "speaking"
            party.recorder._user_state_changed(
                UserStateChangedEvent(
                    old_state=before,
                    new_state=state,  # type: ignore[arg-type]
                    created_at=came_s,
                )
            )
        party.session.linked_participant = WANDA
        party.recorder._transcribed(
            UserInputTranscribedEvent(
                transcript="a word", is_final=True, created_at=switch_s + recognised_s
            )
        )
        item = llm.ChatMessage(role="user", content=["a word"], transcript_confidence=1.0)
        party.recorder._item_added(ConversationItemAddedEvent(item=item))
    assert [(whose, "a word")] == party.line.recorded


@settings(max_examples=300, deadline=None)
@given(
    metadata=st.sampled_from(
        [
            {},
            {"caller": "keeper"},
            {"caller": "keeper", "participant": "wanda"},
            {"caller": "wanda"},
            {"caller": "+12025550100"},
        ]
    ),
    steps=_STEPS,
    shared=st.booleans(),
)
def test_no_prompt_holds_the_memory_of_anybody_but_the_one_who_listens(
    metadata: dict[str, str], steps: list[tuple[str, Person, bool]], shared: bool
) -> None:
    """Memory and words are always those of the one linked person, whatever people do."""
    # Unless the line is shared, there is no memory while another person is in the room. At most one
    # person speaks as the caller whom the job names, not counting one who bears that very name.

    async def run() -> Party:
        with job(json.dumps(metadata), FakeRoom()) as ctx:
            party = Party(ctx, shared=shared)
            for step, person, speaks in steps:
                await party.step(step, person)
                await party.prompt()
                if speaks:
                    party.words()
            return party

    named = anyio.run(run).named
    if "participant" in metadata:
        assert named <= {"wanda"}
    assert len(named - {metadata.get("caller", "")}) <= 1


async def test_the_worker_may_name_whom_it_listens_to(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """With a participant named, the other people in the room are ignored."""
    with job("{}", FakeRoom(ADA, SIP)) as ctx:  # type: ignore[arg-type]
        hints = await opened(sidecar, ctx, tmp_path, participant_identity="ada")
        assert Hints(identity="ada") == hints


async def test_an_agent_named_by_the_job_goes_with_the_caller_in_the_room(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """If the metadata names only an agent, the caller is the person on the line."""
    with job({"agent_id": "agent-1"}, FakeRoom(SIP)) as ctx:  # type: ignore[arg-type]
        hints = await opened(sidecar, ctx, tmp_path)
        assert Hints(agent_id="agent-1", phone="+12025550100") == hints


async def test_a_job_for_one_participant_names_its_caller(
    sidecar: FakeSidecar, tmp_path: Path
) -> None:
    """A job for a participant knows its caller before it joins the room."""
    with job("{}", FakeRoom()) as ctx:
        ctx.job.participant.CopyFrom(
            models.ParticipantInfo(
                identity="sip_1",
                kind=models.ParticipantInfo.Kind.SIP,
                attributes={"sip.phoneNumber": "+12025550100"},
            )
        )
        assert Hints(phone="+12025550100") == await opened(sidecar, ctx, tmp_path)
