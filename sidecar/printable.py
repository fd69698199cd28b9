"""Text without characters that command a terminal, reverse a line, or are invisible. Pure.

One set for every place where somebody else's words are shown: the prompt, what Letta is sent, a
tool's answer, tables, JSON and log lines. It is what Unicode calls control and format characters,
the separators of lines and paragraphs, and lone surrogates. Tab and newline stay where text may
have lines. Joiners stay (Persian, Hindi and emoji are wrong without them), and so do the number
signs of Arabic and its neighbours, which are seen.
"""

import re
import unicodedata

_UNPRINTABLE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, C0 and C1; tab and newline apart
    "\u00ad\u061c\u070f\u180e\u200b\u200e\u200f"  # not seen, or marks of direction
    "\u2028-\u202e\u2060-\u206f"  # separators, overrides, embeddings, isolates
    "\ufeff\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U00013430-\U0001343f\U000e0000-\U000e007f"  # the last: tags, which spell hidden words
    "\ud800-\udfff"  # surrogates, which no UTF-8 has
)
_IN_LINES = re.compile(f"[{_UNPRINTABLE}]")
_BLANK_LETTERS = "\u034f\u115f\u1160\u2800\u3164\ufe0e\ufe0f\uffa0"
_LINE_BREAKS = re.compile(r"[\t\n\r\x0b\x0c\x85\u2028\u2029]+")
_BMP = 0xFFFF


def printable(text: str) -> str:
    """Return text with U+FFFD in place of each such character; the length stays the same."""
    return _IN_LINES.sub("\ufffd", text)


def is_invisible(char: str) -> bool:
    """Whether a character shows nothing: controls, formats, joiners, letters that are blank.

    More than `printable` replaces: within words some of these are needed, at the beginning of a
    name none is.
    """
    return unicodedata.category(char) in {"Cc", "Cf"} or char in _BLANK_LETTERS


def printable_line(text: str) -> str:
    """Return text on one line: tabs and line breaks become a blank, else as `printable`."""
    return printable(_LINE_BREAKS.sub(" ", text))


def printable_json(text: str) -> str:
    r"""Return JSON that means the same, with each such character written as ``\uXXXX``.

    Args:
        text: JSON that has them only inside strings; its own newlines and tabs stay.
    """
    return _IN_LINES.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    if code <= _BMP:
        return f"\\u{code:04x}"
    above = code - 0x10000
    return f"\\u{0xD800 | above >> 10:04x}\\u{0xDC00 | above & 0x3FF:04x}"
