"""Text without characters that command a terminal, reverse a line, or are invisible. Pure.

One set for every place where somebody else's words are shown: the prompt, what Letta is sent, a
tool's answer, tables, JSON and log lines. It is what Unicode calls control and format characters,
the separators of lines and paragraphs, lone surrogates, what may be ignored for display
(`Default_Ignorable_Code_Point`), and the blank of Braille. Tab and newline stay where text may
have lines, and so do the number signs of Arabic and its neighbours, which are seen.

Persian, Hindi, Japanese names and emoji are wrong without joiners and variation selectors, so one
selector and one joiner stay after each character that is seen. More of them would spell hidden
words.
"""

import re
import unicodedata
from collections.abc import Callable

_UNPRINTABLE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, C0 and C1; tab and newline apart
    "\u00ad\u034f\u061c\u070f\u115f\u1160\u17b4\u17b5\u180e"  # not seen, or marks of direction
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"  # separators, overrides, isolates
    "\u2800\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"  # tags, which spell hidden words
    "\ud800-\udfff"  # surrogates, which no UTF-8 has
)
_SELECTORS = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
_JOINERS = "\u200c\u200d"
_ASCII = "\t\n -~"  # what most texts are made of is passed over first: twice as fast
_IN_LINES = re.compile(f"(?![{_ASCII}])(?:[{_UNPRINTABLE}]|[{_SELECTORS}{_JOINERS}]+)")
_ALLOWED = re.compile(f"[{_SELECTORS}]?[{_JOINERS}]?")
_LINE_BREAKS = re.compile(r"[\t\n\r\x0b\x0c\x85\u2028\u2029]+")
_BMP = 0xFFFF


def printable(text: str) -> str:
    """Return text with U+FFFD in place of each such character; the length stays the same."""
    return _IN_LINES.sub(lambda found: _replaced(found, lambda _: "\ufffd"), text)


def is_invisible(char: str) -> bool:
    """Whether a character shows nothing: controls, formats, joiners, letters that are blank.

    More than `printable` replaces: within words some of these are needed, at the beginning of a
    name none is. A lone surrogate stands for a byte of a file's name, and counts as visible.
    """
    kind = unicodedata.category(char)
    return kind in {"Cc", "Cf"} or (kind != "Cs" and bool(_IN_LINES.match(char)))


def printable_line(text: str) -> str:
    """Return text on one line: tabs and line breaks become a blank, else as `printable`."""
    return printable(_LINE_BREAKS.sub(" ", text))


def printable_json(text: str) -> str:
    r"""Return JSON that means the same, with each such character written as ``\uXXXX``.

    Args:
        text: JSON that has them only inside strings; its own newlines and tabs stay.
    """
    return _IN_LINES.sub(lambda found: _replaced(found, _escape), text)


def _replaced(found: re.Match[str], replace: Callable[[str], str]) -> str:
    """Return what stays of characters that are not seen, and others in place of the rest."""
    unseen, before = found[0], found.string[max(0, found.start() - 1) : found.start()]
    is_after_seen = before and not before.isspace() and not _IN_LINES.match(before)
    stays = _ALLOWED.match(unseen) if is_after_seen else None
    end = stays.end() if stays else 0
    return unseen[:end] + "".join(map(replace, unseen[end:]))


def _escape(char: str) -> str:
    code = ord(char)
    if code <= _BMP:
        return f"\\u{code:04x}"
    above = code - 0x10000
    return f"\\u{0xD800 | above >> 10:04x}\\u{0xDC00 | above & 0x3FF:04x}"
