"""What is taken out of a turn's words before the journal sees them. Pure.

`SIDECAR_REDACT` names the patterns, or a callable of the owner's own, or both in order:
``cards,emails,national-ids,mypackage.rules:scrub``. Off by default.

Does not promise to find a number that is spoken in words ("four two four two"), spelled out, or
spread over several turns: what speech recognition writes is what the patterns see. A worker's
spool holds turns as they were heard until the sidecar takes it up.
"""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias, cast

from sidecar.errors import ConfigError

Redact: TypeAlias = Callable[[str], str]

FAILED: Final = "[redaction failed]"
_DIGITS = re.compile(r"(?<![+\w])\d(?:[\s.,\-\u2010-\u2015]{0,3}\d){12,}(?!\w)")
_CARD_DIGITS = range(19, 12, -1)
_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9._%+-]{1,64}(?:@| at )"
    r"(?:[A-Za-z0-9-]{1,63}(?:\.| dot )){1,4}[A-Za-z]{2,24}(?!\w)"
)
_US_SSN = re.compile(r"(?<!\d)(?!000|666|9\d\d)\d{3}[- ](?!00)\d{2}[- ](?!0000)\d{4}(?!\d)")
_UK_NINO = re.compile(
    r"\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d{2}){3} ?[A-D]\b", re.IGNORECASE
)
_ES_DNI = re.compile(r"\b([XYZ]?\d{7,8})[- ]?([A-Z])\b", re.IGNORECASE)
_FR_NIR = re.compile(
    r"(?<!\d)([1-4](?: ?\d){4} ?(?:\d|2[AB])(?: ?\d){6,7}) ?(\d{2})(?!\d)", re.IGNORECASE
)
_IT_CF = re.compile(r"\b[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]\b", re.IGNORECASE)
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_LUHN_BASE = 10
_NIR_DIGITS = 13
_NIR_MODULUS = 97


def luhn(digits: str) -> bool:
    """Whether the last of `digits` is the check digit of ISO/IEC 7812-1, annex B."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value >= _LUHN_BASE else value
    return total % _LUHN_BASE == 0


def without_cards(text: str) -> str:
    """Replace payment card numbers (13 to 19 digits with a right check digit) by ``[card]``.

    A dictated number may run into the numbers around it (an amount, an expiry date), so every part
    between two gaps of a run of digits is tested, the longest first. Inside digits written without
    a gap, a card is looked for only if there are more digits than any card has.
    """
    return _DIGITS.sub(_judged, text)


def _judged(run: re.Match[str]) -> str:
    text = run[0]
    places = [place for place, character in enumerate(text) if character.isdigit()]
    digits = "".join(text[place] for place in places)
    one_number = max(map(len, re.findall(r"\d+", text))) > _CARD_DIGITS[0]
    gaps = {
        n for n in range(len(places) + 1) if one_number or _is_gap(places, n)
    }  # before the n-th digit
    pieces: list[str] = []
    start = done = 0
    while start < len(digits):
        length = next(
            (
                n
                for n in _CARD_DIGITS
                if {start, start + n} <= gaps and _is_card(digits[start : start + n])
            ),
            0,
        )
        if length:
            pieces += [text[done : places[start]], "[card]"]
            done = places[start + length - 1] + 1
        start += length or 1
    return "".join([*pieces, text[done:]])


def _is_gap(places: Sequence[int], n: int) -> bool:
    return n in {0, len(places)} or places[n] - places[n - 1] > 1


def _is_card(digits: str) -> bool:
    return len(set(digits)) > 1 and luhn(digits)


def without_emails(text: str) -> str:
    """Replace e-mail addresses, also as they are dictated ("ann at example dot org")."""
    return _EMAIL.sub("[e-mail]", text)


def without_national_ids(text: str) -> str:
    """Replace national identity numbers by ``[national id]``.

    United States (SSN, written in groups), United Kingdom (NINO), Spain (DNI and NIE) and France
    (NIR), both with their check, and Italy (codice fiscale).
    """

    def spanish(match: re.Match[str]) -> str:
        number = match[1].upper().translate(str.maketrans("XYZ", "012"))
        right = _DNI_LETTERS[int(number) % len(_DNI_LETTERS)] == match[2].upper()
        return "[national id]" if right else match[0]

    def french(match: re.Match[str]) -> str:
        body = match[1].replace(" ", "").upper().replace("2A", "19").replace("2B", "18")
        if len(body) != _NIR_DIGITS:
            return match[0]
        right = _NIR_MODULUS - int(body) % _NIR_MODULUS == int(match[2])
        return "[national id]" if right else match[0]

    for pattern in (_US_SSN, _UK_NINO, _IT_CF):
        text = pattern.sub("[national id]", text)
    return _FR_NIR.sub(french, _ES_DNI.sub(spanish, text))


BUILT_IN: Final[Mapping[str, Redact]] = {
    "cards": without_cards,
    "emails": without_emails,
    "national-ids": without_national_ids,
}


def names_in(spec: str) -> tuple[str, ...]:
    """Return the parts of a `SIDECAR_REDACT` value.

    Raises:
        ValueError: a part is neither a pattern of ours nor ``module:callable``.
    """
    names = tuple(name for part in spec.split(",") if (name := part.strip()))
    for name in names:
        module, _, attribute = name.partition(":")
        if name not in BUILT_IN and not (module and attribute.isidentifier()):
            raise ValueError(f"name {', '.join(BUILT_IN)} or a callable as module:name")
    return names


def redaction(spec: str) -> Redact | None:
    """Return the redaction that a `SIDECAR_REDACT` value asks for; None if it asks for none.

    A callable of the owner's own gets a turn's text and returns the text to keep. If it raises, or
    does not return a string, the whole turn is kept as ``[redaction failed]``, so that nothing
    that was to be taken out is stored by mistake.

    Raises:
        ConfigError: a callable can't be imported.
    """
    steps = [BUILT_IN[name] if name in BUILT_IN else _imported(name) for name in names_in(spec)]
    return _chained(steps) if steps else None


def _imported(name: str) -> Redact:
    module, _, attribute = name.partition(":")
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise _not_usable(name, type(error).__name__) from None
    if not callable(found):
        raise _not_usable(name, "it can't be called")
    return cast("Redact", found)


def _not_usable(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"SIDECAR_REDACT: {name} can't be used: {why}",
        fields=(("SIDECAR_REDACT", "name a callable that takes and returns a string"),),
    )


def _chained(steps: Sequence[Redact]) -> Redact:
    def redact(text: str) -> str:
        try:
            for step in steps:
                redacted = cast("object", step(text))
                if not isinstance(redacted, str):
                    return FAILED
                text = redacted
        except Exception:  # noqa: BLE001 - the owner's code: its failure must not keep the words
            return FAILED
        return text.strip() or "[redacted]"

    return redact
