"""JSON from outside: callers' platforms, workers, pages, models, and whatever poses as one."""

import re
from typing import Final

import msgspec

MALFORMED: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What reading it raises, with msgspec or json: not JSON or UTF-8, a wrong type, nested too deep.

Each reader of such JSON catches all of these: a hostile body can raise any of them.
"""

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def whole_characters(raw: bytes) -> bytes:
    """Return JSON with U+FFFD in place of each broken character, so that the rest can be read.

    JavaScript writes a cut emoji as half an escape, and a text cut by its bytes ends in what is not
    UTF-8. A strict reader rejects both, so reading is tried without this first.
    """
    return _ESCAPE.sub(_whole_character, raw.decode("utf-8", "replace").encode())


def _whole_character(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape["half"] else escape[0]
