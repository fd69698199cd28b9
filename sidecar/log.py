"""Where log lines go: to standard error, from a thread of their own."""

import atexit
import contextlib
import io
import logging
import queue
import sys
import threading
from collections.abc import Mapping
from typing import TextIO, cast

import structlog
from typing_extensions import override

from sidecar.log_limit import LogLimit
from sidecar.printable import printable, printable_line


class LogWriter:
    """Writes to a stream on a thread of its own: a log that nobody reads must not hold up a call.

    Args:
        stream: Where lines go.
        limit_lines: So many lines wait at most; further ones are dropped.

    Attributes:
        dropped: Number of lines lost because the stream was full, closed or too slow.
    """

    def __init__(self, stream: TextIO, *, limit_lines: int = 10_000) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(limit_lines)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        self.dropped = 0

    def write(self, text: str) -> int:
        """Queue a line; never waits."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing: every line is flushed as it is written."""

    def close(self, budget_s: float = 2.0) -> None:
        """Write the queued lines; give up after `budget_s`."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=budget_s / 2)
            self._thread.join(budget_s / 2)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):
                self.dropped += 1


class Spared(logging.Filter):
    """Lets few lines of one text pass a minute: strangers' bad requests make libraries log."""

    def __init__(self) -> None:
        super().__init__()
        self._log_limit = LogLimit()

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        left_out = self._log_limit.admits((record.name, record.msg))
        if left_out:
            record.msg = f"{record.msg} (and {left_out} more before)"
        return left_out is not None


def configure_logging(*, level: str, json: bool) -> None:
    """Send structlog to standard error, as JSON lines or for a console; never wait for it.

    Tracebacks are rendered without the values of local variables: those hold callers' words.
    """
    if logging.lastResort is not None:  # for lines of libraries that no logger of ours takes
        logging.lastResort.addFilter(Spared())
    writer = LogWriter(sys.stderr)
    atexit.register(writer.close)
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
        if json  # which escapes what is not ASCII
        else [
            _printable_fields,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=_printable_traceback
            ),
        ]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level_number(level)),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", writer)),
        cache_logger_on_first_use=True,
    )


def _printable_fields(
    _: object, __: str, fields: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Keep each text of a log line on one line, without characters that command a terminal."""
    return {
        name: printable_line(value) if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _printable_traceback(stream: TextIO, error: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, error)
    stream.write(printable(text.getvalue()))


def _level_number(level: str) -> int:
    numbers: Mapping[str, int] = logging.getLevelNamesMapping()
    return numbers[level.upper()]
