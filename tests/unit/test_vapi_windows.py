"""Windows of VAPI calls in which the same words come again and again, against the truth."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.channels.vapi.history import Stretch, open_from, stretches_of, with_words
from sidecar.channels.vapi.projection import Followed, conclude, follow
from sidecar.channels.vapi.stored import transcript_of
from sidecar.channels.vapi.windows import Sighting
from sidecar.model import Turn

pytestmark = pytest.mark.unit

CALL = "acme/call-1"
CALLER = ("Okay.", "Yes.", "No.", "Oslo please.")
AGENT = ("Sure.", "Which day?", "Okay.", "Yes, sure.")
Said = list[tuple[str, str]]


@dataclass
class Following:
    """A call as its histories make it, some of it posted."""

    turns: list[Turn] = field(default_factory=list[Turn])
    posted: int = 0
    followed: Followed = field(default_factory=lambda: Followed(None))

    def see(self, shown: Sighting) -> None:
        self._store(follow(self.turns, self.followed, shown, **self._about()))

    def end(self, report: tuple[Stretch, ...] = ()) -> None:
        planned = conclude(self.turns, self.followed.tail, report, **self._about())
        self._store(Followed(planned))

    def post(self) -> None:
        self.posted = len(self.turns)

    def _about(self) -> dict[str, Any]:
        return {"key": CALL, "sealed": self.posted, "now_s": 1_000.0}

    def _store(self, followed: Followed) -> None:
        made = followed.plan
        self.followed = followed
        if made is not None:
            assert made.unchanged >= self.posted
            self.turns[made.unchanged :] = made.turns

    @property
    def said(self) -> Said:
        return [(stretch.speaker, stretch.text) for stretch in transcript_of(self.turns)]

    @property
    def corrections(self) -> list[Turn]:
        return [turn for turn in self.turns if ".fix" in turn.item_id]


def stretches(said: Said) -> tuple[Stretch, ...]:
    roles = {"caller": "user", "agent": "assistant"}
    system = {"role": "system", "content": "You are Ada."}
    return stretches_of([system, *({"role": roles[who], "content": text} for who, text in said)])


def guesses(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[:n]) for n in range(1, len(words))]


@given(data=st.data(), window=st.integers(2, 6), asides=st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_who_is_always_answered_is_stored_as_it_was_said(
    data: st.DataObject, window: int, asides: bool
) -> None:
    """If all replies went out whole, a call is stored as it was said, repeated words included."""
    truth: Said = [("agent", "Hello.")]
    call = Following()
    fresh = False
    for _ in range(data.draw(st.integers(2, 9), label="turns")):
        text = data.draw(st.sampled_from(CALLER), label="caller")
        for guess in data.draw(st.sampled_from([[], guesses(text)]), label="guesses"):
            shown = stretches([*truth, ("caller", guess)][-window:])
            call.see(Sighting(shown, asked=True, fresh=fresh))
        truth.append(("caller", text))
        shown = Sighting(stretches(truth[-window:]), asked=True, fresh=fresh)
        call.see(shown)
        for _ in range(data.draw(st.integers(0, 2), label="again")):
            call.see(replace(shown, fresh=False))
        truth.append(("agent", data.draw(st.sampled_from(AGENT), label="agent")))
        fresh = True
        if asides and data.draw(st.booleans(), label="update"):
            call.see(Sighting(stretches(truth)))
        if data.draw(st.booleans(), label="posted"):
            call.post()
        assert not call.corrections
    call.end()
    known = truth if call.said[-1] == truth[-1] else truth[:-1]
    assert call.said == known
    call.end(stretches(truth))
    assert call.said == truth
    assert not call.corrections


@given(data=st.data(), window=st.integers(1, 6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_window_corrects_what_was_posted(data: st.DataObject, window: int) -> None:
    """Whatever a window resembles, it corrects nothing that was posted to Letta."""
    truth: Said = [("agent", "Hello.")]
    call = Following()
    call.see(Sighting(stretches([*truth, ("caller", "My name is Ada.")])))
    truth.append(("caller", "My name is Ada."))
    for _ in range(data.draw(st.integers(3, 9), label="turns")):
        truth.append(("agent", data.draw(st.sampled_from(AGENT), label="agent")))
        truth.append(("caller", data.draw(st.sampled_from(CALLER), label="caller")))
        if len(truth) <= window:
            continue
        late = data.draw(st.integers(0, 1), label="late")
        shown = stretches(truth[: len(truth) - late][-window:])
        fresh, stamped = data.draw(st.booleans()), data.draw(st.booleans())
        call.see(Sighting(shown, asked=True, fresh=fresh, late=not stamped))
        call.post()
        assert not call.corrections
    before = call.said
    call.end(stretches(truth[-window:]))
    rest = iter(call.said)
    assert all(turn in rest for turn in before)
    assert not call.corrections


def test_a_window_that_resembles_the_beginning() -> None:
    """After a whole reply, a window that resembles the call's beginning continues the call."""
    call = Following()
    begun: Said = [("caller", "Okay."), ("agent", "Sure."), ("caller", "Okay then.")]
    call.see(Sighting(stretches(begun), asked=True))
    call.post()
    later: Said = [("caller", "Okay then."), ("agent", "Okay."), ("caller", "Yes.")]
    call.see(Sighting(stretches(later), asked=True, fresh=True))
    call.end()
    assert call.said == [*begun, *later[1:]]
    assert not call.corrections


def test_a_window_that_begins_within_what_one_speaker_said() -> None:
    """If a window begins within what a speaker said, the words it has are not stored again."""
    call = Following()
    for messages in (
        [("agent", "Hello."), ("caller", "Oslo please.")],
        [("agent", "Hello."), ("caller", "Oslo please. On Friday.")],
        [("caller", "On Friday."), ("agent", "Sure."), ("caller", "Bye.")],
    ):
        call.see(Sighting(stretches(messages), asked=True))
    call.end()
    texts = [text for _, text in call.said]
    assert texts == ["Hello.", "Oslo please. On Friday.", "Sure.", "Bye."]


def test_final_transcripts_tell_two_turns_from_one() -> None:
    """Words with two final transcripts that are stored once make another turn."""
    for heard, times in ((1, 1), (2, 2)):
        call = Following()
        call.see(Sighting(stretches([("agent", "Hello."), ("caller", "No.")])))
        call.see(Sighting(stretches([("caller", "Oslo please.")]), asked=True, fresh=True))
        call.see(Sighting(stretches([("caller", "No.")]), asked=True, heard=2))
        call.see(Sighting(stretches([("caller", "No.")]), asked=True, heard=1 + heard))
        call.end()
        assert [text for _, text in call.said].count("No.") == 1 + times


NO = Stretch("caller", "No.")


@pytest.mark.parametrize(
    ("known", "heard", "before", "text"),
    [
        ("No.", [NO], None, "No."),
        ("No.", [NO], NO, "No. No."),
        ("No.", [NO, NO], None, "No. No."),
        ("No. No.", [NO, NO], None, "No. No."),
        ("No. No.", [NO, NO, NO], None, "No. No. No."),
        ("I do not know", [NO], None, "I do not know No."),
        ("Bye.", [Stretch("caller", "Bye. And thanks.")], None, "Bye. And thanks."),
    ],
)
def test_each_final_transcript_is_an_utterance(
    known: str, heard: list[Stretch], before: Stretch | None, text: str
) -> None:
    """The same words at the open end are stored as often as they were transcribed."""
    ended = with_words((Stretch("caller", known),), heard, before=before)
    assert [stretch.text for stretch in ended[open_from(ended) :]] == [text]
