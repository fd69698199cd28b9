"""Finds where the JSON of a stream ends, whatever pieces or lines it comes in. Pure.

Some servers stream lines of JSON, an array of objects, or objects indented over many lines, in
place of events. What is between two objects is ignored. Others break the JSON of one event into
lines, and some of them write no blank line after it.
"""

import re
from typing import Final

_IN_TEXT: Final = re.compile(rb'["\\]')
_OUTSIDE: Final = re.compile(rb'["{}]')


class Objects:
    """Splits bytes into the objects of the outermost level; each byte is looked at once.

    Attributes:
        open_bytes: How much came of an object that has not ended; 0 if none is open.
    """

    def __init__(self) -> None:
        self.open_bytes = 0
        self._parts: list[bytes] = []
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def feed(self, came: bytes) -> list[bytes]:
        """Take bytes that came; return each object that ends in them."""
        found: list[bytes] = []
        begin = at = 0
        while True:
            if self._escaped and at < len(came):
                at, self._escaped = at + 1, False
            mark = (_IN_TEXT if self._in_text else _OUTSIDE).search(came, at)
            if mark is None:
                break
            at = mark.end()
            if mark[0] == b"\\":
                self._escaped = True
            elif mark[0] == b'"':
                self._in_text = self._depth > 0 and not self._in_text
            elif mark[0] == b"{":
                begin = begin if self._depth else mark.start()
                self._depth += 1
            elif self._depth:
                self._depth -= 1
                if not self._depth:
                    found.append(b"".join([*self._parts, came[begin:at]]))
                    self._parts.clear()
                    self.open_bytes = 0
        if self._depth:
            self._parts.append(came[begin:])
        self.open_bytes = self.open_bytes + len(came) - begin if self._depth else 0
        return found


class Nesting:
    """Counts what is open in JSON that comes in pieces, faster than `Objects` can split it.

    Args:
        opens: The brackets that count; as many closed as opened make a whole.
        closes: Those that close.

    Attributes:
        depth: How many are open; below 0 if more were closed.
        in_text: The pieces end inside a text.
    """

    def __init__(self, opens: bytes = b"{", closes: bytes = b"}") -> None:
        self.depth = 0
        self.in_text = False
        self._opens, self._closes = opens, closes
        self._escape = b""

    def feed(self, came: bytes) -> None:
        """Take a piece, which may end within an escape."""
        bare = (self._escape + came).replace(rb"\\", b"")
        self._escape = b"\\" if bare.endswith(b"\\") else b""
        texts = bare.removesuffix(b"\\").replace(rb"\"", b"").split(b'"')
        outside = b" ".join(texts[self.in_text :: 2])
        self.in_text ^= len(texts) % 2 == 0
        self.depth += sum(outside.count(one) for one in self._opens)
        self.depth -= sum(outside.count(one) for one in self._closes)


class Lines:
    """Puts together the JSON of one event that comes in lines; each byte is looked at once.

    Attributes:
        length: How many bytes came, with a blank between two lines.
    """

    def __init__(self) -> None:
        self.length = 0
        self._lines: list[bytes] = []
        self._nesting = Nesting(b"{[", b"}]")
        self._over = False

    def feed(self, line: bytes) -> bytes:
        """Take a line; return all of them at the one line that can be the last, and else nothing.

        What begins with a bracket is whole where as many brackets have closed as opened, or never.
        """
        self.length += len(line) + bool(self.length)
        if self._over:
            return b""
        self._lines.append(line)
        self._nesting.feed(line)
        if self._nesting.in_text or self._nesting.depth > 0:
            return b""
        self._over = True
        whole = b" ".join(self._lines)
        self._lines.clear()
        return whole
