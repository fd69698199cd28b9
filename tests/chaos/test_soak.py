"""A slice of the soak, and proof that it would see growth."""

import random
from pathlib import Path

import pytest

from tests.chaos.soak import Options, run, slope_of

pytestmark = pytest.mark.chaos


def test_calls_with_faults_lose_nothing_and_are_measured(tmp_path: Path) -> None:
    """After some seconds of calls with faults all turns have arrived, and each figure is there."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    verdict, figures = run(Options(15.0, 10, seed, tmp_path))
    assert verdict.clean, verdict
    assert verdict.turns > 10
    assert {"rss_slope_kb_per_min", "handles", "tasks", "p99_ratio"} <= figures.keys()


def test_growth_is_seen() -> None:
    """Values that grow by three at each step have that slope, and steady ones have none."""
    at = [0.0, 1.0, 2.0, 3.0]
    assert slope_of(at, [5.0, 8.0, 11.0, 14.0]) == pytest.approx(3.0)
    assert slope_of(at, [5.0, 6.0, 6.0, 5.0]) == pytest.approx(0.0)
