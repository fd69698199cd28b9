"""Guidance of a call: bounded, without repeats, kept to the end of the call."""

import pytest

from sidecar.calls.guidance import LeftGuidance
from sidecar.llm.guidance import GUIDANCE_CHARS, GUIDANCE_PIECES, CallGuidance
from sidecar.model import AgentRef, Call

pytestmark = pytest.mark.unit


def call(caller_key: str = "ada") -> Call:
    return Call("t/c1", AgentRef("t", caller_key=caller_key or None), "livekit", caller_key, 0.0)


def test_guidance_is_bounded_and_the_newest_is_kept() -> None:
    """The text of guidance is bounded, and the oldest pieces are dropped for the newest."""
    guidance = CallGuidance()
    assert guidance.add("  ") == 0
    assert guidance.text == ""
    for n in range(100):
        guidance.add(f"{n}: " + "x" * 500)
    assert len(guidance.text) < GUIDANCE_CHARS + 200
    assert "99: " in guidance.text
    assert "- 0: " not in guidance.text
    assert guidance.add("y" * (GUIDANCE_CHARS + 3_000)) >= 3_000
    assert len(guidance.text) < GUIDANCE_CHARS + 200


def test_guidance_is_bounded_in_number() -> None:
    """The number of pieces is bounded, the newest are kept, and dropped characters are counted."""
    guidance = CallGuidance()
    cut_chars = [guidance.add(f"piece {n:02}") for n in range(GUIDANCE_PIECES + 3)]
    assert cut_chars == [0] * GUIDANCE_PIECES + [len("piece 00")] * 3
    assert guidance.pieces[0] == "piece 03"
    assert len(guidance.pieces) == GUIDANCE_PIECES


@pytest.mark.parametrize("again", ["Be brief.", " Be brief.\n", "z" * (GUIDANCE_CHARS + 9)])
def test_the_same_again_is_no_news(again: str) -> None:
    """Adding the same piece again changes nothing, even if its end was cut off."""
    guidance = CallGuidance()
    guidance.add(again)
    before = guidance.text
    assert guidance.add(again) == 0
    assert guidance.text == before
    assert len(guidance.pieces) == 1


def test_a_call_that_is_taken_up_again_has_its_guidance() -> None:
    """Guidance of a call is kept for a while, and as long as the call is expected back."""
    left = LeftGuidance(orphan_s=120.0)
    guidance = left.take_up(call())
    guidance.add("Be brief.")
    left.leave(call(), guidance, now_s=0.0)
    left.forget(expected=(), now_s=119.0)
    left.forget(expected={"t/c1"}, now_s=500.0)
    assert left.take_up(call()) is guidance
    left.forget(expected=(), now_s=500.0)
    assert left.take_up(call()).text == ""


def test_no_other_caller_has_it() -> None:
    """Another caller who reuses a call id gets none of its guidance."""
    left = LeftGuidance(orphan_s=120.0)
    guidance = CallGuidance()
    guidance.add("Ada owes us 300.")
    left.leave(call("ada"), guidance, now_s=0.0)
    assert left.take_up(call("bob")).text == ""
    assert left.take_up(call("ada")) is guidance
