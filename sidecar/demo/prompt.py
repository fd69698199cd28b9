"""Reads what a prompt tells the demo model: blocks, what the caller said, which facts follow. Pure.

Each Letta renders blocks in its own way, and the sidecar fences them (`sidecar/memory/prompt.py`).
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from sidecar.demo.facts import Fact, facts_of_memory, facts_of_speech, plain_lines

Message: TypeAlias = Mapping[str, Any]

NOT_ABOUT_THE_CALLER = frozenset({"persona"})
CALLER_TURN = re.compile(r'<turn\b[^>]*\bspeaker="caller"[^>]*>(.*?)</turn>', re.DOTALL)


def text_of(message: Message) -> str:
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


def blocks_of(messages: Sequence[Message]) -> dict[str, str]:
    """Return the blocks a Letta rendered into its system prompt, by label."""
    blocks: dict[str, str] = {}
    for message in messages:
        if message.get("role") in {"system", "developer"}:
            text = text_of(message)
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


def is_escaped(messages: Sequence[Message]) -> bool:
    """Return whether the blocks are in a prompt that escapes what they hold."""
    systems = (m for m in messages if m.get("role") in {"system", "developer"})
    return any(_ESCAPED_PROMPT.search(text_of(message)) for message in systems)


def known_facts(messages: Sequence[Message]) -> list[Fact]:
    """Return what is known of the caller; what was said later wins."""
    facts = [
        fact
        for label, value in blocks_of(messages).items()
        if label not in NOT_ABOUT_THE_CALLER
        for fact in facts_of_memory(plain_lines(value))
    ]
    for message in messages:
        for _, body in _FENCE.findall(text_of(message)):
            facts += _known_of_fence(body)
    for text in said_by_caller(messages):
        facts += facts_of_speech(text)
    latest: dict[str, Fact] = {}
    for fact in facts:
        latest.pop(fact.key, None)
        latest[fact.key] = fact
    return list(latest.values())


def _known_of_fence(body: str) -> Iterator[Fact]:
    for label, value in _FENCED_BLOCK.findall(body):
        if html.unescape(label) not in NOT_ABOUT_THE_CALLER:
            yield from facts_of_memory(plain_lines(value))
    for said in CALLER_TURN.findall(body):
        yield from facts_of_speech(html.unescape(said))


def said_by_caller(messages: Sequence[Message]) -> list[str]:
    """Return what the caller said in this conversation: user messages that hold no memory."""
    texts = [text_of(message) for message in messages if message.get("role") == "user"]
    return [text for text in texts if not _FENCE.search(text)]
