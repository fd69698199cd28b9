"""Whether the bodies of one call name the same caller. Pure.

VAPI names the caller in each body of a call, and not always in the same spelling. A name is used
only within its call: `sidecar.letta.identity` decides who a caller is across calls.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from sidecar.access.phone import has_extension
from sidecar.model import CallerHints

Name: TypeAlias = tuple[str, str, str]
"""What a body says about the caller: the number as spelled, the caller's id, the agent's id."""

NOBODY: Name = ("", "", "")
_NAMES_LIMIT = 20
_LOCAL_DIGITS = 7
_NUMBER = re.compile(
    r"(?:(?:sips?|tel):)?(?P<plus>\+?)(?P<number>[0-9 ().\-/\u00a0]+)(?:;user=phone)?(?:@.*)?"
)


@dataclass(slots=True)
class Names:
    """How the caller of one call has been named so far.

    Attributes:
        said: The number in E.164 that each name was resolved to; empty if it has none.
    """

    said: dict[Name, str] = field(default_factory=dict[Name, str])

    def add(self, name: Name, number: str) -> None:
        """Add a name of the caller, and the number in E.164 that it was resolved to, if any."""
        if name != NOBODY and len(self.said) < _NAMES_LIMIT:
            self.said[name] = number

    def fits(self, name: Name, number: str) -> bool:
        """Whether a name is the caller's: spelled differently, or with less or more detail."""
        one = _Named(name, number)
        known = (_Named(*known) for known in self.said.items())
        return any(_says_same(one, each) for each in known) and not self.differ(name, number)

    def differ(self, name: Name, number: str) -> bool:
        """Whether a name contradicts one of the caller's, even if a shorter one fits both.

        False if a restart lost the names.
        """
        one = _Named(name, number)
        return any(_differ(one, _Named(*known)) for known in self.said.items())


class _Named(NamedTuple):
    """A name, and the number in E.164 that it was resolved to, if any."""

    name: Name
    number: str


def name_of(hints: CallerHints) -> Name:
    """Return how a body names its caller."""
    return hints.phone, hints.caller, hints.agent_id


def is_same_number(one: str, other: str) -> bool:
    """Whether two numbers in one call are the same, as far as their digits show.

    A number without its country code, or with leading zeros, matches the end of the full number. A
    number with an extension matches only itself. With a plus, nothing is missing before a number,
    so it is no other number's end.
    """
    if one == other:
        return True
    first, second = (_NUMBER.fullmatch(text.strip()) for text in (one, other))
    if first is None or second is None or has_extension(one) or has_extension(other):
        return False
    if first["plus"] and second["plus"]:
        return _digits(first) == _digits(second) and _is_long(_digits(first))
    if not first["plus"] and not second["plus"]:
        short, long = sorted((_digits(first), _digits(second)), key=len)
        return _is_long(short) and long.endswith(short)
    whole, part = (first, second) if first["plus"] else (second, first)
    return any(_is_long(end) and _digits(whole).endswith(end) for end in _ends(part))


def _is_long(digits: str) -> bool:
    """Whether digits are enough to tell a number by."""
    return len(digits) >= _LOCAL_DIGITS


def _digits(number: re.Match[str]) -> str:
    return _all_digits(number).lstrip("0")


def _all_digits(number: re.Match[str]) -> str:
    return "".join(char for char in number["number"] if char.isdigit())


def _ends(number: re.Match[str]) -> tuple[str, str]:
    """Return a number without what is dialled before it: zeros, or 011 as in North America."""
    return _digits(number), _all_digits(number).removeprefix("011")


def _says_same(one: _Named, other: _Named) -> bool:
    return any(a and a == b for a, b in _ids(one, other)) or (
        bool(one.name[0]) and _is_same_phone(one, other)
    )


def _differ(one: _Named, other: _Named) -> bool:
    """Whether both have a value of the same kind, and the values differ."""
    return any(a and b and a != b for a, b in _ids(one, other)) or (
        bool(one.name[0] and other.name[0]) and not _is_same_phone(one, other)
    )


def _ids(one: _Named, other: _Named) -> Iterator[tuple[str, str]]:
    return zip(one.name[1:], other.name[1:], strict=True)


def _is_same_phone(one: _Named, other: _Named) -> bool:
    """Whether two names have the same number; what is no valid number is told by its digits."""
    if one.number and other.number:
        return one.number == other.number
    return is_same_number(one.name[0], other.name[0])
