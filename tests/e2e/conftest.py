"""Fixtures of the tests that start sidecars."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.lettas import StandIn


@pytest.fixture
def letta(tmp_path: Path) -> Iterator[StandIn]:
    """A Letta that several sidecars may reach, and that stores what it gets, also twice."""
    standing = StandIn(tmp_path)
    standing.start()
    yield standing
    standing.stop()
