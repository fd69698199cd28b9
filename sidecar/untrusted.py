"""JSON from outside: from callers' platforms, workers, pages, models, and what stands in their place."""

import re
from typing import Final

import msgspec

MALFORMED: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What reading it raises, with msgspec or with json: no JSON, no UTF-8, a wrong type, nested too deep.

Each reader of such JSON catches all of these: one alone lets a hostile body through as a fault.
"""

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def whole_characters(raw: bytes) -> bytes:
    """Return JSON in which half a character is U+FFFD: what is left of it counts.

    JavaScript writes a cut emoji as half an escape, and a text cut by its bytes ends in what is no
    UTF-8. Either is refused by a strict reader, so it is tried without this first.
    """
    return _ESCAPE.sub(_whole_character, raw.decode("utf-8", "replace").encode())


def _whole_character(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape["half"] else escape[0]
