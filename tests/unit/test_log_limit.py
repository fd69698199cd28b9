"""Log lines that strangers can cause are limited in number."""

import logging
from collections.abc import Mapping

import pytest

from sidecar import telemetry
from sidecar.log import Spared
from sidecar.log_limit import LogLimit
from sidecar.telemetry import Telemetry, catalogue
from tests.set_clock import Clock

pytestmark = pytest.mark.unit


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Mapping[str, object]]] = []

    def warning(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))

    info = error = debug = warning


def test_few_of_a_kind_are_logged_and_the_rest_counted() -> None:
    """A flood of refusals writes ten lines a minute per reason, with a count of those left out."""
    clock, log = Clock(0.0), Lines()
    events = Telemetry(strict=True, logger=log, log_limit=LogLimit(clock=clock))
    for n in range(5_000):
        events.emit(telemetry.link_refused, why="wrong or missing token")
        events.emit(telemetry.vapi_refused, route="webhook", status=401, why=f"stranger {n}")
    assert len(log.lines) == 20
    assert events.counts["link_refused"] == 5_000
    events.emit(telemetry.link_refused, why="a browser's request")
    assert log.lines[-1] == ("link_refused", {"why": "a browser's request"})
    clock.now_s += 61
    events.emit(telemetry.link_refused, why="wrong or missing token")
    assert log.lines[-1][1]["left_out"] == 4_990


def test_what_is_no_strangers_is_always_logged() -> None:
    """Events of our own calls are always logged; only a known list of events is limited."""
    log = Lines()
    events = Telemetry(strict=True, logger=log)
    for n in range(100):
        events.emit(telemetry.call_closed, call=f"c{n}", reason="", turns=1)
    assert len(log.lines) == 100
    spared = {event.name for event in catalogue() if event.kinds is not None}
    of_strangers = {"link_refused", "frame_refused", "vapi_refused"}
    of_vapi_that_repeats_itself = {"vapi_call_over", "vapi_call_unnamed", "vapi_held_back"}
    of_a_worker_that_repeats_itself = {
        "turn_refused",
        "turn_seq_gap",
        "call_recorded_elsewhere",
        "turns_spooled",
    }
    assert spared == of_strangers | of_vapi_that_repeats_itself | of_a_worker_that_repeats_itself


def test_kinds_are_bounded() -> None:
    """New reasons from a stranger fill neither the log nor the memory."""
    log_limit = LogLimit(burst=2, clock=Clock(0.0))
    passed = sum(log_limit.admits(n) is not None for n in range(10_000))
    assert passed < 300
    assert len(log_limit._kinds) < 300


def test_lines_of_libraries_are_spared_too() -> None:
    """A library's log lines about bad requests are limited in number, too."""
    spared = Spared()

    def passes(text: str) -> bool:
        return spared.filter(logging.LogRecord("uvicorn.error", 30, "", 0, text, (), None))

    assert sum(passes("Invalid HTTP request received.") for _ in range(1_000)) == 10
    assert passes("Something else")
