"""/metrics of the real process, after a real call."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.console_page import opened
from tests.e2e.test_cli import Cli
from tests.e2e.test_link_server import worker
from tests.sidecar_process import SidecarProcess, eventually, get

pytestmark = pytest.mark.e2e


def figures(sidecar: SidecarProcess) -> dict[str, float]:
    """Samples, summed over their labels."""
    status, text = get(f"{sidecar.url}/metrics")
    assert status == 200
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_a_call_shows_in_the_metrics(tmp_path: Path) -> None:
    """A call, its turns, its prompt, the read of memory and the post are counted and timed."""
    with SidecarProcess(tmp_path / "data") as sidecar:
        with opened(sidecar) as page:
            page.call("ada")
            page.say("My name is Ada.")
            during = figures(sidecar)
            assert during["sidecar_live_calls"] == 1
            assert during["sidecar_undelivered_turns"] == 2
            assert 0 < during["sidecar_oldest_undelivered_age_seconds"] < 60
            page.hang_up()
        eventually(lambda: sidecar.undelivered() == 0)
        eventually(lambda: figures(sidecar)["sidecar_batch_settle_seconds_count"] == 1)
        after = figures(sidecar)
        assert after["sidecar_calls_total"] == 1
        assert after["sidecar_turns_total"] == 2
        assert after["sidecar_prompts_total"] == 1
        assert after["sidecar_prompt_wait_seconds_count"] == 1
        assert after["sidecar_post_seconds_count"] == 1
        assert after["sidecar_memory_read_seconds_count"] >= 1
        assert after["sidecar_live_calls"] == 0
        assert after["sidecar_journal_up"] == 1
        assert after["process_resident_memory_bytes"] > 0
        assert "ada" not in get(f"{sidecar.url}/metrics")[1].lower()


def test_what_livekit_measured_of_a_turn_is_kept_counted_and_shown(tmp_path: Path) -> None:
    """A turn's measurements are in /metrics by stage, and under the turn in `calls show`."""
    measured = {
        "transcription_delay": 0.21,
        "end_of_turn_delay": 0.52,
        "llm_node_ttft": 0.33,
        "tts_node_ttfb": 0.14,
        "e2e_latency": 0.91,
        "memory_served_fresh": 1.0,
        "memory_wait_s": 0.004,
        "memory_age_s": 1.5,
        "of_no_stage_we_know": 7.0,
    }
    with SidecarProcess(tmp_path / "data") as sidecar:
        with worker(sidecar) as peer:
            peer.open("call-1", identity="ada")
            peer.send(
                type="turn",
                call="call-1",
                item="i1",
                seq=1,
                speaker="agent",
                text="Hello.",
                at_s=1.0,
                metrics=measured,
            )
            peer.until("ack")
        scraped = get(f"{sidecar.url}/metrics")[1]
        cli = Cli(tmp_path / "data")
        shown = cli.ok("calls", "show", "call-1")
        stored = cli.json("calls", "show", "call-1")["turns"][0]["metrics"]
    assert 'sidecar_turn_seconds_sum{stage="e2e_latency"} 0.91' in scraped
    assert "of_no_stage" not in scraped
    words = " ".join(shown.split())
    assert "e2e_latency 0.91 s; memory fresh, 1.5 s old, waited 4 ms" in words
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert stored == measured
