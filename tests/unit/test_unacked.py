"""What a worker still has to send, in order, whatever happens to link and disk."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.model import Utterance
from sidecar.wire.bounds import bounded_hints
from sidecar.wire.frames import (
    MAX_FRAME_BYTES,
    CallClose,
    CallOpen,
    Hints,
    SpeechStarted,
    TurnFrame,
    decode_from_worker,
    encode,
)
from sidecar.worker.unacked import Unacked

pytestmark = pytest.mark.unit


ADA = Hints(caller="ada")


def of_call(hints: Hints | None = ADA) -> Unacked:
    return Unacked("AJ_1", "livekit", opened_at_s=1.0, hints=hints)


def say(unacked: Unacked, item: str, text: str = "hello", *, room: bool = True) -> list[TurnFrame]:
    return unacked.record(Utterance(item, "caller", text), at_s=2.0, now_s=0.0, room=room)


def due(unacked: Unacked, *, now_s: float = 0.0) -> list[object]:
    frames: list[object] = []
    while frame := unacked.next_frame(now_s=now_s):
        frames.append(frame)
    return frames


def items(frames: list[object]) -> list[str]:
    return [frame.item for frame in frames if isinstance(frame, TurnFrame)]


def test_a_call_is_opened_then_told_then_closed() -> None:
    """A call's frames are sent in order: open, turns by seq, close."""
    unacked = of_call()
    say(unacked, "a")
    say(unacked, "b")
    unacked.close(at_s=3.0, reason="bye", now_s=0.0)

    frames = due(unacked)

    assert [CallOpen, TurnFrame, TurnFrame, CallClose] == [type(f) for f in frames]
    assert [1, 2] == [f.seq for f in frames if isinstance(f, TurnFrame)]
    assert [] == due(unacked)


def test_a_new_connection_is_told_what_was_not_acked() -> None:
    """After a reconnect the open is sent again, then only the turns that are not acked."""
    unacked = of_call()
    for item in "abc":
        say(unacked, item)
    due(unacked)
    unacked.acked(["a"], closed=False)

    unacked.rewind()
    say(unacked, "d")

    frames = due(unacked)
    assert isinstance(frames[0], CallOpen)
    assert ["b", "c", "d"] == items(frames)


def test_the_same_item_is_one_turn() -> None:
    """A repeated item makes no second turn, even after its ack."""
    unacked = of_call()
    say(unacked, "a")
    unacked.acked(["a"], closed=False)
    assert [] == say(unacked, "a", "something else")
    assert unacked.all_acked


@pytest.mark.parametrize("text", ["", "  \n "])
def test_silence_is_no_turn(text: str) -> None:
    """An utterance without a word is not recorded."""
    assert [] == say(of_call(), "a", text)


def test_nothing_is_sent_before_it_is_known_who_calls() -> None:
    """A call without hints sends nothing until its caller is known, and then all in order."""
    unacked = of_call(hints=None)
    say(unacked, "a")
    assert [] == due(unacked)

    unacked.identify(Hints(phone="+12025550100"))
    unacked.identify(Hints(phone="+12025550999"))

    frames = due(unacked)
    assert frames[0] == CallOpen(
        call="AJ_1", channel="livekit", hints=Hints(phone="+12025550100"), opened_at_s=1.0
    )
    assert ["a"] == items(frames)


def test_a_speech_start_is_told_once_and_not_after_a_reconnect() -> None:
    """A speech start is sent once and not again after a reconnect, which brings memory anyway."""
    unacked = of_call()
    due(unacked)
    unacked.speech_started()
    unacked.speech_started()
    assert [SpeechStarted(call="AJ_1")] == due(unacked)
    unacked.speech_started()
    unacked.rewind()
    assert [CallOpen] == [type(f) for f in due(unacked)]


def test_a_turn_refused_for_now_goes_again_with_all_behind_it() -> None:
    """After a retryable refusal, the turn and all behind it wait and are sent again in order."""
    unacked = of_call()
    for item in "abc":
        say(unacked, item)
    due(unacked)
    unacked.acked(["a"], closed=False)

    unacked.refused_for_now("b", until_s=1.0, reopen=False)

    assert [] == due(unacked, now_s=0.9)
    assert unacked.paused_for_s(now_s=0.9) == pytest.approx(0.1)
    assert ["b", "c"] == items(due(unacked, now_s=1.0))


def test_an_unknown_call_is_opened_again() -> None:
    """A call that the sidecar lost is opened again, with every turn that is not acked."""
    unacked = of_call()
    say(unacked, "a")
    due(unacked)
    unacked.refused_for_now("a", until_s=1.0, reopen=True)
    frames = due(unacked, now_s=1.0)
    assert [CallOpen, TurnFrame] == [type(f) for f in frames]


def test_text_too_long_for_a_frame_becomes_turns_that_fit() -> None:
    """A text too long for a frame is sent in parts, and no character is lost."""
    text = "\x01" * (MAX_FRAME_BYTES // 2)  # the worst case: six bytes of JSON per character
    frames = say(of_call(), "a", text)

    assert text == "".join(frame.text for frame in frames)
    assert len({frame.item for frame in frames}) == len(frames)
    for frame in frames:
        assert frame == decode_from_worker(encode(frame))


def test_a_name_too_long_is_left_out_never_cut() -> None:
    """A caller's id that is too long is left out, as a shortened one might be somebody else's."""
    hints = bounded_hints(Hints(caller="a" * 1025, phone="+12025550100", identity="\ud800"))
    assert Hints(phone="+12025550100") == hints


@given(
    item=st.text(max_size=600),
    text=st.text(alphabet=st.characters(), min_size=1, max_size=200),
    at_s=st.floats(min_value=-1e9, max_value=4e9),
    metrics=st.dictionaries(st.text(max_size=8, alphabet="abc_"), st.floats(), max_size=4),
    reason=st.text(alphabet=st.characters(), max_size=1_200),
)
def test_whatever_a_channel_reports_is_a_frame_the_sidecar_takes(
    item: str, text: str, at_s: float, metrics: dict[str, float], reason: str
) -> None:
    """Odd ids, lone surrogates, NaN and negative times never make a frame that is refused."""
    unacked = of_call()
    unacked.record(Utterance(item, "agent", text, metrics=metrics), at_s=at_s, now_s=0.0, room=True)
    unacked.close(at_s=at_s, reason=reason, now_s=0.0)
    while frame := unacked.next_frame(now_s=0.0):
        assert frame == decode_from_worker(encode(frame))


def test_what_waits_too_long_is_due_on_disk() -> None:
    """An unacked turn or close is due on disk half a second after it was recorded."""
    unacked = of_call()
    unacked.record(Utterance("a", "caller", "x"), at_s=0.0, now_s=10.0, room=True)
    assert 10.5 == unacked.due_on_disk_s(after_s=0.5)
    unacked.spooled(unacked.unspooled())
    assert unacked.due_on_disk_s(after_s=0.5) is None
    unacked.close(at_s=0.0, reason="", now_s=11.0)
    assert 11.5 == unacked.due_on_disk_s(after_s=0.5)


def spool(unacked: Unacked) -> list[object]:
    frames = unacked.unspooled()
    unacked.spooled(frames)
    return list(frames)


def test_a_call_of_nobody_yet_goes_to_disk_and_then_under_its_callers_name() -> None:
    """A call is spooled with the job's hints until its caller is known, and then with those."""
    job = Hints(agent_id="agent-7")
    unacked = Unacked("AJ_1", "livekit", opened_at_s=1.0, hints=None, meanwhile=job)
    assert unacked.due_on_disk_s(after_s=0.5) is None
    say(unacked, "a")
    assert 0.5 == unacked.due_on_disk_s(after_s=0.5)
    opened, *turns = spool(unacked)
    assert isinstance(opened, CallOpen)
    assert job == opened.hints
    assert ["a"] == items(turns)
    assert unacked.due_on_disk_s(after_s=0.5) is None

    unacked.identify(ADA)

    assert 0.0 == unacked.due_on_disk_s(after_s=0.5)
    [opened] = spool(unacked)
    assert isinstance(opened, CallOpen)
    assert ADA == opened.hints
    assert unacked.due_on_disk_s(after_s=0.5) is None


def test_a_call_that_ends_unidentified_is_told_as_the_job_knows_it() -> None:
    """A call that ends unidentified is sent with the job's hints if it has turns."""
    silent, spoken = (
        Unacked("AJ_1", "livekit", opened_at_s=1.0, hints=None, meanwhile=Hints(agent_id="agent-7"))
        for _ in range(2)
    )
    say(spoken, "a")
    for unacked in (silent, spoken):
        unacked.close(at_s=3.0, reason="", now_s=0.0)
    assert [] == due(silent) == spool(silent)
    opened, *rest = due(spoken)
    assert isinstance(opened, CallOpen)
    assert "agent-7" == opened.hints.agent_id
    assert [TurnFrame, CallClose] == [type(frame) for frame in rest]


def test_a_call_opened_again_after_its_end_is_closed_again() -> None:
    """A late turn after the end opens the call again, and the close is sent again after it."""
    unacked = of_call()
    unacked.close(at_s=3.0, reason="", now_s=0.0)
    due(unacked)
    unacked.acked([], closed=True)
    unacked.rewind()
    assert [] == due(unacked)

    say(unacked, "late")

    assert [CallOpen, TurnFrame, CallClose] == [type(frame) for frame in due(unacked)]
    unacked.acked(["late"], closed=False)
    assert not unacked.all_acked
    unacked.acked([], closed=True)
    assert unacked.all_acked


class Model:
    """Unacked turns with its disk, wire and sidecar, and the turns that each of them holds."""

    def __init__(self) -> None:
        self.unacked = of_call()
        self.now_s = 0.0
        self.disk: list[TurnFrame] = []
        self.said: list[str] = []
        self.wire: list[str] = []
        self.answers: list[tuple[str, bool]] = []
        self.awaited = ""
        self.stored: list[str] = []

    def say(self) -> None:
        self.said.append(f"i{len(self.said)}")
        say(self.unacked, self.said[-1], room=self.unacked.in_memory < 2)

    def spool(self) -> None:
        frames = self.unacked.unspooled()
        self.disk += [frame for frame in frames if isinstance(frame, TurnFrame)]
        self.unacked.spooled(frames)

    def read(self) -> None:
        if self.unacked.disk_only and not self.unacked.overflowing:
            after = self.unacked.read_back_after_seq
            self.unacked.read_back([t for t in self.disk if t.seq > after][:2], now_s=self.now_s)

    def send(self) -> None:
        self.wire += items(due(self.unacked, now_s=self.now_s))

    def pause(self) -> None:
        self.now_s += 1.0

    def take(self) -> None:
        """The sidecar stores one turn, unless it waits for an earlier one."""
        for item in self.wire[:1]:
            self.wire.pop(0)
            if self.awaited in {"", item}:
                self.awaited = ""
                self.stored += [item] if item not in self.stored else []
            self.answers.append((item, not self.awaited))

    def refuse(self) -> None:
        """The sidecar refuses one turn, and then waits for it unless it has it."""
        for item in self.wire[:1]:
            self.wire.pop(0)
            self.answers.append((item, False))
            if item not in self.stored:
                self.awaited = self.awaited or item

    def hear(self) -> None:
        for item, taken in self.answers[:1]:
            self.answers.pop(0)
            if taken:
                self.unacked.acked([item], closed=False)
            else:
                self.unacked.refused_for_now(item, until_s=self.now_s + 1.0, reopen=False)

    def rewind(self) -> None:
        self.wire, self.answers, self.awaited = [], [], ""
        self.unacked.rewind()


STEPS = ["say", "spool", "read", "send", "pause", "take", "refuse", "hear", "rewind"]


@given(st.lists(st.sampled_from(STEPS), max_size=80))
@example(steps=["say", "say", "send", "refuse", "refuse", "hear", "hear"])
@example(steps=["say", "say", "send", "refuse", "take", "hear", "hear"])
def test_no_turn_is_lost_or_overtakes_another(steps: list[str]) -> None:
    """In any order of events each turn is stored or kept, and none overtakes another."""
    model = Model()
    for step in steps:
        getattr(model, step)()
        assert model.said[: len(model.stored)] == model.stored
        assert len(model.said) <= len(model.stored) + model.unacked.count
    for _ in range(20 * len(steps)):
        for step in ("pause", "spool", "read", "send", "take", "hear"):
            getattr(model, step)()
    assert model.said == model.stored
    assert model.unacked.all_acked
