"""Words a caller said that no turn holds: sent once and in order, whatever the session drops."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from typing_extensions import override

from sidecar.worker.livekit.uncommitted import Uncommitted

pytestmark = pytest.mark.unit

# Few words, so that they repeat; some differ in sign or case alone.
WORDS = st.sampled_from(["yes", "Yes.", "no", "5", "-5", "yes no", "no no", "five", "…"])


@dataclass(frozen=True, eq=False)
class Piece:
    """Words that were reported as final."""

    text: str
    at_s: float


@dataclass
class Ended:
    """A turn that the session has ended, and what will become of it."""

    pieces: list[Piece]
    began_s: float
    ended_s: float
    fate: str


class Conversation(RuleBasedStateMachine):
    """A caller who speaks, and a session that commits, drops, changes and forgets turns.

    It keeps what a turn holds as LiveKit's `AudioRecognition` does: the finals since the last turn
    ended, and the interim.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock_s = 1_764_400_000.0
        self.uncommitted = Uncommitted()
        self.finals: list[Piece] = []
        self.interim = ""
        self.interim_heard = ""
        self.began_s = 0.0
        self.ended: list[Ended] = []
        self.waiting: list[Piece] = []
        """Pieces not sent yet, in order."""
        self.due: list[str] = []
        """What should have been sent so far."""
        self.recorded: list[str] = []

    def tick(self) -> float:
        self.clock_s += 0.37
        return self.clock_s

    def report(self, text: str) -> None:
        if not self.finals:
            self.began_s = self.tick()
        piece = Piece(text, self.tick())
        assert "" == self.uncommitted.heard(text, final=True, at_s=piece.at_s)
        self.finals.append(piece)
        self.waiting.append(piece)
        self.interim = self.interim_heard = ""

    def end_turn(self, fate: str) -> None:
        pieces, self.finals = self.finals, []
        self.ended.append(Ended(pieces, self.began_s, self.tick(), fate))

    @rule(text=WORDS)
    def reports_an_interim(self, text: str) -> None:
        self.uncommitted.heard(text, final=False, at_s=self.tick())
        self.interim = self.interim_heard = text

    @rule(text=WORDS)
    def reports_a_final(self, text: str) -> None:
        self.report(text)

    @precondition(lambda self: bool(self.finals))
    @rule(fate=st.sampled_from(["committed", "committed", "dropped", "changed"]))
    def turn_ends(self, fate: str) -> None:
        self.end_turn(fate)

    @precondition(lambda self: bool(self.interim))
    @rule(fate=st.sampled_from(["committed", "dropped"]))
    def turn_is_ended_before_its_final(self, fate: str) -> None:
        """`commit_user_turn`: the interim is reported as final, and its own final never comes."""
        self.report(self.interim)
        self.end_turn(fate)

    @precondition(lambda self: bool(self.finals))
    @rule()
    def turn_is_cleared(self) -> None:
        """`clear_user_turn`: the session drops what was heard without an event."""
        self.interim = ""
        self.end_turn("dropped")

    @precondition(lambda self: bool(self.ended))
    @rule()
    def session_comes_to_a_turn(self) -> None:
        """The session's hook may be slow, so more may have been said since the turn ended."""
        turn = self.ended.pop(0)
        if turn.fate == "dropped":
            return
        text = " ".join(piece.text for piece in turn.pieces)
        text = text if turn.fate == "committed" else "something else"
        left, text = self.uncommitted.committed(text, began_s=turn.began_s, ended_s=turn.ended_s)
        self.recorded += [*(final.unrecorded for final in left), text]

        before = [piece for piece in self.waiting if piece.at_s < turn.pieces[0].at_s]
        own = [piece.text for piece in turn.pieces if piece in self.waiting]
        self.due += [piece.text for piece in before]
        self.due += own if turn.fate == "committed" else ["something else"]
        self.waiting = [p for p in self.waiting if p not in before and p not in turn.pieces]

    @rule(ago_s=st.sampled_from([0.0, 1.0, 3.0]))
    def time_is_up(self, ago_s: float) -> None:
        until_s = self.clock_s - ago_s
        self.recorded += [final.unrecorded for final in self.uncommitted.take_until(until_s)]
        self.due += [piece.text for piece in self.waiting if piece.at_s <= until_s]
        self.waiting = [piece for piece in self.waiting if piece.at_s > until_s]

    @invariant()
    def all_that_was_heard_is_recorded_or_left(self) -> None:
        waiting = [piece.text for piece in self.waiting]
        heard = " ".join([*self.due, *waiting, self.interim_heard])
        assert " ".join([*self.recorded, self.uncommitted.rest()]).split() == heard.split()

    @override
    def teardown(self) -> None:
        while self.ended:
            self.session_comes_to_a_turn()
        self.all_that_was_heard_is_recorded_or_left()


def test_each_word_heard_is_recorded_once() -> None:
    """Whatever a session does with its turns, all words are sent once and in order."""
    run_state_machine_as_test(
        Conversation, settings=settings(max_examples=100, stateful_step_count=40, deadline=None)
    )


def commit(heard: Uncommitted, text: str, **options: Any) -> tuple[str, str]:
    """Return what is sent before a committed turn, and the text sent for it."""
    left, recorded = heard.committed(text, **options)
    return " ".join(final.unrecorded for final in left), recorded


def test_a_turn_takes_its_own_words_and_no_others() -> None:
    """A turn takes its own words and leaves the next interim, even with the same words."""
    heard = Uncommitted()
    heard.heard("i am", final=False)
    heard.heard("I am Ada.", final=True)
    heard.heard("i am", final=False)
    assert ("", "I am Ada.") == commit(heard, "I am Ada.")
    assert "i am" == heard.rest()


def test_everything_heard_and_not_settled_is_kept() -> None:
    """What is not in a turn yet is kept: final transcripts and the interim after them."""
    heard = Uncommitted()
    heard.heard("My number", final=True)
    heard.heard("is fi", final=False)
    heard.heard("is five", final=False)
    assert "My number is five" == heard.rest()


@pytest.mark.parametrize(
    ("ended_s", "rest"), [(1.5, "and hurry"), (0.5, "call me Ada and hurry"), (9.0, "")]
)
def test_words_of_the_next_turn_are_not_taken_by_a_changed_one(ended_s: float, rest: str) -> None:
    """A changed turn takes the words heard before its end, and leaves later ones."""
    heard = Uncommitted()
    heard.heard("call me Ada", final=True, at_s=1)
    heard.heard("and hurry", final=True, at_s=2)
    assert ("", "Call me A.") == commit(heard, "Call me A.", began_s=0, ended_s=ended_s)
    assert rest == heard.rest()


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        ("yes please", "yes please"),  # said again: the session had forgotten the first
        ("yes yes please", "yes please"),  # one turn, of which the first word was sent
        ("something else", "something else"),
    ],
)
def test_what_was_recorded_is_not_recorded_again(text: str, recorded: str) -> None:
    """A turn sends only those of its words that were not sent before."""
    heard = Uncommitted()
    heard.heard("yes", final=True, at_s=1)
    assert "yes" == heard.take()
    assert "" == heard.rest()
    heard.heard("yes please", final=True, at_s=2)
    assert ("", recorded) == commit(heard, text, began_s=1.5, ended_s=3)
    assert "" == heard.rest()


def test_what_is_typed_is_recorded_though_it_was_said_before() -> None:
    """Typed words are always sent, in place of the same spoken words if those are unsent."""
    heard = Uncommitted()
    heard.heard("yes", final=True)
    assert ("", "yes") == commit(heard, "yes", spoken=False)
    assert "" == heard.rest()
    heard.heard("no", final=True)
    assert "no" == heard.take()
    assert ("", "no") == commit(heard, "no", spoken=False)
    assert ("", "no no") == commit(heard, "no no", spoken=False)


def test_words_are_recorded_when_their_time_is_up() -> None:
    """Words reported by a given time are sent once, and their turn sends only the rest."""
    heard = Uncommitted()
    for at_s, word in enumerate(["one", "two", "three"]):
        heard.heard(word, final=True, at_s=at_s)
    heard.heard("fo", final=False)
    assert [("one", 0), ("two", 1)] == [(f.unrecorded, f.at_s) for f in heard.take_until(1)]
    assert [] == heard.take_until(1)
    assert "three fo" == heard.rest()
    assert ("", "three") == commit(heard, "one two three", began_s=0, ended_s=4)
    assert "fo" == heard.rest()


def test_a_session_that_never_commits_costs_no_more_and_more() -> None:
    """Of the words already sent, only the newest are remembered."""
    heard = Uncommitted()
    for at_s in range(1_000):
        heard.heard("word", final=True, at_s=at_s)
        heard.take_until(at_s)
    assert len(heard._finals) <= 100
    assert ("", "") == commit(heard, "word word", ended_s=2_000)


@pytest.mark.parametrize(
    ("interim", "final", "late", "rest"),
    [
        ("my number is fi", "My number is five two.", "five two.", ""),
        ("my number", "My number.", "", ""),
        ("my number", "My number is five.", "is five.", ""),
        ("my number", "Hello, this is Bob.", "", "Hello, this is Bob."),
        ("my number is", "My", "", "My"),
        ("", "My number.", "", "My number."),
    ],
)
def test_words_cut_in_two_are_completed(interim: str, final: str, late: str, rest: str) -> None:
    """A final transcript that extends a sent interim sends only what it adds."""
    heard = Uncommitted()
    heard.heard(interim, final=False)
    assert interim == heard.take()
    assert late == heard.heard(final, final=True)
    assert rest == heard.rest()
    assert ("", rest) == commit(heard, final)


def test_words_of_before_are_recorded_there() -> None:
    """Final words said before the last send are sent at once, not with a turn."""
    heard = Uncommitted()
    assert "" == heard.take()
    assert "I am Ada." == heard.heard("I am Ada.", final=True, of_before=True)
    assert "" == heard.rest()
    assert ("", "") == commit(heard, "I am Ada.")
