"""The history VAPI sends → settled turns: examples, and random calls against an oracle."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from sidecar.channels.vapi import merging
from sidecar.channels.vapi.alignment import fingerprint, words_of
from sidecar.channels.vapi.history import (
    FALLBACK_NOTE,
    Stretch,
    annotate,
    slot_of,
    stretches_of,
    was_cut,
    with_words,
)
from sidecar.channels.vapi.projection import Followed, conclude, follow
from sidecar.channels.vapi.stored import transcript_of
from sidecar.channels.vapi.windows import Sighting
from sidecar.model import Speaker, Turn
from tests.playbook import Playbook

pytestmark = pytest.mark.unit

CALL = "acme/call-1"
SYSTEM = {"role": "system", "content": "You are Ada."}


@dataclass(frozen=True)
class Shows:
    """A history comes: messages as VAPI sends them."""

    messages: tuple[object, ...]

    @override
    def __str__(self) -> str:
        return f"shows {_lines(self.messages)}"


@dataclass(frozen=True)
class Reports:
    """The call is over, and this is its report."""

    messages: tuple[object, ...]

    @override
    def __str__(self) -> str:
        return f"reports {_lines(self.messages)}"


@dataclass(frozen=True)
class Posts:
    """The first so many turns go into batches, and so never change."""

    turns: int


@dataclass(frozen=True)
class Stores:
    """A turn is stored behind those that are there."""

    item_id: str
    speaker: Speaker
    text: str


@dataclass(frozen=True)
class TakesBack:
    """Stored turns from this place on, none of them in a batch, make way for what follows."""

    place: int


def _lines(messages: Sequence[object]) -> str:
    return " | ".join(f"{one.speaker}: {one.text}" for one in stretches_of(messages)) or "nothing"


class Stored:
    """A call's turns, some of them in batches: what a journal keeps, without one."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.sealed = 0
        self.known_sealed = 0
        self.now_s = 1_000.0
        self.followed = Followed(None)

    def __call__(self, happens: Shows | Reports | Posts) -> list[Stores | TakesBack]:
        """Let something happen; returns what becomes of the turns."""
        if isinstance(happens, Posts):
            self.sealed = happens.turns
            return []
        stored = len(self.turns)
        if not self.see(happens.messages, whole=isinstance(happens, Reports)):
            return []
        made = self.followed.plan
        assert made
        return [
            *([TakesBack(made.unchanged)] if made.unchanged < stored or not made.turns else []),
            *(Stores(turn.item_id, turn.speaker, turn.text) for turn in made.turns),
        ]

    def see(self, messages: Sequence[object], *, whole: bool = False) -> bool:
        """Store what a history says, or a report; returns whether anything changed."""
        return self.take(stretches_of(messages), whole=whole)

    def take(self, stretches: Sequence[Stretch], *, whole: bool = False) -> bool:
        self.now_s += 1.0
        for _ in range(3):
            followed = self._followed(tuple(stretches), whole=whole)
            made = followed.plan
            if made is None or made.unchanged >= self.sealed:
                self.followed = followed
                if made is not None:
                    self.turns[made.unchanged :] = made.turns
                ids = [turn.item_id for turn in self.turns]
                assert len(set(ids)) == len(ids)
                assert all(turn.text for turn in self.turns)
                return made is not None
            self.known_sealed = self.sealed
        raise AssertionError("a plan does not come to rest")

    def _followed(self, stretches: tuple[Stretch, ...], *, whole: bool) -> Followed:
        about: dict[str, Any] = {
            "key": CALL,
            "sealed": self.known_sealed,
            "now_s": self.now_s,
        }
        if not whole:
            return follow(self.turns, self.followed, Sighting(stretches), **about)
        return Followed(conclude(self.turns, self.followed.tail, stretches, **about))

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(stretch.speaker, stretch.text) for stretch in transcript_of(self.turns)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def shows(*messages: object) -> Shows:
    return Shows(messages)


def reports(*messages: object) -> Reports:
    return Reports(messages)


def caller(item_id: str, text: str) -> Stores:
    return Stores(item_id, "caller", text)


def agent(item_id: str, text: str) -> Stores:
    return Stores(item_id, "agent", text)


HELLO = assistant("Hello, this is Ada.")
HELLO_STORED = agent("p1", "Hello, this is Ada.")


class TestReading:
    def test_neighbours_of_one_speaker_are_one_block(self) -> None:
        """Where VAPI cuts one speaker's words into messages means nothing."""
        cut = stretches_of(
            [HELLO, user("Hi."), user("It's me."), assistant("Good"), assistant("day")]
        )
        merged = stretches_of([HELLO, user("Hi. It's me."), assistant("Good day")])
        assert [b.key for b in cut] == [b.key for b in merged]

    def test_nobodys_words_are_left_out(self) -> None:
        """System, tool, empty and strange messages are no turns."""
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}
        strange: list[object] = [
            None,
            7,
            {"role": "user"},
            {"content": "x"},
            {"role": "user", "content": 5},
        ]
        tool = {"role": "tool", "tool_call_id": "x", "content": "{}"}
        assert stretches_of([SYSTEM, call, tool, user("  "), *strange]) == ()

    def test_both_shapes_say_the_same(self) -> None:
        """VAPI's own messages and OpenAI's read alike; VAPI's also have times."""
        own = [
            {
                "role": "bot",
                "message": "Hello, this is Ada.",
                "time": 1_000_000,
                "endTime": 1_500_000,
            },
            {"role": "user", "message": "Hi.", "time": 1_400_000, "endTime": 1_450_000},
        ]
        stretches = stretches_of(own)
        assert [b.key for b in stretches] == [b.key for b in stretches_of([HELLO, user("Hi.")])]
        assert stretches[0].at_s == pytest.approx(1_000.0)
        assert stretches[0].interrupted

    def test_content_in_parts(self) -> None:
        """Content given as a list of parts is read."""
        parts = {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image"}]}
        assert stretches_of([parts]) == (Stretch("caller", "Hi"),)


class TestExamples:
    def test_what_was_streamed_is_not_what_was_said(self) -> None:
        """A reply is stored as the next history has it: as far as it was heard."""
        assert (
            Playbook(Stored())
            >> shows(SYSTEM, HELLO, user("Tuesday"))
            << HELLO_STORED
            >> shows(SYSTEM, HELLO, user("Tuesday"), assistant("i can do"), user("Wait."))
            << caller("p2", "Tuesday")
            << agent("p3", "i can do")
        )

    def test_a_guess_is_no_turn(self) -> None:
        """Words that were guessed too early never enter the transcript."""
        said = user("Next Tuesday after three.")
        assert (
            Playbook(Stored())
            >> shows(HELLO, user("Next"))
            << HELLO_STORED
            >> shows(HELLO, user("Next Tuesday"))
            >> shows(HELLO, said)
            >> shows(HELLO, said, assistant("Sure."), user("Bye"))
            << caller("p2", "Next Tuesday after three.")
            << agent("p3", "Sure.")
        )

    def test_a_repeat_changes_nothing(self) -> None:
        """The same history again is no news."""
        history = [HELLO, user("A"), assistant("B"), user("C")]
        assert (
            Playbook(Stored())
            >> shows(*history)
            << HELLO_STORED
            << caller("p2", "A")
            << agent("p3", "B")
            >> shows(*history)
        )

    def test_a_history_that_lost_its_beginning(self) -> None:
        """A model window that forgets the first turns takes nothing back."""
        call = Stored()
        long = [HELLO]
        for n in range(6):
            long += [user(f"question {n}"), assistant(f"answer {n}")]
        call.see([*long, user("end")])
        assert (
            Playbook(call)
            >> shows(*long[5:], user("end"), assistant("fine"), user("bye"))
            << caller("p14", "end")
            << agent("p15", "fine")
        )
        assert len(call.said) == 15

    def test_an_older_history_takes_nothing_back(self) -> None:
        """A request that arrives late, or a webhook that was slow, changes nothing."""
        history = [HELLO, user("A"), assistant("B"), user("C"), assistant("D"), user("E")]
        assert (
            Playbook(Stored())
            >> shows(*history)
            << HELLO_STORED
            << caller("p2", "A")
            << agent("p3", "B")
            << caller("p4", "C")
            << agent("p5", "D")
            >> shows(*history[:4])
        )

    def test_what_was_posted_gets_a_correction(self) -> None:
        """Words in a batch stay; the correction names them and gives the right ones."""
        call = Stored()
        instead = 'correction: instead of "Call me Bob", noted before, this was said'
        assert (
            Playbook(call)
            >> shows(HELLO, user("Call me Bob"), assistant("Hi Bob"), user("x"))
            << HELLO_STORED
            << caller("p2", "Call me Bob")
            << agent("p3", "Hi Bob")
            >> Posts(3)
            >> reports(HELLO, user("Call me Rob"), assistant("Hi Bob"), user("x"))
            << caller("p2.fix1", f"[{instead}]\nCall me Rob")
            << caller("p4", "x")
            >> Posts(5)
            >> reports(HELLO, user("call me rob!"), assistant("Hi Bob"), user("x"))
        )
        assert call.said[1] == ("caller", "Call me Rob")

    def test_what_a_report_lacks_was_said(self) -> None:
        """A turn that the report does not hold stays, and nothing is said against it."""
        stored = Stored()
        stored.see([HELLO, user("A"), assistant("heard by nobody"), user("B")])
        stored.sealed = 3
        stored.see([HELLO, user("A B")], whole=True)
        assert stored.said == [
            ("agent", "Hello, this is Ada."),
            ("caller", "A"),
            ("agent", "heard by nobody"),
            ("caller", "B"),
        ]
        assert not any("correction" in t.text for t in stored.turns)

    @pytest.mark.parametrize("sealed", range(8))
    @pytest.mark.parametrize("answered", range(3))
    def test_words_around_a_discarded_reply_are_stored_once(
        self, answered: int, sealed: int
    ) -> None:
        """A report that joins the caller's words around a reply nobody heard doubles none."""
        stored = Stored()
        before: list[Any] = [HELLO]
        for n in range(answered):
            before += [user(f"question {n}"), assistant(f"answer {n}")]
        unheard = [user("A"), assistant("heard by nobody"), user("B")]
        stored.see([*before, *unheard, assistant("Fine."), user("Bye")])
        stored.sealed = min(sealed, len(stored.turns))
        stored.see([*before, user("A B"), assistant("Fine."), user("Bye")], whole=True)
        said = [text for speaker, text in stored.said if speaker == "caller"]
        assert said == [*(f"question {n}" for n in range(answered)), "A", "B", "Bye"]
        assert not any("correction" in t.text for t in stored.turns)

    @pytest.mark.parametrize("sealed", [0, 4])
    @pytest.mark.parametrize(
        "report",
        [
            [assistant("This is billing. Okay.")],
            [user("I moved."), assistant("This is billing. Okay.")],
            [assistant("Okay."), user("I moved.")],
        ],
    )
    def test_a_report_of_the_last_assistant_alone(self, report: list[Any], sealed: int) -> None:
        """A squad's report without the earlier assistants takes none of their turns back."""
        stored = Stored()
        history = [HELLO, user("My name is Ada."), assistant("Okay."), user("I moved.")]
        stored.see([*history, assistant("Okay."), user("Bye")])
        before = stored.said
        stored.sealed = sealed
        stored.see(report, whole=True)
        said = iter(stored.said)
        assert all(turn in said for turn in before)
        assert not any("correction: instead" in turn.text for turn in stored.turns)

    def test_a_repeated_word_is_no_anchor_for_a_window(self) -> None:
        """A window that begins with a word said before goes to the end, where it belongs."""
        history = [HELLO, user("Okay."), assistant("A"), user("q"), assistant("B")]
        assert (
            Playbook(Stored())
            >> shows(*history, user("Okay."))
            << HELLO_STORED
            << caller("p2", "Okay.")
            << agent("p3", "A")
            << caller("p4", "q")
            << agent("p5", "B")
            >> shows(user("Okay."), assistant("C"), user("bye"))
            << caller("p6", "Okay.")
            << agent("p7", "C")
        )

    @pytest.mark.parametrize(
        ("one", "other", "same"),
        [
            ("It costs 1.50.", "it costs 1.50", True),
            ("Dr. Osei!", "dr osei", True),
            ("e-mail", "email", True),
            ("1.50", "150", False),
            ("-5", "5", False),
            ("\u22125 degrees", "-5 degrees", True),
            (".5", "5", False),
            ("3:30", "330", False),
            ("5 - 3", "53", False),
            ("1 50", "150", False),
            ("5%", "5", False),
            ("$5", "\u20ac5", False),
            ("re\u0301sume\u0301", "r\u00e9sum\u00e9", True),
            ("resume", "r\u00e9sum\u00e9", False),
            ("\u0915\u093f", "\u0915\u0941", False),
            ("-5", "\u20135", True),
            ("a.lind@acme.example", "alind@acme.example", False),
            ("a-b@acme.example.", "ab@acme.example", False),
            ("Ada@acme.example.", "ada@acme.example", True),
            ("C#", "C", False),
            ("-$50", "$50", False),
            ("$-5", "$5", False),
            ("-\u20ac5", "\u20ac5", False),
            ("$.50", "$50", False),
            ("it is - 5", "it is 5", False),
            ("- 5", "-5", True),
            ("Well - five", "Well five", True),
            ("5'6", "56", False),
            ("5\u20326", "56", False),
            ("5*3", "53", False),
            ("1\u066b5", "15", False),
            ("\uff11\uff0e\uff15", "\uff11\uff15", False),
            ("1\u00b750", "150", False),
            ("5\uff05", "5", False),
            ("5\u066a", "5", False),
            ("5\u2030", "5", False),
            ("5\u20266", "56", False),
            ("we're", "were", False),
            ("we\u2019re", "we're", True),
            ("'yes'", "yes", True),
            ("So... five", "So five", True),
        ],
    )
    def test_what_is_the_same(self, one: str, other: str, same: bool) -> None:
        """Case, spacing and sentence punctuation differ freely; signs, points and marks do not."""
        assert (fingerprint(one) == fingerprint(other)) is same

    @pytest.mark.parametrize("posted", [0, 3])
    @pytest.mark.parametrize(
        ("seen", "reported", "corrected"),
        [
            ("I am not able to pay.", "I am no table to pay.", True),
            ("I scream and a nice cream.", "Ice cream and an ice cream.", True),
            ("Ice cream.", "Icecream.", False),
            ("My e-mail is new.", "My email is new.", False),
            ("Twenty-five or so.", "Twenty five or so.", False),
            ("A notable man.", "A not able man.", False),
        ],
    )
    def test_words_between_which_letters_move_are_others(
        self, seen: str, reported: str, corrected: bool, posted: int
    ) -> None:
        """Reported words are stored; other words correct posted ones, other spaces do not."""
        stored = Stored()
        stored.see([HELLO, user(seen), assistant("Okay."), user("Bye")])
        stored.sealed = posted
        stored.see([HELLO, user(reported), assistant("Okay."), user("Bye")], whole=True)
        fixes = [turn for turn in stored.turns if ".fix" in turn.item_id]
        assert bool(fixes) is bool(posted and corrected)
        assert stored.said[1] == ("caller", seen if posted and not corrected else reported)

    def test_a_last_no_is_heard(self) -> None:
        """Words at the end are compared as words: "No." is not in "I do not know"."""
        known = (Stretch("caller", "I do not know"),)
        assert with_words(known, [Stretch("caller", "No.")]) == (
            Stretch("caller", "I do not know No."),
        )
        assert with_words(known, [Stretch("caller", "not know.")]) == known
        longer = Stretch("caller", "I do not know yet")
        assert with_words(known, [longer]) == (longer,)

    def test_a_turn_learnt_late_says_where_it_belongs(self) -> None:
        """A turn that was missing before posted ones is appended with its place."""
        call = Stored()
        before = 'correction: this was said before "A", noted before'
        assert (
            Playbook(call)
            >> shows(user("A"), assistant("B"), user("C"))
            << caller("p1", "A")
            << agent("p2", "B")
            >> Posts(2)
            >> reports(HELLO, user("A"), assistant("B"), user("C"))
            << agent("p3.before1", f"[{before}]\nHello, this is Ada.")
            << caller("p4", "C")
        )
        assert call.said[0] == ("agent", "Hello, this is Ada.")

    def test_an_empty_report_is_no_word(self) -> None:
        """A report without messages (artifacts switched off) takes back nothing that was seen."""
        assert (
            Playbook(Stored())
            >> shows(HELLO, user("A"), assistant("B"), user("C"))
            << HELLO_STORED
            << caller("p2", "A")
            << agent("p3", "B")
            >> reports()
            << caller("p4", "C")
            >> reports()
        )

    def test_the_report_brings_times_and_spelling(self) -> None:
        """What is not yet posted takes the report's own words and times."""
        call = Stored()
        assert (
            Playbook(call)
            >> shows(user("dr osei"), assistant("yes"), user("bye"))
            << caller("p1", "dr osei")
            << agent("p2", "yes")
            >> reports({"role": "user", "message": "Dr. Osei!", "time": 5_000_000})
            << TakesBack(0)
            << caller("p1", "Dr. Osei!")
            << agent("p2", "yes")
            << caller("p3", "bye")
        )
        assert call.turns[0].at_s == pytest.approx(5_000.0)

    def test_caller_text_cannot_pass_for_a_note(self) -> None:
        """Brackets and line breaks in what is said stay words."""
        call = Stored()
        words = '[correction: "A", noted before, was not said]'
        assert (
            Playbook(call)
            >> shows(user(f"{words}\nB"), assistant("x"), user("y"))
            << caller("p1", f"{words} B")
            << agent("p2", "x")
        )
        assert call.said[0] == ("caller", f"{words} B")


class TestInterruptions:
    @pytest.mark.parametrize(
        ("generated", "spoken", "cut"),
        [
            (
                "I can do Tuesday at 3:30 with Dr. Osei. Would you like me to book that?",
                "i can do tuesday at three thirty with doctor osei would you",
                True,
            ),
            ("It is at 3:30 p.m. today.", "it is at three thirty pm today", False),
            ("Sure.", "sure", False),
            ("", "anything", False),
            ("One two three four five", "something else entirely", False),
        ],
    )
    def test_cut_replies_are_known_by_their_missing_end(
        self, generated: str, spoken: str, cut: bool
    ) -> None:
        """A reply whose last words were not heard was cut off; another transcription is not."""
        assert was_cut(generated, spoken) is cut

    def test_notes(self) -> None:
        """A reported interruption and a spoken fallback are said of the right turn."""
        stretches = stretches_of(
            [HELLO, user("A"), assistant("Sorry, again?"), user("B"), assistant("C")]
        )
        noted = annotate(stretches, generated={}, cut_slots={1}, fallbacks=["Sorry, again?"])
        assert [b.interrupted for b in noted] == [False, False, True, False, False]
        assert [b.note for b in noted] == ["", "", FALLBACK_NOTE, "", ""]
        stored = Stored()
        stored.take(noted)
        assert stored.turns[2].text == f"[{FALLBACK_NOTE}]\nSorry, again?"
        assert transcript_of(stored.turns)[2].note == FALLBACK_NOTE


# Random calls -----------------------------------------------------------------------------------


Messages: TypeAlias = list[dict[str, Any]]


@dataclass
class Spoken:
    """What was truly said, and everything VAPI sends about it."""

    truth: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    seen: list[tuple[int, Messages]] = field(default_factory=list[tuple[int, Messages]])
    report: Messages = field(default_factory=list[dict[str, Any]])


WORDS = st.lists(
    st.sampled_from(["yes", "no", "tuesday", "at", "three", "Osei", "[x]", "so", "bye"]),
    min_size=1,
    max_size=6,
)


@st.composite
def spoken_calls(draw: st.DrawFn, *, discards: bool = True) -> Spoken:  # noqa: C901 - all oddities
    """A call: guesses, repeats, tools, barge-ins, discarded replies, updates late and twice."""
    spoken = Spoken()
    messages: list[dict[str, Any]] = [SYSTEM]
    stamp = 0

    def shown(extra: Sequence[dict[str, Any]] = ()) -> None:
        nonlocal stamp
        stamp += 1
        spoken.seen.append((stamp, [*messages, *extra]))

    if draw(st.booleans()):
        messages.append(HELLO)
        spoken.truth.append(("agent", "Hello, this is Ada."))
    for _ in range(draw(st.integers(1, 6))):
        said = [" ".join(draw(WORDS)) for _ in range(draw(st.integers(1, 3)))]
        for text in said:
            words = text.split()
            for guess in draw(st.lists(st.integers(1, len(words)), max_size=3)):
                shown([user(" ".join(words[:guess]))])
            if (
                discards and draw(st.integers(0, 5)) == 0
            ):  # a reply begins, is heard by nobody, is discarded
                shown([user(words[0]), assistant("too early"), user("noise")])
            messages.append(user(text))
        spoken.truth.append(("caller", " ".join(said)))
        for _ in range(draw(st.integers(1, 3))):
            shown()
        for n in range(draw(st.integers(0, 2))):
            call = {"id": f"c{n}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": f"c{n}", "content": "{}"})
            shown()
        heard = [" ".join(draw(WORDS)) for _ in range(draw(st.integers(0, 2)))]
        if heard:
            messages += [assistant(text) for text in heard]
            spoken.truth.append(("agent", " ".join(heard)))
            if draw(st.booleans()):
                shown()
        else:  # cut before any audio: the next words of the caller follow at once
            _join_callers(spoken)
    spoken.report = list(messages)
    _join_callers(spoken)
    return spoken


def _words(stretches: Sequence[Stretch]) -> int:
    return sum(len(words_of(stretch.text)) for stretch in stretches)


def _join_callers(spoken: Spoken) -> None:
    joined: list[tuple[str, str]] = []
    for speaker, text in spoken.truth:
        if joined and joined[-1][0] == speaker:
            joined[-1] = (speaker, f"{joined[-1][1]} {text}")
        else:
            joined.append((speaker, text))
    spoken.truth = joined


def played(data: st.DataObject, spoken: Spoken) -> Stored:
    """Deliver what VAPI sends of a call: some of it lost, some again, in order of its time."""
    stored = Stored()
    newest = 0
    arrivals = [one for one in spoken.seen if data.draw(st.integers(0, 4), label="kept")]
    arrivals += data.draw(st.lists(st.sampled_from(spoken.seen), max_size=4), label="again")
    for stamp, messages in arrivals:
        if stamp < newest:
            continue
        newest = stamp
        stored.see(messages)
        posted = stored.turns[: stored.sealed]
        stored.sealed = data.draw(st.integers(stored.sealed, len(stored.turns)), label="sealed")
        assert stored.turns[: len(posted)] == posted
    return stored


@given(data=st.data(), spoken=spoken_calls(discards=False))
@settings(max_examples=150, deadline=None)
def test_a_reported_call_is_stored_as_it_was_spoken(data: st.DataObject, spoken: Spoken) -> None:
    """Whatever is repeated, lost, late or posted meanwhile: after the report, exactly the truth."""
    stored = played(data, spoken)
    stored.see(spoken.report, whole=True)
    assert [(s, t) for s, t in stored.said] == spoken.truth
    assert not stored.see(spoken.report, whole=True), "the report once more changes nothing"


@given(data=st.data(), spoken=spoken_calls(), window=st.integers(0, 4), whole=st.booleans())
@settings(max_examples=150, deadline=None)
def test_absence_takes_nothing_back(
    data: st.DataObject, spoken: Spoken, window: int, whole: bool
) -> None:
    """A window, a partial report, a late or repeated body: no turn goes, none is denied."""
    stored = played(data, spoken)
    before, tail = transcript_of(stored.turns), stored.followed.tail
    messages = data.draw(st.sampled_from([spoken.report, *(m for _, m in spoken.seen)]))
    shown = stretches_of(messages)
    shown = shown[len(shown) - min(window, len(shown)) :]
    if not shown:
        return
    stored.take(shown, whole=whole)
    after = transcript_of(stored.turns)
    assert len(after) >= len(before)
    assert _words(after) <= _words([*before, *tail, *shown])
    assert not any("was not said" in turn.text for turn in stored.turns)
    if not whole:
        rest = iter(after)
        assert all(any(stretch.speaker == one.speaker for one in rest) for stretch in before)


@given(data=st.data(), spoken=spoken_calls(discards=False))
@settings(max_examples=150, deadline=None)
def test_a_call_without_a_report_ends_with_what_was_seen_last(
    data: st.DataObject, spoken: Spoken
) -> None:
    """Without a report, the transcript is the last history seen, none of it lost or doubled."""
    stored = Stored()
    for _, messages in spoken.seen:
        stored.see(messages)
        stored.sealed = data.draw(st.integers(stored.sealed, len(stored.turns)), label="sealed")
    last = stretches_of(spoken.seen[-1][1])
    stored.take((), whole=True)
    assert [stretch.key for stretch in transcript_of(stored.turns)] == [
        stretch.key for stretch in last
    ]
    assert slot_of(last) == sum(speaker == "caller" for speaker, _ in stored.said)


def test_a_report_unlike_what_windows_left_apart_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each text is split into words a few times at most, however many turns a call has."""
    read = 0

    def counted(text: str) -> list[str]:
        nonlocal read
        read += 1
        return words_of(text)

    monkeypatch.setattr(merging, "words_of", counted)
    turns = [
        Turn("c", f"p{n}", n, ("caller", "agent")[n // 2 % 2], f"stored words {n}", float(n))
        for n in range(1, 301)
    ]
    report = [
        Stretch(turn.speaker, turn.text if turn.seq <= 160 else f"other words {turn.seq}")
        for turn in turns
    ]
    conclude(turns, (), report, key="c", sealed=0, now_s=1.0)
    assert 140 < read < 20 * len(turns)


REPORTED = [
    (
        ["Hello, this is Ada.", "My name is Jon Smith.", "Hello Jon, how can I help?", "Nope."],
        ["Hello, this is Ada.", "My name is John Smith.", "Hello John, how can I help?", "No."],
    ),
    (["H", "Yes.", "OK.", "By."], ["H", "Yeah.", "Okay.", "Bye."]),
    (
        ["Which city?", "Leon.", "Anything else?", "Two tickets."],
        ["Which city?", "Lyon.", "Anything else?", "Two tickets.", "Anything else?"],
    ),
    (
        ["Hello!", "My name is Jon Smith.", "Thanks, so 3:30 it is?", "Yes."],
        ["Hello!", "My name is John Smith.", "Thanks, so three thirty it is?", "Yes.", "Bye."],
    ),
    (["Your balance?", "It is $50.", "Thanks.", "Bye."],) * 2,
    (
        ["Your balance?", "It is $50.", "Thanks.", "Bye."],
        ["Your balance?", "It is -$50.", "Thanks.", "Bye."],
    ),
]


@pytest.mark.parametrize("posted", range(5))
@pytest.mark.parametrize(("seen", "reported"), REPORTED)
def test_a_report_that_heard_better_corrects_each_turn_at_its_place(
    seen: list[str], reported: list[str], posted: int
) -> None:
    """A report with other words has each turn once, and corrects those that were posted."""

    def spoken(texts: list[str]) -> list[Any]:
        return [(assistant, user)[n % 2](text) for n, text in enumerate(texts)]

    stored = Stored()
    for end in range(2, len(seen) + 1, 2):
        stored.see(spoken(seen[:end]))
    sent = min(posted, len(stored.turns))
    stored.sealed = sent
    stored.see(spoken(reported), whole=True)
    assert [text for _, text in stored.said] == reported
    corrected = [
        was
        for was, now in zip(seen[:sent], reported, strict=False)
        if fingerprint(was) != fingerprint(now)
    ]
    assert len(corrected) == sum(".fix" in turn.item_id for turn in stored.turns)
    assert len(stored.turns) == len(reported) + len(corrected)


SHORT = st.sampled_from(["Yes.", "No.", "Okay.", "Bye.", "Leon.", "At three."])
LONG = st.lists(
    st.sampled_from(
        ["I", "live", "in", "Lyon", "my", "boat", "is", "called", "Moewe", "please", "call", "back"]
    ),
    min_size=3,
    max_size=8,
).map(" ".join)


@given(
    st.lists(
        st.tuples(SHORT | LONG, st.none() | SHORT | LONG, SHORT | LONG), min_size=1, max_size=6
    ),
    st.booleans(),
    st.lists(st.integers(0, 14), max_size=6),
)
def test_a_call_is_stored_as_a_report_has_it_that_heard_better(
    turns: list[tuple[str, str | None, str]], ends_with_caller: bool, posted: list[int]
) -> None:
    """However the caller was misheard, each turn is stored once, as the report has it."""
    truth, heard = [HELLO], [HELLO]
    for said, misheard, answer in turns:
        truth += [user(said), assistant(answer)]
        heard += [user(misheard or said), assistant(answer)]
    if ends_with_caller:
        del truth[-1], heard[-1]
    stored = Stored()
    for n, end in enumerate(range(2, len(heard) + 1, 2)):
        stored.see(heard[:end])
        if n < len(posted):
            stored.sealed = max(stored.sealed, min(posted[n], len(stored.turns)))
    stored.see(truth, whole=True)
    assert [fingerprint(text) for _, text in stored.said] == [
        fingerprint(message["content"]) for message in truth
    ]
