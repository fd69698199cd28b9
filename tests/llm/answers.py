"""What servers of language models answer to a request that streams, and what a caller hears of it."""

import json
from typing import Any, NamedTuple

SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"


class Answer(NamedTuple):
    """An answer with status 200.

    Attributes:
        body: As it comes.
        heard: What a caller hears of it; None: nothing, so it is no reply.
        content_type: As its headers say; empty: they don't.
    """

    body: bytes
    heard: str | None
    content_type: str = SSE


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **beside: Any) -> dict[str, Any]:
    """A chunk with a delta, and whatever stands beside its choices."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [choice], **beside}


def data(*frames: dict[str, Any]) -> bytes:
    """Frames as events."""
    return b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames)


def says(text: str) -> dict[str, Any]:
    return chunk({"content": text})


def whole(message: dict[str, Any], finish: str = "stop", **beside: Any) -> bytes:
    """A whole answer, as to a request that does not stream."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return json.dumps({"id": "x", "choices": [choice], **beside}).encode()


ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, "stop")
USAGE: dict[str, Any] = {"id": "c1", "choices": [], "usage": {"total_tokens": 15}}
THOUGHT = chunk({"reasoning_content": "let me think"})
PLAIN = data(ROLE, says("Fine, "), says("thanks."), STOP) + DONE
TWO_LINES = b'data: {"choices": [{"delta":\ndata: {"content": "In two."}}]}\n\n'

ANSWERS: dict[str, Answer] = {
    # What is a reply
    "plain": Answer(PLAIN, "Fine, thanks."),
    "another content type": Answer(PLAIN, "Fine, thanks.", "text/plain"),
    "no content type": Answer(PLAIN, "Fine, thanks.", ""),
    "called json": Answer(PLAIN, "Fine, thanks.", "application/json"),
    "a whole answer": Answer(whole({"content": "Whole."}), "Whole.", "application/json"),
    "a whole answer, called a stream": Answer(whole({"content": "Whole."}), "Whole."),
    "a whole answer, indented": Answer(
        json.dumps(json.loads(whole({"content": "Whole."})), indent=2).encode(), "Whole."
    ),
    "frames without choices": Answer(
        data({"id": "x", "usage": None}, {"choices": None}, says("Yes."), {"ping": 1}, STOP) + DONE,
        "Yes.",
    ),
    "error null in each": Answer(
        data(chunk({"content": "Fine."}, error=None), chunk({}, "stop", error=None)) + DONE, "Fine."
    ),
    "no finish and no end": Answer(data(ROLE, says("Cut here")), "Cut here"),
    "no finish": Answer(data(says("Fine.")) + DONE, "Fine."),
    "no end": Answer(data(says("Fine."), STOP), "Fine."),
    "no last line end": Answer(data(says("Fine."), STOP).rstrip(), "Fine."),
    "an empty finish in each": Answer(
        data(chunk({"content": "So "}, ""), chunk({"content": "it is."}, ""), STOP) + DONE,
        "So it is.",
    ),
    "carriage returns": Answer(PLAIN.replace(b"\n", b"\r\n"), "Fine, thanks."),
    "carriage returns alone": Answer(PLAIN.replace(b"\n", b"\r"), "Fine, thanks."),
    "no blank lines": Answer(PLAIN.replace(b"\n\n", b"\n"), "Fine, thanks."),
    "no blank after the colon": Answer(PLAIN.replace(b"data: ", b"data:"), "Fine, thanks."),
    "a frame in two lines": Answer(TWO_LINES + DONE, "In two."),
    "a byte order mark": Answer(b"\xef\xbb\xbf" + PLAIN, "Fine, thanks."),
    "comments and names": Answer(
        b": PROCESSING\n\nevent: message\nid: 7\nretry: 10\n" + PLAIN, "Fine, thanks."
    ),
    "keep-alives as data": Answer(b"data: ping\n\ndata:\n\n" + PLAIN, "Fine, thanks."),
    "half characters": Answer(
        data(says("Grü")) + b'data: {"choices":[{"delta":{"content":"\xc3\\ud83d"}}]}\n\n' + DONE,
        "Grü��",
    ),
    "letters of all kinds": Answer(
        'data: {"choices":[{"delta":{"content":"日本語 🎉 Möwe"}}]}\n\n'.encode() + DONE,
        "日本語 🎉 Möwe",
    ),
    "parts": Answer(
        data(
            chunk({"content": [{"type": "thinking", "thinking": "hm"}]}),
            chunk({"content": [{"type": "text", "text": "In parts."}]}),
            STOP,
        )
        + DONE,
        "In parts.",
    ),
    "a message in place of a delta": Answer(
        data({"choices": [{"message": {"content": "Said."}, "finish_reason": "stop"}]}), "Said."
    ),
    "thought first": Answer(data(ROLE, *[THOUGHT] * 5, says("Yes."), STOP) + DONE, "Yes."),
    "usage last": Answer(data(says("Yes."), STOP, USAGE) + DONE, "Yes."),
    "more after the end": Answer(data(says("Yes."), STOP) + DONE + data(says("No.")), "Yes."),
    # What is none
    "an error in place of a chunk": Answer(data({"error": {"code": "overloaded"}}), None),
    "an error beside choices": Answer(
        b": PROCESSING\n\n"
        + data(chunk({"content": ""}, "error", error={"code": 502, "message": "canary"}))
        + DONE,
        None,
    ),
    "an error beside no choices": Answer(data({"choices": [], "error": {"code": 502}}), None),
    "a finish that is an error": Answer(data(ROLE, chunk({}, "error")) + DONE, None),
    "held back by a filter": Answer(
        data(
            {"choices": [], "prompt_filter_results": [{}]},
            ROLE,
            chunk({"content": None}, "content_filter"),
        )
        + DONE,
        None,
    ),
    "only thought": Answer(data(ROLE, *[THOUGHT] * 40, chunk({}, "length")) + DONE, None),
    "a bare stop": Answer(data(ROLE, STOP) + DONE, None),
    "only the end": Answer(DONE, None),
    "only blanks": Answer(data(says(" "), says("\n\n"), says("…"), STOP) + DONE, None),
    "only comments": Answer(b": ping\n\n" * 20, None),
    "nothing": Answer(b"", None),
    "a refusal": Answer(data(chunk({"refusal": "I can't."}), STOP) + DONE, None),
    "a page": Answer(b"<!doctype html><title>Log in</title>", None, "text/html"),
    "a list": Answer(b'[{"error": {"code": 400}}]', None),
    "broken json": Answer(b"data: {no json\n\n", None),
    "no object": Answer(b"data: []\n\n", None),
    "cut in a frame": Answer(data(ROLE) + b'data: {"choices": [{"del', None),
    "deep": Answer(b'data: {"a": ' + b"[" * 100_000 + b"\n\n", None),
    "a whole error": Answer(b'{"error": {"code": 502, "message": "canary"}}', None),
    "a whole answer with an error": Answer(whole({"content": ""}, error={"code": 502}), None),
    "a whole answer without words": Answer(whole({"content": None}), None),
    "a whole answer cut off": Answer(whole({"content": "Whole."})[:40], None),
    "no completion": Answer(b'{"choices": [{}]}', None),
}
"""By name: every kind that was met."""

CALL = {"id": "t1", "type": "function", "function": {"name": "endCall", "arguments": "{}"}}
CALLS: dict[str, Answer] = {
    "a tool call": Answer(
        data(ROLE, chunk({"tool_calls": [{"index": 0, **CALL}]}), chunk({}, "tool_calls")) + DONE,
        "",
    ),
    "a tool call in a whole answer": Answer(
        whole({"content": None, "tool_calls": [CALL]}, "tool_calls"), "", "application/json"
    ),
}
"""Answers for one who runs tools; for another there is nothing to hear in them."""
