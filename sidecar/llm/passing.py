"""A model's stream on its way to the client: bytes in, frames that any client can read out. Pure.

Nothing is sent before there is something to hear, or a tool to run: until then another reply can
still take its place. From then on usual frames pass as they came, unread, since all streams of a
process share one loop; they are read later, many at once. Unusual ones are read at once, and
written as the strictest client, VAPI, wants them: one frame a line with a list of `choices`, and an
end. A tool call is sent when its arguments are complete: half of one would be run, or end the call.
"""

import re

from sidecar.llm.frames import frame_of
from sidecar.llm.reader import ChatReader, Chunk, is_audible
from sidecar.llm.writer import DONE, event

# In the frames that most servers write; a frame that fits none of these is read.
_FIRST_WORD = re.compile(
    rb'"delta": ?\{(?:"role": ?"assistant", ?)?"content": ?"[^"\\]*[0-9A-Za-z]'
)
_THOUGHT = re.compile(rb"<|\\u003c|\[THINK", re.IGNORECASE)
_ONLY_ROLE = re.compile(rb'"delta": ?\{"role": ?"assistant", ?"content": ?""')


class Passing:
    """One stream.

    Attributes:
        reader: What was read so far; `look` brings it up to date.
        heard: There was something to hear, or a tool to run: bytes were sent.
    """

    def __init__(self) -> None:
        self.reader = ChatReader()
        self.heard = False
        self._buffer: list[bytes] = []
        self._calls: list[bytes] = []
        self._calls_pass = False
        self._unread: list[bytes] = []
        self._newest: bool | None = False
        self._closed = False

    @property
    def has_buffered_calls(self) -> bool:
        """Whether a tool call has begun to come and was not sent."""
        return bool(self._calls)

    def feed(self, came: bytes) -> bytes:
        """Take bytes that came; return the bytes to send now."""
        if not self._closed and self.reader.between_lines and _is_usual(came):
            if self.heard or self._begins(came):
                return self._unread_too(came)
            if _ONLY_ROLE.search(came) and came.count(b"\n") == 2:  # noqa: PLR2004
                self._buffer.append(came)
                self._unread.append(came)
                self._newest = None
                return b""
        self._catch_up()
        moved = self.reader.moved
        out = self._out(self.reader.feed(came))
        self._newest = self.reader.moved > moved
        if self.reader.done and not self._closed and (self.heard or self._calls):
            return out + self._end()
        return out

    def close(self) -> bytes:
        """Take the end of the body; return what is still to send, with the end of the stream."""
        if self._closed:
            return b""
        self._catch_up()
        self._newest = False
        rest = self._out(self.reader.close())
        return rest + self._end() if self.heard or self._calls else rest

    def release(self) -> bytes:
        """Let tool calls pass from now on, and those buffered; return the bytes to send now."""
        self._calls_pass = True
        calls, self._calls = self._calls, []
        if not calls or self.reader.failure:
            return b""
        buffered, self._buffer = self._buffer, []
        self.heard = True
        return b"".join([*buffered, *calls])

    def look(self) -> bool:
        """Read what passed unread; return whether a caller heard something of the newest."""
        if self._newest is None:
            newest = self._unread.pop()  # read apart from those before it
            self._catch_up()
            moved = self.reader.moved
            self.reader.feed(newest)
            self._newest = self.reader.moved > moved
        return self._newest

    def _begins(self, came: bytes) -> bool:
        """Whether usual frames hold the first word, and no thought before it."""
        if self.reader.hushed or _THOUGHT.search(came):
            return False
        return _FIRST_WORD.search(came) is not None

    def _end(self) -> bytes:
        """Return the end of a stream, with a finish reason if the server gave none."""
        if self.reader.failure:
            return b""
        self._closed = True
        finish = self.reader.unfinished
        calls = self.release()
        return calls + (event(frame_of({}, {}, finish)) if finish else b"") + DONE

    def _unread_too(self, came: bytes) -> bytes:
        self._unread.append(came)
        self._newest = None
        if self.heard:
            return came
        self.heard = True
        buffered, self._buffer = self._buffer, []
        return b"".join([*buffered, came])

    def _catch_up(self) -> None:
        if self._unread:
            self.reader.feed(b"".join(self._unread))
            self._unread.clear()

    def _out(self, chunks: list[Chunk]) -> bytes:
        out: list[bytes] = []
        for chunk in chunks:
            if chunk.last:
                out.append(self.release())
            elif chunk.tools and not self._calls_pass:
                self._calls.append(event(chunk.data))
                continue
            self._buffer.append(event(chunk.data))
            if self.heard or chunk.tools or is_audible(chunk.text):
                self.heard = True
                out += self._buffer
                self._buffer.clear()
        return b"".join(out)


def _is_usual(came: bytes) -> bool:
    """Whether these are whole frames, each with words in one string, and nothing else."""
    if not (came.startswith(b"data: {") and came.endswith(b"}\n\n")) or b'"error"' in came:
        return False
    frames = came.count(b"\n") // 2
    if frames > 1 and (
        came.count(b"}\n\ndata: {") != frames - 1 or came.count(b"\n") != 2 * frames
    ):
        return False
    # Either without blanks, as most servers write, or with them, as servers in Python do.
    if came.count(b'"choices":[{') == frames:
        return (
            came.count(b'"content":"') == frames
            and came.count(b'"index":0') == frames
            and b'"finish_reason":"' not in came
            and b'"tool_calls":[{' not in came
        )
    return (
        came.count(b'"choices": [{') == frames
        and came.count(b'"content": "') == frames
        and came.count(b'"index": 0') == frames
        and b'"finish_reason": "' not in came
        and b'"tool_calls": [{' not in came
    )
