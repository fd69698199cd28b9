"""A log that fails, hangs or fills up does not disturb the parts that emit events."""

import contextlib
import io
import os
from typing import Any

import pytest

from sidecar import telemetry
from sidecar.log import LogWriter
from sidecar.telemetry import Telemetry
from tests.sidecar_process import eventually

pytestmark = pytest.mark.unit


class Broken:
    """A log whose device is full."""

    def __getattr__(self, _: str) -> Any:
        def write(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        return write


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    """A log line that fails raises nothing, and the event and the failure are counted."""
    events = Telemetry(strict=True, logger=Broken())
    events.emit(telemetry.drained, undelivered=0, live_calls=0, took_s=0.0)
    assert events.counts == {"drained": 1, "log_failed": 1}


def test_lines_reach_the_stream_in_order() -> None:
    """Every line written before the close reaches the stream, in order."""
    stream = io.StringIO()
    writer = LogWriter(stream)
    for number in range(100):
        writer.write(f"{number}\n")
    writer.close()
    assert stream.getvalue().split() == [str(number) for number in range(100)]


def test_a_reader_that_hangs_holds_nobody_up() -> None:
    """With a full pipe that nobody reads, writing returns, and lines are dropped and counted."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def drained() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(reading, 1 << 20)
        return writer._lines.empty()

    with os.fdopen(writing, "w") as stream:
        writer = LogWriter(stream, limit_lines=10)
        for _ in range(1_000):
            writer.write("x" * 1_000)
        assert writer.dropped > 0
        eventually(drained)
        writer.close()
    os.close(reading)


def test_a_stream_that_fails_is_counted() -> None:
    """Lines to a closed stream are counted as dropped, and the thread goes on with later ones."""
    stream = io.StringIO()
    stream.close()
    writer = LogWriter(stream)
    writer.write("a\n")
    writer.write("b\n")
    writer.close()
    assert writer.dropped == 2
