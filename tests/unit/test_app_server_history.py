"""What a conversation on the App Server shows about a batch."""

from collections.abc import Mapping
from typing import Any

import pytest

from sidecar.letta.app_server.history import trace_of
from sidecar.letta.port import Post

pytestmark = pytest.mark.unit

POST = Post("batch-1", "agent", "conv", '<transcript batch="batch-1">', 0.0)


def said(text: str, kind: str = "user_message") -> Mapping[str, Any]:
    return {"message_type": kind, "content": text, "date": "2026-11-24T23:24:36.494Z"}


def returned(text: str) -> Mapping[str, Any]:
    return {"message_type": "tool_return_message", "tool_return": text}


DONE = said("done", "assistant_message")


def test_an_answer_says_that_it_is_digested() -> None:
    """A batch counts as digested only with an answer before any later batch."""
    assert trace_of(POST, [said(POST.text), returned("Block human now reads: x"), DONE]).digested
    assert not trace_of(POST, [said(POST.text), returned("Block human now reads: x")]).digested
    later = said('<transcript batch="batch-2">')
    assert not trace_of(POST, [said(POST.text), later, DONE]).digested


@pytest.mark.parametrize("cut", ["External tool call timed out", "Interrupted by user"])
def test_a_tool_that_was_cut_off_leaves_it_undigested(cut: str) -> None:
    """An answer after a failed edit does not make the batch digested; one after a new edit does."""
    cut_off = [said(POST.text), returned(cut), DONE]
    assert not trace_of(POST, cut_off).digested
    assert trace_of(POST, [*cut_off, said("Digest it now"), returned("made"), DONE]).digested
