"""The demo model: rules in place of a language model, so that a first run needs no key.

It is deterministic, does no I/O and says what it is. Two jobs, told apart by the tools offered:

* With memory tools (those of the embedded Letta or of a classic Letta server) it *digests*: each
  fact the caller states in a posted transcript becomes one line of a memory block, by one tool
  call per step. A line of the same subject is replaced; one that is there already is left.
* Without, it *replies* to the last user message from the memory in the prompt, from what was
  said recently and from the conversation so far.

``[[remember LABEL: TEXT]]`` in a caller's words stores TEXT word for word in block LABEL.
"""

import hashlib
import html
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from typing_extensions import override

from sidecar.demo.facts import (
    Fact,
    asked_for,
    fact_of_line,
    facts_of_memory,
    facts_of_speech,
    plain_lines,
    questions_of,
)
from sidecar.llm.port import Llm, Reply, ToolCall
from sidecar.untrusted import MALFORMED

_DEFAULT_LABEL = "human"
_NOT_ABOUT_THE_CALLER = frozenset({"persona"})
_SUGGESTION = (
    "I'm a demo model, so I keep it simple: tell me a fact about you and I'll remember it."
)

_Message = Mapping[str, Any]


class DemoModel(Llm):
    """Rules in place of a language model. It never fails and never gives an empty reply."""

    @property
    @override
    def name(self) -> str:
        return "demo model"

    @override
    async def stream(self, messages: Sequence[_Message]) -> AsyncIterator[str]:
        for piece in re.findall(r"\S+\s*", _reply(messages)):
            yield piece

    @override
    async def complete(
        self, messages: Sequence[_Message], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Reply:
        escaped = _escaped_prompt(messages)
        offered = {tool.name: tool for tool in (_Tool.of(one, escaped=escaped) for one in tools)}
        if not offered.keys() & _EDITS:
            return _spoken(_reply(messages), offered, messages)
        return _digest_step(messages, offered)

    @override
    async def aclose(self) -> None:
        pass


# Digesting


@dataclass(frozen=True, slots=True)
class _Tool:
    """A tool as offered: its name, its parameters' schemas, and which of them it requires."""

    name: str
    properties: Mapping[str, Mapping[str, Any]]
    required: Sequence[str]
    escaped: bool = False

    @classmethod
    def of(cls, offered: Mapping[str, Any], *, escaped: bool = False) -> "_Tool":
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


_EDITS = frozenset(
    {
        "core_memory_append",
        "core_memory_replace",
        "memory_insert",
        "memory_replace",
        "memory_rethink",
        "rethink_user_memory",
    }
)


def _digest_step(messages: Sequence[_Message], tools: Mapping[str, _Tool]) -> Reply:
    start, words = _what_to_digest(messages)
    calls = _calls_since(messages, start)
    place = f"{len(calls)}/{words}"
    tried = {line for _, arguments in calls for line in _lines_in(arguments)}
    if _escaped_prompt(messages):
        tried = set(map(html.unescape, tried))
    blocks = _blocks_of(messages)
    for label, fact in _new_facts(words, blocks):
        if fact.line in tried:
            continue  # tried in this run, whatever the tool answered
        if edit := _edit(label, fact, blocks.get(label), tools, place=place):
            return Reply("", (edit,))
    if "memory_finish_edits" in tools and all(name != "memory_finish_edits" for name, _ in calls):
        return Reply("", (tools["memory_finish_edits"].call(place),))
    answered = "done" if calls or _TRANSCRIPT.search(words) else _reply(messages)
    return _spoken(answered, tools, messages)


def _spoken(text: str, tools: Mapping[str, _Tool], messages: Sequence[_Message]) -> Reply:
    """Say `text` the way the agent is set up to speak: once by its tool, else as plain text."""
    start, words = _what_to_digest(messages)
    calls = _calls_since(messages, start)
    place = f"{len(calls)}/{words}"
    if "send_message" in tools and all(name != "send_message" for name, _ in calls):
        return Reply("", (tools["send_message"].call(place, message=text),))
    return Reply(text)


def _what_to_digest(messages: Sequence[_Message]) -> tuple[int, str]:
    """Return index and text of the newest user message that is from a person or a post."""
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].get("role") == "user":
            text = _unpacked(_text_of(messages[place]))
            if text is None:
                continue
            if _DIGEST_AGAIN.search(text):
                return place, _newest_transcript(messages[:place])
            return place, text
    return len(messages), ""


def _newest_transcript(messages: Sequence[_Message]) -> str:
    """Return the newest user message that holds a transcript; an earlier run left it undigested."""
    texts = (_text_of(message) for message in messages if message.get("role") == "user")
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


def _calls_since(messages: Sequence[_Message], start: int) -> list[tuple[str, str]]:
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
_CALLER_TURN = re.compile(r'<turn\b[^>]*\bspeaker="caller"[^>]*>(.*?)</turn>', re.DOTALL)
_MACHINE = "[a voicemail's greeting"  # so begins a turn that no person spoke
_REMEMBER = re.compile(r"\[\[remember ([\w-]{1,64}): (.*?)\]\]", re.DOTALL)


def _new_facts(words: str, blocks: Mapping[str, str]) -> list[tuple[str, Fact]]:
    """Return label and fact for everything in a message that memory does not hold yet."""
    transcripts = _TRANSCRIPT.findall(words)
    said = [html.unescape(t) for part in transcripts for t in _CALLER_TURN.findall(part)]
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
    return next((label for label in blocks if label not in _NOT_ABOUT_THE_CALLER), _DEFAULT_LABEL)


def _lines_of(value: str) -> list[str]:
    return [line.strip() for line in value.splitlines()]


def _edit(
    label: str, fact: Fact, value: str | None, tools: Mapping[str, _Tool], *, place: str
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
    label: str, change: tuple[str, str], value: str, tools: Mapping[str, _Tool], *, place: str
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


def _rewrite(label: str, value: str, tools: Mapping[str, _Tool], *, place: str) -> ToolCall | None:
    if tool := tools.get("memory_rethink"):
        return tool.call(place, label=label, new_memory=value)
    if tool := tools.get("rethink_user_memory"):
        return tool.call(place, new_memory=value)
    return None


# Reading what the prompt holds


def _text_of(message: _Message) -> str:
    """Return a message's text; parts that are no text are left out."""
    content: object = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = cast("list[object]", content)
    texts = [cast("Mapping[str, object]", p).get("text") for p in parts if isinstance(p, Mapping)]
    texts += [p for p in parts if isinstance(p, str)]
    return " ".join(text for text in texts if isinstance(text, str))


# Letta's rendering of a block to its own model, and the sidecar's (sidecar/memory/prompt.py).
_LETTA_BLOCK = re.compile(
    r"<([\w-]{1,64})>\s*<description>.*?<value>\n?(.*?)\n?</value>\s*</\1>", re.DOTALL
)
# The App Server's rendering has the description on one line and no tag around the value.
_APP_SERVER_BLOCK = re.compile(
    r"<([\w-]{1,64})>\n<description>[^\n]*</description>\n(?!<metadata>|<value>)(.*?)\n?</\1>",
    re.DOTALL,
)
# The embedded Letta's (sidecar/letta/memory_tools.py): as Letta's, with all that it holds escaped.
_ESCAPED_PROMPT = re.compile(r"^<memory_blocks>\n.*\nTheir text is escaped: ", re.MULTILINE)
_ESCAPED_BLOCK = re.compile(
    r"^<([\w.&#;-]+)>\n<description>\n.*?\n</description>\n<metadata>\n.*?\n</metadata>\n"
    r"<value>\n(.*?)\n</value>\n</\1>$",
    re.DOTALL | re.MULTILINE,
)
_FENCE = re.compile(r"<memory-(\w+)>\n(.*?)\n</memory-\1>", re.DOTALL)
_FENCED_BLOCK = re.compile(r'<block label="([^"]*)"[^>]*>\n(.*?)\n</block>', re.DOTALL)
_LINE_NUMBER = re.compile(r"^\s*\d+\u2192 ?", re.MULTILINE)
_LINE_NUMBERS_NOTE = re.compile(r"\A\s*# NOTE: Line numbers.*\n?")


def _blocks_of(messages: Sequence[_Message]) -> dict[str, str]:
    """Return the blocks a Letta rendered into its system prompt, by label."""
    blocks: dict[str, str] = {}
    for message in messages:
        if message.get("role") in {"system", "developer"}:
            text = _text_of(message)
            if _ESCAPED_PROMPT.search(text):
                for block in _ESCAPED_BLOCK.findall(text):
                    label, value = map(html.unescape, block)
                    blocks[label] = value
                continue
            blocks |= dict(_APP_SERVER_BLOCK.findall(text))
            for label, value in _LETTA_BLOCK.findall(text):
                bare = _LINE_NUMBERS_NOTE.sub("", value)
                blocks[label] = _LINE_NUMBER.sub("", bare)
    return blocks


def _escaped_prompt(messages: Sequence[_Message]) -> bool:
    """Return whether the blocks are in a prompt that escapes what they hold."""
    systems = (m for m in messages if m.get("role") in {"system", "developer"})
    return any(_ESCAPED_PROMPT.search(_text_of(message)) for message in systems)


def _known(messages: Sequence[_Message]) -> list[Fact]:
    """Return what is known of the caller; what was said later wins."""
    facts = [
        fact
        for label, value in _blocks_of(messages).items()
        if label not in _NOT_ABOUT_THE_CALLER
        for fact in facts_of_memory(plain_lines(value))
    ]
    for message in messages:
        for _, body in _FENCE.findall(_text_of(message)):
            facts += _known_of_fence(body)
    for text in _asked(messages):
        facts += facts_of_speech(text)
    latest: dict[str, Fact] = {}
    for fact in facts:
        latest.pop(fact.key, None)
        latest[fact.key] = fact
    return list(latest.values())


def _known_of_fence(body: str) -> Iterator[Fact]:
    for label, value in _FENCED_BLOCK.findall(body):
        if html.unescape(label) not in _NOT_ABOUT_THE_CALLER:
            yield from facts_of_memory(plain_lines(value))
    for said in _CALLER_TURN.findall(body):
        yield from facts_of_speech(html.unescape(said))


def _asked(messages: Sequence[_Message]) -> list[str]:
    """Return what the caller said in this conversation: user messages that hold no memory."""
    texts = [_text_of(message) for message in messages if message.get("role") == "user"]
    return [text for text in texts if not _FENCE.search(text)]


# Replying


_GREETING = re.compile(
    r"\s*(?:hi|hello|hey|good (?:morning|afternoon|evening))\b[^?]{0,20}$", re.IGNORECASE
)
_THANKS = re.compile(r"\b(?:thanks|thank you|cheers)\b", re.IGNORECASE)
_FAREWELL = re.compile(r"\b(?:bye|goodbye|see you|good night)\b", re.IGNORECASE)


def _reply(messages: Sequence[_Message]) -> str:
    known = _known(messages)
    name = next((fact.value for fact in known if fact.key == "name"), "")
    asked = _asked(messages)
    last = asked[-1].strip() if asked else ""
    if not last or _GREETING.match(last):
        welcome = f"Hello {name}, good to hear you again." if name else "Hello!"
        return f"{welcome} {_SUGGESTION}"
    said = [_acknowledgement(facts)] if (facts := facts_of_speech(last)) else []
    said += [_answer(question, known) for question in questions_of(last)]
    if said:
        return " ".join(dict.fromkeys(said))
    address = f", {name}" if name else ""
    if _FAREWELL.search(last):
        return f"Goodbye{address}. I'll remember what you told me."
    if _THANKS.search(last):
        return f"You're welcome{address}."
    return f"I see{address}. {_SUGGESTION}"


def _answer(question: str, known: Sequence[Fact]) -> str:
    hits = asked_for(question, known)
    if hits is None:
        return f"I can't answer that. {_SUGGESTION}"
    if not hits:
        return "I don't know that yet. Tell me, and I'll remember it."
    listed = _listed([fact.sentence for fact in hits])
    return f"{listed[0].upper()}{listed[1:]}."


def _acknowledgement(facts: Sequence[Fact]) -> str:
    name = next((fact.value for fact in facts if fact.key == "name"), "")
    rest = [fact.sentence for fact in facts if fact.key != "name"]
    if not name:
        return f"Got it: {_listed(rest)}. I'll remember that."
    return f"Nice to meet you, {name}." + (f" I'll remember that {_listed(rest)}." if rest else "")


def _listed(sentences: Sequence[str]) -> str:
    if len(sentences) == 1:
        return sentences[0]
    return f"{', '.join(sentences[:-1])} and {sentences[-1]}"
