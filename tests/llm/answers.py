"""Answers of language model servers to a streaming request, and what a caller hears of them."""

import json
from typing import Any, NamedTuple

SSE = "text/event-stream"
DONE = b"data: [DONE]\n\n"


class Answer(NamedTuple):
    """An answer with status 200.

    Attributes:
        body: Its bytes.
        heard: What a caller hears of it; None if nothing, so that it is no reply.
        content_type: From its headers; empty if they have none.
    """

    body: bytes
    heard: str | None
    content_type: str = SSE


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **beside: Any) -> dict[str, Any]:
    """A chunk with a delta and other fields beside its choices."""
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


def lines(*frames: dict[str, Any]) -> bytes:
    """Frames as lines of JSON."""
    return b"".join(json.dumps(frame).encode() + b"\n" for frame in frames)


def other(text: str) -> dict[str, Any]:
    """A chunk of a second choice that was not requested."""
    return {"choices": [{"index": 1, "delta": {"content": text}, "finish_reason": None}]}


def both(text: str, another: str) -> dict[str, Any]:
    return {"choices": [*says(text)["choices"], *other(another)["choices"]]}


def call(arguments: str, name: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk with a part of a tool call."""
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return chunk({"tool_calls": [{"index": 0, "function": function, **more}]})


CALL_CUT = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"to": "+4'}}
ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, "stop")
USAGE: dict[str, Any] = {"id": "c1", "choices": [], "usage": {"total_tokens": 15}}
THOUGHT = chunk({"reasoning_content": "let me think"})
PLAIN = data(ROLE, says("Fine, "), says("thanks."), STOP) + DONE
TWO_LINES = b'data: {"choices": [{"delta":\ndata: {"content": "In two."}}]}\n\n'

ANSWERS: dict[str, Answer] = {
    # Answers that are a reply
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
    "a refusal": Answer(data(chunk({"refusal": "I can't."}), STOP) + DONE, "I can't."),
    "a refusal in a whole answer": Answer(
        whole({"content": None, "refusal": "I can't."}), "I can't."
    ),
    "lines of JSON": Answer(
        lines(ROLE, says("Fine, "), says("thanks."), STOP, USAGE),
        "Fine, thanks.",
        "application/x-ndjson",
    ),
    "lines of JSON, and the end": Answer(lines(says("Fine."), STOP) + DONE, "Fine."),
    "lines of JSON without a finish": Answer(
        lines(says("Fine, "), says("thanks.")), "Fine, thanks."
    ),
    "an array of chunks": Answer(
        json.dumps([ROLE, says('Say "}]".'), STOP]).encode(), 'Say "}]".', "application/json"
    ),
    "an array of chunks, indented": Answer(
        json.dumps([says("So \\"), says("{it} is."), STOP], indent=2).encode(), "So \\{it} is."
    ),
    "an array of one whole answer": Answer(b"[" + whole({"content": "Whole."}) + b"]", "Whole."),
    "a whole answer, and a line after it": Answer(
        whole({"content": "Whole."}) + b"\r\n{", "Whole."
    ),
    "other choices": Answer(
        data(says("Yes."), other(" No."), both(" It is.", " It isn't."), STOP) + DONE, "Yes. It is."
    ),
    "thought in the text": Answer(
        data(ROLE, says("<think>"), says("Okay, "), says("so.\n</think>\n\n"), says("Yes."), STOP)
        + DONE,
        "Yes.",
    ),
    "thought in the text, in pieces": Answer(
        data(
            *map(
                says,
                ("<", "th", "ink>H", "m.</", "think> <thinking>", "A", "</thinking>", "1 < 2."),
            )
        )
        + data(STOP)
        + DONE,
        "1 < 2.",
    ),
    "thought in the text, escaped": Answer(
        data(says("<think>Hm.</th"), says("ink>Yes."), STOP).replace(b"<", b"\\u003c") + DONE,
        "Yes.",
    ),
    "thought in the text, many frames at once": Answer(
        data(says("[THINK]"), says("Okay"), says("[/THINK]"), says("Yes."), STOP) + DONE, "Yes."
    ),
    "thought in a whole answer": Answer(whole({"content": "<think>Hm.</think>Yes."}), "Yes."),
    "thought in a whole answer, closed alone": Answer(
        whole({"content": "Hm.</think>\nYes."}), "Yes."
    ),
    "thought in channels": Answer(
        data(
            ROLE,
            *map(
                says,
                (
                    *("<|channel|>", "analysis", "<|message|>", "The user ", "waits.", "<|end|>"),
                    *("<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "Yes."),
                ),
            ),
            STOP,
        )
        + DONE,
        "Yes.",
    ),
    "thought in channels, at once": Answer(
        data(
            says(
                "<|channel|>analysis<|message|>Hm.<|end|>"
                "<|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
            ),
            STOP,
        ),
        "Yes.",
    ),
    "no thought, in a channel": Answer(
        data(says("<|channel|>final<|message|>"), says("Yes."), STOP) + DONE, "Yes."
    ),
    "thought between triangles": Answer(
        data(says("◁think▷"), says("Hm."), says("◁/think▷"), says("Yes."), STOP) + DONE, "Yes."
    ),
    "thought between triangles, not escaped": Answer(
        data(says("TRI"), says("Hm.◁/th"), says("ink▷Yes."), STOP).replace(
            b"TRI", "◁think▷".encode()
        ),
        "Yes.",
    ),
    "thought in tags of any case": Answer(
        data(says("<Think>"), says("Hm."), says("</THINK>\n"), says("Yes."), STOP) + DONE, "Yes."
    ),
    "thought in capitals, in a whole answer": Answer(
        whole({"content": "<THINK>Hm.</Think> Yes."}), "Yes."
    ),
    "thought after words": Answer(
        data(says("So. "), says("<think>"), says("Hm."), says("</think>"), says("Yes."), STOP)
        + DONE,
        "So. Yes.",
    ),
    "thought closed alone": Answer(
        data(ROLE, says("Hm."), says("</think>"), says("\n\nYes."), STOP) + DONE, "Hm.\n\nYes."
    ),
    "thought closed alone, in pieces": Answer(
        data(*map(says, ("Hm.", " 1 <", " 2.", "</", "thi", "nk>", " Yes.")), STOP) + DONE,
        "Hm. 1 < 2. Yes.",
    ),
    "a bracket": Answer(
        data(*map(says, ("[", "T", "] is [TH", "INK] it.")), STOP), "[T] is [THINK] it."
    ),
    "thought in three spellings": Answer(
        data(
            chunk({"content": "", "reasoning": "hm"}),
            chunk({"content": None, "reasoning_content": "hm"}),
            chunk(
                {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}
            ),
            chunk({"content": "Yes.", "reasoning": None, "reasoning_content": None}),
            STOP,
        )
        + DONE,
        "Yes.",
    ),
    "what looks like thought": Answer(data(says("<th"), says("ree"), STOP) + DONE, "<three"),
    "nothing but the sign": Answer(data(says("1"), says(" <"), STOP) + DONE, "1 <"),
    "cut at the end of a sentence": Answer(
        data(says("Half of it."), says(" \u201cYes!\u201d "), chunk({}, "length")) + DONE,
        "Half of it. \u201cYes!\u201d ",
    ),
    "empty tool calls": Answer(
        data(chunk({"content": "Yes.", "tool_calls": []}), chunk({"tool_calls": [{}]}), STOP)
        + DONE,
        "Yes.",
    ),
    "tool calls null in each": Answer(
        data(
            chunk({"role": "assistant", "content": "Yes, ", "tool_calls": None}),
            chunk({"role": None, "content": "sir.", "tool_calls": None}),
            STOP,
        )
        + DONE,
        "Yes, sir.",
    ),
    # Answers that are no reply
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
    "a page": Answer(b"<!doctype html><title>Log in</title>", None, "text/html"),
    "a list": Answer(b'[{"error": {"code": 400}}]', None),
    "an empty list": Answer(b"[]", None),
    "lines that fail": Answer(lines(ROLE, {"error": {"code": 502}}), None),
    "an object cut off": Answer(b'[{"choices": [{"delta": {"content": "Hi', None),
    "an error by its event": Answer(
        b'event: error\ndata: {"message": "canary", "choices": []}\n\n', None
    ),
    "an error by its object": Answer(
        data({"object": "error", "message": "canary", "code": 400}), None
    ),
    "an error without an event": Answer(
        data(ROLE) + b'{"error": {"message": "canary"}}\n\n' + DONE, None
    ),
    "another choice alone": Answer(data(other("No."), STOP) + DONE, None),
    "thought in the text, and no more": Answer(
        data(says("<think>"), says("Hm, what now?"), STOP) + DONE, None
    ),
    "half a call": Answer(
        data(ROLE, call('{"to": "+4', "transfer"), chunk({}, "length")) + DONE, None
    ),
    "half a call, and the end": Answer(data(ROLE, call('{"to": "+4', "transfer")) + DONE, None),
    "half a call, and nothing": Answer(data(ROLE, call('{"to": "+4', "transfer")), None),
    "half a call in a whole answer": Answer(
        whole({"content": None, "tool_calls": [CALL_CUT]}, "length"), None
    ),
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
"""All kinds of answers that were seen, by name."""

CALL = {"id": "t1", "type": "function", "function": {"name": "endCall", "arguments": "{}"}}
CALLS: dict[str, Answer] = {
    "a tool call": Answer(
        data(ROLE, chunk({"tool_calls": [{"index": 0, **CALL}]}), chunk({}, "tool_calls")) + DONE,
        "",
    ),
    "a tool call in pieces": Answer(
        data(ROLE, call("", "endCall", id="t1"), call('{"why": '), call('"bye"}'))
        + data(chunk({}, "tool_calls"), USAGE)
        + DONE,
        "",
    ),
    "a tool call with its finish": Answer(
        data(chunk({"tool_calls": [{"index": 0, **CALL}]}, "stop")) + DONE, ""
    ),
    "a tool call without a number or a finish": Answer(
        data(chunk({"role": "assistant", "content": None, "tool_calls": [CALL]})), ""
    ),
    "two tool calls of one number": Answer(
        data(
            call('{"a":', "first", id="t1"),
            call(" 1}"),
            call("", "endCall", id="t2"),
            call('{"b": 2}'),
            STOP,
        ),
        "",
    ),
    "tool calls of far numbers": Answer(
        data(
            *(
                chunk({"tool_calls": [{"index": n, "id": name, "function": part}]})
                for n, name, part in (
                    (2, "t1", {"name": "endCall", "arguments": '{"a"'}),
                    (0, "t2", {"name": "other", "arguments": "{}"}),
                    (0, "t3", {"name": "third", "arguments": '{"c"'}),
                    (2, "", {"arguments": ": 1}"}),
                    (0, "", {"arguments": ": 2}"}),
                    (True, "t4", {"name": "fourth", "arguments": "{}"}),
                )
            ),
            STOP,
        ),
        "",
    ),
    "tool calls with an id in each part, and no number": Answer(
        data(
            *(
                chunk({"tool_calls": [{"id": name, "function": function}]})
                for name, function in (
                    ("t1", {"name": "endCall", "arguments": "{"}),
                    ("t1", {"arguments": "}"}),
                    ("t2", {"name": "other", "arguments": "{}"}),
                )
            ),
            STOP,
        ),
        "",
    ),
    "a tool call with an object for arguments": Answer(
        lines(
            chunk({"tool_calls": [{"id": "t1", "function": {"name": "endCall", "arguments": {}}}]}),
            STOP,
        ),
        "",
    ),
    "a tool call in a whole answer": Answer(
        whole({"content": None, "tool_calls": [CALL]}, "tool_calls"), "", "application/json"
    ),
}
"""Answers for a caller that runs tools; without tools there is nothing to hear in them."""

HALF = data(ROLE, says("Half"), says(" a"))
CUT: dict[str, Answer] = {
    "a filter in the middle": Answer(HALF + data(chunk({}, "content_filter")) + DONE, "Half a"),
    "a length, with an empty text": Answer(
        HALF + data(chunk({"content": ""}, "length"), USAGE) + DONE, "Half a"
    ),
    "a length, with its last words": Answer(
        data(says("Half"), chunk({"content": " a"}, "length")) + DONE, "Half a"
    ),
    "a length of a refusal": Answer(
        data(chunk({"refusal": "Half a"}), chunk({}, "length")), "Half a"
    ),
    "a filter of Gemini's": Answer(HALF + data(chunk({}, "SAFETY")), "Half a"),
    "an error": Answer(HALF + data({"error": {"code": 502, "message": "canary"}}) + DONE, "Half a"),
    "an error beside words": Answer(
        HALF + data(chunk({"content": "canary"}, "error", error={"code": 502})) + DONE, "Half a"
    ),
    "an error by its event": Answer(
        HALF + b'event: error\ndata: {"message": "canary"}\n\n' + DONE, "Half a"
    ),
    "an error by its object": Answer(
        HALF + data({"object": "error", "message": "canary", "code": 400}) + DONE, "Half a"
    ),
    "an error without an event": Answer(
        HALF + b'{"error": {"message": "canary", "code": "500"}}\n\n', "Half a"
    ),
    "an end in a frame": Answer(HALF + b'data: {"choices": [{"delta": {"content": "can', "Half a"),
    "half a call": Answer(
        HALF + data(call('{"to": "+4', "transfer"), chunk({}, "length")) + DONE, "Half a"
    ),
    "half a call beside words": Answer(
        data(ROLE, says("Half"))
        + data(chunk({"content": " a", "tool_calls": [{"index": 0, **CALL_CUT}]}))
        + data(STOP)
        + DONE,
        "Half a",
    ),
    "lines with a length": Answer(lines(says("Half"), says(" a"), chunk({}, "length")), "Half a"),
    "lines with an error": Answer(
        lines(says("Half"), says(" a"), {"error": {}}, {"error": 1}), "Half a"
    ),
    "an array cut off": Answer(
        json.dumps([says("Half"), says(" a"), STOP])[:-30].encode(), "Half a"
    ),
    "a whole answer": Answer(whole({"content": "Half a"}, "length"), "Half a"),
}
"""Replies that stop in the middle; `heard` is what came before that."""
