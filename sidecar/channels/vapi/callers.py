"""Whether the bodies of one call name the same caller. Pure.

VAPI names the caller in each body of a call, and not always in the same spelling. A name is used
only within its call: `sidecar.letta.identity` decides who a caller is across calls.
"""

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from sidecar.model import CallerHints

Name: TypeAlias = tuple[str, str, str]
"""What a body says about the caller: the number as spelled, the caller's id, the agent's id."""

NOBODY: Name = ("", "", "")
_NAMES_KEPT = 20
_LOCAL_DIGITS = 7
_NUMBER = re.compile(
    r"(?:(?:sips?|tel):)?(?P<plus>\+?)(?P<number>[0-9 ().\-/\u00a0]+)(?:;user=phone)?(?:@.*)?"
)


@dataclass(slots=True)
class Names:
    """How the caller of one call has been named so far."""

    said: dict[Name, None] = field(default_factory=dict[Name, None])

    def add(self, name: Name) -> None:
        """Add a name of the caller."""
        if name != NOBODY and len(self.said) < _NAMES_KEPT:
            self.said[name] = None

    def fits(self, name: Name) -> bool:
        """Whether a name is the caller's: spelled differently, or with less or more detail."""
        return any(_says_same(name, known) for known in self.said) and not self._contradicts(name)

    def differ(self, name: Name) -> bool:
        """Whether a name clearly belongs to someone else; False if a restart lost the names."""
        return self._contradicts(name)

    def _contradicts(self, name: Name) -> bool:
        """Whether a name contradicts one of the caller's, even if a shorter one fits both."""
        return any(_differ(name, known) for known in self.said)


def name_of(hints: CallerHints) -> Name:
    """Return how a body names its caller."""
    return hints.phone, hints.caller, hints.agent_id


def is_same_number(one: str, other: str) -> bool:
    """Whether two numbers in one call are the same, as far as their digits show.

    A number without its country code, or with leading zeros, matches the end of the full number. A
    number with an extension matches only itself.
    """
    if one == other:
        return True
    first, second = (_NUMBER.fullmatch(text.strip()) for text in (one, other))
    if first is None or second is None:
        return False
    short, long = sorted((_digits(first), _digits(second)), key=len)
    if len(short) < _LOCAL_DIGITS:
        return False
    return short == long or (not (first["plus"] and second["plus"]) and long.endswith(short))


def _digits(number: re.Match[str]) -> str:
    return "".join(char for char in number["number"] if char.isdigit()).lstrip("0")


def _says_same(one: Name, other: Name) -> bool:
    same_id = any(a and a == b for a, b in zip(one[1:], other[1:], strict=True))
    return same_id or bool(one[0] and is_same_number(one[0], other[0]))


def _differ(one: Name, other: Name) -> bool:
    """Whether both have a value of the same kind, and the values differ."""
    ids = any(a and b and a != b for a, b in zip(one[1:], other[1:], strict=True))
    return ids or bool(one[0] and other[0] and not is_same_number(one[0], other[0]))
