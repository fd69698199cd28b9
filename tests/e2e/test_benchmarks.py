"""The benchmarks run and report every promised figure; no time is judged here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from benchmarks import litellm

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def measured(key: str) -> dict[str, Any]:
    """Run one part for a few seconds and return the figures of its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", key, "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert [key] == list(figures)
    return dict(figures[key])


@pytest.mark.slow
def test_every_trouble_of_letta_costs_one_llm_call_a_turn() -> None:
    """Whatever Letta does, a turn is one LLM call, and every prompt holds the memory once."""
    rows = measured("prompt_path")
    assert {"5 ms", "50 ms", "300 ms", "503", "hang", "no memory"} == rows.keys()
    for trouble in rows.keys() - {"no memory"}:
        row = rows[trouble]
        assert row["samples"] > 0
        assert row["llm_calls_per_turn"] == 1.0
        assert row["with_memory"] == 1.0
        assert row["memory_age_s"] >= 0
        assert {"p50_ms", "p99_ms", "no_memory_p50_ms", "over_p50_ms", "over_p99_ms"} <= row.keys()
    assert rows["no memory"]["llm_calls_per_turn"] == 1.0


@pytest.mark.slow
def test_every_turn_sent_over_the_link_is_acked() -> None:
    """At any speed, from one client and from four, every turn is acked."""
    figures = measured("journal")
    assert {"append_p50_ms", "append_p99_ms", "max_per_s"} <= figures.keys()
    linked = [row for name, row in figures.items() if name.startswith("link")]
    assert len(linked) == 3
    assert all(row["unacked"] == 0 and row["max_per_s"] > 0 for row in linked)


def test_nothing_is_lost_doubled_or_misordered_on_the_way() -> None:
    """Letta gets exactly what was said, over HTTP and in process."""
    figures = measured("delivery")
    for row in (figures, figures["over HTTP"], figures["in process"]):
        assert row["turns_per_s"] > 0
        assert (0, 0, 0) == (row["lost"], row["doubled"], row["misordered"])


@pytest.mark.slow
def test_streams_through_the_sidecar_are_measured_beside_a_bare_proxy() -> None:
    """Each way has its ratio for each number of streams, and every cut stream was closed."""
    figures = measured("vapi")
    for name in ("ttft_ratio_p50", "ttft_ratio_p99", "bare_ttft_ratio_p50", "bare_ttft_ratio_p99"):
        assert {"1", "50", "200"} == figures[name].keys()
        assert all(ratio > 0 for ratio in figures[name].values())
    assert figures["cancelled"] == 20
    assert {"cpu_us_per_chunk", "cancelled_upstream_closed_p99_ms"} <= figures.keys()


def test_the_comparison_is_skipped_with_a_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where LiteLLM is not installed, its part names the command that installs it."""
    monkeypatch.setattr(litellm, "PROXY", tmp_path / "none")
    assert "make bench-litellm" in anyio.run(litellm.measure, True)["skipped"]


def test_killed_workers_are_succeeded_without_a_second_greeting() -> None:
    """Each successor's first prompt has all that was acked, and Letta has each word once."""
    figures = measured("successor")
    assert {"first_prompt_p50_ms", "first_prompt_p99_ms", "new_call_p50_ms"} <= figures.keys()
    assert figures["kills"] > 0
    assert (0, 0, 0) == (figures["lost"], figures["doubled"], figures["greeted_twice"])


@pytest.mark.slow
def test_many_calls_lose_nothing() -> None:
    """The load of many calls reports what a call costs, and each acked turn is at Letta."""
    figures = measured("capacity")
    names = {"calls", "ack_p99_ms", "prompt_p99_ms", "rss_kb_per_call", "cpu_cores"}
    assert names <= figures.keys()
    assert figures["lost"] == 0
    assert figures["with_memory"] == 1.0


@pytest.mark.slow
def test_a_growing_journal_is_measured() -> None:
    """Each size of the journal has the same figures."""
    figures = measured("growth")
    assert figures
    for row in figures.values():
        assert {"open_ms", "append_ms", "calls_list_ms"} <= row.keys()


@pytest.mark.slow
def test_an_idle_sidecar_is_weighed() -> None:
    """The benchmark reports memory and CPU for each kind of Letta."""
    figures = measured("idle")
    for kind in ("embedded", "rest"):
        assert {"rss_mb", "cpu_percent"} == figures[kind].keys()
