"""Digests a transcript: one tool call per step for each fact that the caller stated. Pure."""

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sidecar.demo.facts import Fact, fact_of_line, facts_of_speech
from sidecar.demo.prompt import (
    CALLER_TURN,
    NOT_ABOUT_THE_CALLER,
    Message,
    blocks_of,
    is_escaped,
    text_of,
)
from sidecar.demo.reply import reply_to
from sidecar.llm.port import Reply, ToolCall
from sidecar.untrusted import MALFORMED

_DEFAULT_LABEL = "human"


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool as offered: its name, its parameters' schemas, and which of them it requires."""

    name: str
    properties: Mapping[str, Mapping[str, Any]]
    required: Sequence[str]
    escaped: bool = False

    @classmethod
    def of(cls, offered: Mapping[str, Any], *, escaped: bool = False) -> "OfferedTool":
        """Return a tool of a request; `escaped`: its arguments are to be escaped."""
        function = cast("Mapping[str, Any]", offered.get("function") or offered)
        parameters = cast("Mapping[str, Any]", function.get("parameters") or {})
        return cls(
            str(function.get("name", "")),
            parameters.get("properties") or {},
            parameters.get("required") or (),
            escaped,
        )

    def call(self, place: str, **arguments: str) -> ToolCall:
        """Return a call; parameters the schema requires beyond `arguments` get a neutral value.

        `place` names the step of the conversation: call ids of two steps differ.
        """
        neutral: dict[str, object] = {"boolean": False, "integer": 0, "number": 0, "array": []}
        filled: dict[str, object] = {
            name: html.escape(text, quote=False) if self.escaped else text
            for name, text in arguments.items()
        }
        for name in self.required:
            kind = str(self.properties.get(name, {}).get("type", "string"))
            filled.setdefault(name, neutral.get(kind, "demo"))
        text = json.dumps(filled, ensure_ascii=False)
        digest = hashlib.sha256(f"{place}\0{self.name}\0{text}".encode()).hexdigest()
        return ToolCall(f"call_{digest[:20]}", self.name, text)

    def first_of(self, *names: str) -> str:
        """Return the first of `names` that the schema has, or the last one."""
        return next((name for name in names if name in self.properties), names[-1])


EDITS = frozenset(
    {
        "core_memory_append",
        "core_memory_replace",
        "memory_insert",
        "memory_replace",
        "memory_rethink",
        "rethink_user_memory",
    }
)


def digest_step(messages: Sequence[Message], tools: Mapping[str, OfferedTool]) -> Reply:
    """Return the next tool call that brings a fact into memory, or what ends the run."""
    start, words = _what_to_digest(messages)
    calls = _calls_since(messages, start)
    place = f"{len(calls)}/{words}"
    tried = {line for _, arguments in calls for line in _lines_in(arguments)}
    if is_escaped(messages):
        tried = set(map(html.unescape, tried))
    blocks = blocks_of(messages)
    for label, fact in _new_facts(words, blocks):
        if fact.line in tried:
            continue  # tried in this run, whatever the tool answered
        if edit := _edit(label, fact, blocks.get(label), tools, place=place):
            return Reply("", (edit,))
    if "memory_finish_edits" in tools and all(name != "memory_finish_edits" for name, _ in calls):
        return Reply("", (tools["memory_finish_edits"].call(place),))
    answered = "done" if calls or _TRANSCRIPT.search(words) else reply_to(messages)
    return spoken(answered, tools, messages)


def spoken(text: str, tools: Mapping[str, OfferedTool], messages: Sequence[Message]) -> Reply:
    """Say `text` the way the agent is set up to speak: once by its tool, else as plain text."""
    start, words = _what_to_digest(messages)
    calls = _calls_since(messages, start)
    place = f"{len(calls)}/{words}"
    if "send_message" in tools and all(name != "send_message" for name, _ in calls):
        return Reply("", (tools["send_message"].call(place, message=text),))
    return Reply(text)


def _what_to_digest(messages: Sequence[Message]) -> tuple[int, str]:
    """Return index and text of the newest user message that is from a person or a post."""
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].get("role") == "user":
            text = _unpacked(text_of(messages[place]))
            if text is None:
                continue
            if _DIGEST_AGAIN.search(text):
                return place, _newest_transcript(messages[:place])
            return place, text
    return len(messages), ""


def _newest_transcript(messages: Sequence[Message]) -> str:
    """Return the newest user message that holds a transcript; an earlier run left it undigested."""
    texts = (text_of(message) for message in messages if message.get("role") == "user")
    return next((text for text in reversed(list(texts)) if _TRANSCRIPT.search(text)), "")


def _unpacked(text: str) -> str | None:
    """Return a user message without the classic server's JSON; None for the server's own."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        packed: object = json.loads(text)
    except MALFORMED:
        return text
    if not isinstance(packed, dict) or "type" not in packed:
        return text
    fields = cast("dict[str, object]", packed)
    return str(fields.get("message", "")) if fields["type"] == "user_message" else None


def _calls_since(messages: Sequence[Message], start: int) -> list[tuple[str, str]]:
    """Return name and arguments of every tool call after a place."""
    found: list[tuple[str, str]] = []
    for message in messages[start + 1 :]:
        for call in cast("Sequence[Mapping[str, Any]]", message.get("tool_calls") or ()):
            function = cast("Mapping[str, Any]", call.get("function") or {})
            found.append((str(function.get("name", "")), str(function.get("arguments", ""))))
    return found


def _lines_in(arguments: str) -> list[str]:
    """Return the lines of every text in a call's arguments."""
    try:
        parsed: object = json.loads(arguments)
    except MALFORMED:
        return []
    if not isinstance(parsed, dict):
        return []
    texts = cast("dict[str, object]", parsed).values()
    return [line.strip() for text in texts if isinstance(text, str) for line in text.splitlines()]


_TRANSCRIPT = re.compile(r"<transcript\b[^>]*>.*?(?:</transcript>|\Z)", re.DOTALL)
_DIGEST_AGAIN = re.compile(r"transcript above has not been digested yet")
_MACHINE = "[a voicemail's greeting"  # so begins a turn that no person spoke
_REMEMBER = re.compile(r"\[\[remember ([\w-]{1,64}): (.*?)\]\]", re.DOTALL)


def _new_facts(words: str, blocks: Mapping[str, str]) -> list[tuple[str, Fact]]:
    """Return label and fact for everything in a message that memory does not hold yet."""
    transcripts = _TRANSCRIPT.findall(words)
    said = [html.unescape(t) for part in transcripts for t in CALLER_TURN.findall(part)]
    facts: dict[tuple[str, str], Fact] = {}
    home = _home_label(blocks)
    for text in said if transcripts else [words]:
        if text.startswith(_MACHINE):
            continue
        for label, exact in _REMEMBER.findall(text):
            line = " ".join(exact.split())
            facts[label, line] = Fact("Note", line, raw=line)
        for fact in facts_of_speech(_REMEMBER.sub("", text)):
            facts.pop((home, fact.key), None)
            facts[home, fact.key] = fact
    return [
        (label, fact)
        for (label, _), fact in facts.items()
        if fact.line.casefold() not in map(str.casefold, _lines_of(blocks.get(label, "")))
    ]


def _home_label(blocks: Mapping[str, str]) -> str:
    if not blocks or _DEFAULT_LABEL in blocks:
        return _DEFAULT_LABEL
    return next((label for label in blocks if label not in NOT_ABOUT_THE_CALLER), _DEFAULT_LABEL)


def _lines_of(value: str) -> list[str]:
    return [line.strip() for line in value.splitlines()]


def _edit(
    label: str, fact: Fact, value: str | None, tools: Mapping[str, OfferedTool], *, place: str
) -> ToolCall | None:
    """Return the tool call that brings one fact into a block, with whichever tool is offered."""
    old = next(
        (
            line
            for line in (value or "").splitlines()
            if not fact.raw and (known := fact_of_line(line)) and known.key == fact.key
        ),
        None,
    )
    if old is not None and value is not None:
        return _replacement(label, (old, fact.line), value, tools, place=place)
    if tool := tools.get("memory_insert"):
        new = tool.first_of("new_string", "new_str")
        return tool.call(place, **{"label": label, new: fact.line})
    if tool := tools.get("core_memory_append"):
        return tool.call(place, label=label, content=fact.line)
    return _rewrite(label, f"{value or ''}\n{fact.line}".strip(), tools, place=place)


def _replacement(
    label: str, change: tuple[str, str], value: str, tools: Mapping[str, OfferedTool], *, place: str
) -> ToolCall | None:
    old, new = change
    if value.count(old) == 1:
        if tool := tools.get("memory_replace"):
            before = tool.first_of("old_string", "old_str")
            after = tool.first_of("new_string", "new_str")
            return tool.call(place, **{"label": label, before: old, after: new})
        if tool := tools.get("core_memory_replace"):
            return tool.call(place, label=label, old_content=old, new_content=new)
    lines = [new if line == old else line for line in value.splitlines()]
    return _rewrite(label, "\n".join(dict.fromkeys(lines)), tools, place=place)


def _rewrite(
    label: str, value: str, tools: Mapping[str, OfferedTool], *, place: str
) -> ToolCall | None:
    if tool := tools.get("memory_rethink"):
        return tool.call(place, label=label, new_memory=value)
    if tool := tools.get("rethink_user_memory"):
        return tool.call(place, new_memory=value)
    return None
