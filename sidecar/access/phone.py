"""Phone numbers as carriers report them: which number a text is, or why it is none.

A number has a number's shape from its first to its last character and is valid in its country's
plan. Where carriers withhold or do not know a number, they send other texts: words, those words
typed on a keypad, zeros, digits in a row, a host. If such a text were taken for a number, all
callers who withhold theirs would share one memory.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias
from urllib.parse import unquote

import phonenumbers

from sidecar.withheld import LOCAL_DIGITS, ON_A_KEYPAD, is_filler, is_placeholder

Why: TypeAlias = Literal[
    "", "withheld", "no_number", "extension", "invalid", "ambiguous", "no_region"
]

_MAX_CHARS: Final = 200
_SCHEME = re.compile(r"(?:sips?|tel):", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9_.:\[\]-]+(?:[;?].*)?")
_SHAPE = re.compile(r"(?:\+ ?)?(?:\([0-9]+\)|[0-9])(?:[ ./-]{0,3}(?:\([0-9]+\)|[0-9]))*")
_NOBODYS_HOST = re.compile(r"(?:[^:;?]*\.)?invalid\.?(?:[:;?]|$)", re.IGNORECASE)
_IP_HOST = re.compile(r"(?!0[0-9])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9.])")
_EXTENSION = re.compile(r"\+?[0-9 ()./-]{5,}(?:[;,#*]|x|ext|p|w)", re.IGNORECASE)
_EXTENSION_OF_URI = re.compile(r"[;?&]\s*(?:x|extn?|extension|isub|postd)\s*=", re.IGNORECASE)
_UNFILLED = re.compile(
    r"\{\{.*\}\}|\$\{.*\}|\[object .*\]|^(?:n/a|\{[^{}]*\}|(?-i:\$[A-Z_]+)|<%.*%>|%\(\w+\)s)$",
    re.IGNORECASE | re.DOTALL,
)
_NOTHING = re.compile(r"[!-/:-@\[-`{-~\s]+")  # marks alone
# Before what a trunk says, in an identity: LiveKit's bridge writes `sip_`, applications the others.
_OF_A_TRUNK = re.compile(
    r"sip_|(?:sip|tel|phone|caller)[_-](?=\[|[0-9]{7}|[0-9]{1,3}\.)"
    r"|(?:sip|tel|phone|caller|client|customer|participant|user)[_-](?=\+)",
    re.IGNORECASE,
)
_NO_MAIL = re.compile(
    r"(?:\[[0-9a-f:.]+\]|[0-9]{1,3}(?:\.[0-9]{1,3}){3}|localhost)(?::[0-9]+)?", re.IGNORECASE
)
_WITH_A_NAME = re.compile(r"[^<>]*<((?:sips?|tel):[^<>]*)>[^<>]*", re.IGNORECASE)
_LIKE_A_NUMBER = re.compile(r"\+[\s()./-]*[0-9]|\([0-9]+\)[0-9 ./-]+$")


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of reading a text as a number.

    Attributes:
        e164: The number, as in `+12025550100`; empty where it is none.
        why: Why it is none: `withheld` (the carrier does not name it), `no_number`, `extension` (a
            number and more), `invalid` (in no country's plan), `ambiguous` (a number of one country
            if its code is included, and of another if not), `no_region` (no country code, and no
            default).
    """

    e164: str = ""
    why: Why = ""


def read(raw: str, *, region: str | None) -> Reading:
    """Return which number a carrier's text is.

    Promises: two texts have the same `e164` only if they are spellings of the same number. Outer
    whitespace, `sip:`, `sips:`, `tel:` and what follows an `@` are not part of a number.

    Args:
        raw: As the carrier reported it.
        region: Country of numbers without a country code, as in `US`; None: they are `no_region`.
    """
    if _is_withheld(raw):
        return Reading(why="withheld")
    _, user, host = _parts(raw)
    if host and not _HOST.fullmatch(host):
        return Reading(why="no_number")
    if _EXTENSION_OF_URI.search(unquote(host)):
        return Reading(why="extension")
    if len(user) > _MAX_CHARS or not _SHAPE.fullmatch(user) or _IP_HOST.match(user):
        return Reading(why="extension" if _EXTENSION.match(user) else "no_number")
    digits = _digits_of(user)
    if _stands_for_none(digits):
        return Reading(why="withheld")
    if user.startswith("+"):
        return _only([_valid(f"+{digits}", None)])
    if region is None:
        return Reading(why="no_region")
    return _only([_valid(digits, region), _valid(f"+{digits}", None)])


def is_e164(text: str) -> bool:
    """Whether a text is a valid number exactly as E.164 writes it."""
    return text.startswith("+") and read(text, region=None).e164 == text


def reads_like_number(text: str) -> bool:
    """Whether a text looks like a number with its country code, valid or not."""
    scheme, user, _ = _parts(_plain(text))
    return bool(_LIKE_A_NUMBER.match(user)) or bool(scheme and user[:1].isdecimal())


def has_extension(text: str) -> bool:
    """Whether a text is a number with an extension, in whatever way it is written."""
    return read(text, region=None).why == "extension"


def stands_for_nobody(text: str) -> bool:
    """Whether a text is sent in place of a caller: `anonymous`, `+8656696`, a blank.

    A template that was not filled in (`{{customer.number}}`) counts as well.

    Plain digits may be somebody's id, so digits are judged only if the text is written like a
    number: after a plus, with a scheme (`tel:8656696`) or LiveKit's `sip_`, with its first digits
    in parentheses, or with separators if it is long enough for a number (`000-000-0000`). With a
    scheme or `sip_`, the address of a host is nobody as well.
    """
    addressed, user, _ = _address(text)
    return _is_withheld(text) or (addressed and bool(_IP_HOST.match(user) or user[:1] == "["))


def _is_withheld(text: str) -> bool:
    """Whether a text says that the caller is not named."""
    addressed, user, host = _address(text)
    if _NOBODYS_HOST.match(host) or (not user and (addressed or not host)):
        return True
    if not host and (addressed or "." in user) and _NOBODYS_HOST.match(user):
        return True
    if _UNFILLED.search(_plain(text)) or _NOTHING.fullmatch(user + host):
        return True
    if is_placeholder(user):  # at a name's host it may be a mail address
        return addressed or not host or _NO_MAIL.fullmatch(host) is not None
    return _is_written_number(user, addressed=addressed) and _is_no_number(_digits_of(user))


def _address(text: str) -> tuple[bool, str, str]:
    """Return whether a text is written as an address on the telephone network, its user and host.

    That is a URI with a scheme, or what LiveKit's bridge or an application makes of one: `sip_` and
    the user, `caller-` and a number. What follows the user of such an address, as `;phone-context=`
    does, is left out.
    """
    plain = _plain(text)
    bridged = _OF_A_TRUNK.match(plain)
    scheme, user, host = _parts(plain[bridged.end() :] if bridged else plain)
    addressed = bool(scheme or bridged)
    return addressed, re.split("[;?]", user, maxsplit=1)[0] if addressed else user, host


def _is_written_number(user: str, *, addressed: bool) -> bool:
    """Whether a text is written like a number: plain digits alone may be an id."""
    if _LIKE_A_NUMBER.match(user):
        return True
    if not _SHAPE.fullmatch(user):
        return False
    return addressed or (not user.isdecimal() and len(_digits_of(user)) >= LOCAL_DIGITS)


def _parts(raw: str) -> tuple[str, str, str]:
    """Return scheme, user and host of a URI; a plain text is all user."""
    text = raw.strip()
    scheme = _SCHEME.match(text)
    user, _, host = (text[scheme.end() :] if scheme else text).partition("@")
    return scheme[0] if scheme else "", user, host


def _plain(text: str) -> str:
    """Return a text without differences that a reader can't see, and without a name before a URI.

    Percent-encoded characters, as URIs have them, are decoded.
    """
    normal = unicodedata.normalize("NFKC", unquote(text))
    plain = "".join(c for c in normal if unicodedata.category(c) not in {"Cc", "Cf"}).strip()
    named = _WITH_A_NAME.fullmatch(plain)
    return named[1].strip() if named else plain


def _digits_of(text: str) -> str:
    return "".join(c for c in text if c in "0123456789")


def _stands_for_none(digits: str) -> bool:
    """Whether digits mean "no number": a word on a keypad, one digit repeated, or a row."""
    return is_filler(digits) or digits.lstrip("0") in ON_A_KEYPAD


def _is_no_number(digits: str) -> bool:
    """Whether digits mean "no number" as they are, or after the code of a country."""
    return _stands_for_none(digits) or _valid(f"+{digits}", None).why == "withheld"


def _valid(text: str, region: str | None) -> Reading:
    try:
        parsed = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return Reading(why="invalid")
    with_zeros = phonenumbers.national_significant_number(parsed)
    after_code = _digits_of(text).removeprefix(str(parsed.country_code))
    nationals = (str(parsed.national_number), with_zeros, after_code)
    if any(len(one) >= LOCAL_DIGITS and is_filler(one) for one in nationals):
        return Reading(why="withheld")
    if not phonenumbers.is_valid_number(parsed):
        return Reading(why="invalid")
    return Reading(phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))


def _only(readings: list[Reading]) -> Reading:
    """Return the number that all valid readings agree on."""
    numbers = {one.e164 for one in readings if one.e164}
    if any(one.why == "withheld" for one in readings):
        return Reading(why="withheld")
    if not numbers:
        return Reading(why="invalid")
    return Reading(numbers.pop()) if len(numbers) == 1 else Reading(why="ambiguous")
