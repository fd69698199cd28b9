"""What redaction removes from a turn, and what it leaves."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ConfigError
from sidecar.privacy import FAILED, luhn, names_in, redaction

pytestmark = pytest.mark.unit


def redacted(text: str, spec: str = "cards,emails,national-ids") -> str:
    redact = redaction(spec)
    assert redact is not None
    return redact(text)


def raising(text: str) -> str:
    raise RuntimeError(text)


def careless(_: str) -> None:
    return None


def shouting(text: str) -> str:
    return text.upper()


@pytest.mark.parametrize(
    "number",
    ["4242424242424242", "4242 4242 4242 4242", "4242-4242-4242-4242", "378282246310005"],
)
def test_card_numbers_are_taken_out(number: str) -> None:
    """A card number with a right check digit is replaced, however it is grouped."""
    assert redacted(f"It is {number}, thanks") == "It is [card], thanks"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("4242 4242 4242 4242 12 25", "[card] 12 25"),
        ("card 4242 4242 4242 4242 12 25 123 ok", "card [card] 12 25 123 ok"),
        ("1 4242 4242 4242 4242", "1 [card]"),
        ("no.4242 4242 4242 4242.", "no.[card]."),
        ("4242, 4242, 4242,  4242", "[card]"),
        ("4242\u20134242 4242-4242 and 3782 822463 10005", "[card] and [card]"),
        ("4 2 4 2 4 2 4 2 4 2 4 2 4 2 4 2", "[card]"),
        ("424242424242424212251234", "[card]12251234"),
    ],
)
def test_a_dictated_card_number_is_found_between_other_digits(said: str, expected: str) -> None:
    """An expiry date, an amount and odd gaps beside a card number do not hide it."""
    assert redacted(said, "cards") == expected


@given(st.text(alphabet="0123456789 .,-", max_size=80))
def test_no_card_number_is_left_between_gaps(text: str) -> None:
    """After redaction no 13 to 19 digits with small gaps pass the card check."""
    left = redacted(text, "cards").replace("[card]", "#")
    for run in re.findall(r"\d(?:[ .,-]{0,2}\d){12,}", left):
        groups = re.findall(r"\d+", run)
        for first in range(len(groups)):
            for last in range(first, len(groups)):
                digits = "".join(groups[first : last + 1])
                assert not (13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits))


@pytest.mark.parametrize("number", ["4242424242424241", "0000000000000000", "+14155550123"])
def test_other_numbers_stay(number: str) -> None:
    """A number with a wrong check digit, or a phone number, is not taken for a card number."""
    assert redacted(f"Order {number} please", "cards") == f"Order {number} please"


@pytest.mark.parametrize("address", ["ann.lee@example.org", "ann.lee at example dot org"])
def test_email_addresses_are_taken_out(address: str) -> None:
    """An e-mail address is replaced, written or dictated."""
    assert redacted(f"Write to {address} today") == "Write to [e-mail] today"


def test_plain_speech_is_no_address() -> None:
    """The words "at" and "dot" alone make no address."""
    said = "Meet me at noon at the red dot, I am at home."
    assert redacted(said) == said


@pytest.mark.parametrize(
    "number",
    [
        "078-05-1120",
        "QQ 12 34 56 C".replace("QQ", "AB"),
        "12345678Z",
        "X1234567L",
        "RSSMRA85T10A562S",
        "1 85 05 78 006 084 91",
    ],
)
def test_national_ids_are_taken_out(number: str) -> None:
    """Identity numbers of five countries are replaced, by their check where they have one."""
    assert redacted(f"my number is {number} ok") == "my number is [national id] ok"


@pytest.mark.parametrize("number", ["12345678A", "666-12-1234", "185057800608499"])
def test_numbers_with_a_wrong_check_stay(number: str) -> None:
    """A number that fails its country's check is kept."""
    assert redacted(number, "national-ids") == number


def test_nothing_is_taken_out_unless_asked() -> None:
    """Redaction is off by default."""
    assert redaction("") is None
    assert redaction(" , ") is None


def test_an_owners_callable_runs_in_order() -> None:
    """A callable of the owner's runs at its place in the list."""
    assert redacted("ann@example.org here", f"emails,{__name__}:shouting") == "[E-MAIL] HERE"


@pytest.mark.parametrize("name", ["raising", "careless"])
def test_a_failing_callable_keeps_nothing(name: str) -> None:
    """If the owner's callable fails, a fixed text is kept in place of the words."""
    assert redacted("secret words", f"{__name__}:{name}") == FAILED


@pytest.mark.parametrize(
    "spec", ["no.such.module:x", "sidecar.privacy:nothing", "sidecar.privacy:FAILED"]
)
def test_a_callable_that_is_none_is_named(spec: str) -> None:
    """A callable that can't be imported stops the start and names the setting."""
    with pytest.raises(ConfigError, match="SIDECAR_REDACT"):
        redaction(spec)


def test_an_unknown_pattern_is_refused() -> None:
    """A misspelt pattern is an error, not a redaction that never happens."""
    with pytest.raises(ValueError, match="cards"):
        names_in("card")


def test_luhn_knows_the_known_example() -> None:
    """Only the right check digit of the standard's example passes."""
    assert [d for d in range(10) if luhn(f"7992739871{d}")] == [3]
