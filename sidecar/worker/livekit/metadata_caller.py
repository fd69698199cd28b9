"""Which of the people in its room the metadata of a LiveKit job means. Pure.

The metadata was written before anybody was there, and names the caller by a word of the owner's
own. The room has to show who that is; if it does not, the metadata speaks for nobody.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from sidecar.withheld import may_be_anybodys

_LIKE_A_NUMBER = re.compile(r"\s*(?:(?:sips?|tel):|sip_)?\s*\+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Person:
    """A person in a room who hears the agent: no agent, no recorder.

    Attributes:
        identity: The identity in the participant's token.
        by_telephone: LiveKit's SIP bridge brought the participant in.
        number: The telephone's number, as the bridge reports it; otherwise empty.
        silent: May send neither sound nor words.
        session: LiveKit's id of this stay in the room; a new one each time they join.
    """

    identity: str
    by_telephone: bool = False
    number: str = ""
    silent: bool = False
    session: str = ""

    def is_same(self, other: "Person") -> bool:
        """Whether both are one caller: one number is one caller, whatever its identities are.

        A telephone that withholds its number is one caller only until it hangs up: the next such
        telephone looks alike, and the bridge may give it the same identity.
        """
        if self.number != other.number:
            return False
        if self.number and not may_be_anybodys(self.number):
            return True
        if self.identity != other.identity or self.by_telephone != other.by_telephone:
            return False
        return not self.by_telephone or self.session == other.session


class _Fit(IntEnum):
    """How well a person fits what the metadata says."""

    NOT = 0
    THERE = 1
    BY_TELEPHONE = 2
    NAMED = 3


class MetadataCaller:
    """Finds the one person whom a job's metadata speaks for.

    Of those who fit best, it is the one who was first seen alone. If several are seen at once, it
    is none of them, and only somebody who fits better can be it. A person who fits better replaces
    the earlier one. A telephone does not, if the earlier one has spoken: such a telephone was
    called into the caller's room, as a colleague is.

    Args:
        caller: What the metadata calls the caller; may be an identity or a number in the room.
        participant: The identity of the person meant, if known; then it can be nobody else.
    """

    def __init__(self, caller: str, participant: str = "") -> None:
        self._caller = caller
        self._participant = participant
        self._person: Person | None = None
        self._fit = _Fit.NOT
        self._spoke = False

    def speaks_for(self, person: Person) -> bool:
        """Whether the metadata speaks for this person."""
        return self._person is not None and self._person.is_same(person)

    def see(self, people: Sequence[Person]) -> str:
        """Take who is in the room; return why a change is in doubt, for people, or empty."""
        best = max((self._fit_of(person) for person in people), default=_Fit.NOT)
        if best <= self._fit or (best < _Fit.NAMED and self._spoke):
            return ""
        before, self._fit = self._person, best
        fitting = [person for person in people if self._fit_of(person) == best]
        self._person = fitting[0] if len(fitting) == 1 else None
        if self._person is None:
            return "several in the room may be whom the job's metadata names"
        if before is not None and not before.is_same(self._person):
            self._spoke = False
            return "another was taken for whom the job's metadata names"
        return ""

    def heard(self, person: Person) -> None:
        """A person has said something to the agent."""
        self._spoke = self._spoke or self.speaks_for(person)

    def _fit_of(self, person: Person) -> _Fit:
        if self._participant:
            return _Fit.NAMED if person.identity == self._participant else _Fit.NOT
        if self._caller and self._caller in {person.number, _own_name(person)}:
            return _Fit.NAMED
        if person.silent:
            return _Fit.NOT
        return _Fit.BY_TELEPHONE if person.by_telephone else _Fit.THERE


def _own_name(person: Person) -> str:
    """Return a person's identity; empty if it is written like a number that a telephone may have.

    Many applications let people choose their identity, so that proves no number.
    """
    return "" if _LIKE_A_NUMBER.match(person.identity) else person.identity
