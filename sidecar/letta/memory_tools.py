"""How an agent with our memory tools sees and edits its blocks. Pure.

The agents of the embedded Letta have these tools, and those of the App Server, which brings none.
The prompt has Letta's layout and the tools have the names of Letta's tools, so that a model finds
here what it would find there.

What a block holds was, in the end, said by a caller. In the prompt it is escaped, so that it can
neither close a tag nor open one. Since a model copies what it sees, the texts it gives to the tools
of such a prompt are unescaped.
"""

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from sidecar.llm.port import ToolCall
from sidecar.model import Block
from sidecar.printable import printable
from sidecar.untrusted import MALFORMED

Blocks: TypeAlias = Mapping[str, Block]


ESCAPES = "Their text is escaped: &amp; stands for &, &lt; and &gt; for angle brackets."
_NO_TAG_NAME = re.compile(r"[^\w.-]")
_LAYOUT = frozenset({"memory_blocks", "description", "metadata", "value"})
# How `system_prompt` and a posted transcript write a character that they escape.
_ESCAPED = re.compile(r"&(?:amp|lt|gt|quot|#x27|#([0-9]{1,6}));")


def system_prompt(instructions: str, blocks: Blocks) -> str:
    """Return an agent's instructions followed by its blocks, as Letta lays them out.

    Labels, descriptions and values are escaped and printable: whatever they hold, they add no tag
    to the text. The agent's tool calls go to `edited(..., escaped=True)`.
    """
    lines = [
        instructions,
        "",
        "<memory_blocks>",
        "The following memory blocks are currently engaged in your core memory unit:",
        ESCAPES,
        "",
    ]
    for block in blocks.values():
        tag = _tag_of(block.label)
        lines += [f"<{tag}>", "<description>", _escape(block.description), "</description>"]
        lines += ["<metadata>", *(["- read_only=true"] if block.read_only else [])]
        lines.append(f"- chars_current={len(block.value)}")
        if block.limit_chars is not None:
            lines.append(f"- chars_limit={block.limit_chars}")
        lines += ["</metadata>", "<value>", _escape(block.value), "</value>", f"</{tag}>", ""]
    lines.append("</memory_blocks>")
    return "\n".join(lines)


def _escape(text: str) -> str:
    return html.escape(printable(text), quote=False)


def _tag_of(label: str) -> str:
    """Return a label as a tag name that is none of the layout's; unescaped, it is the label."""
    tag = _NO_TAG_NAME.sub(lambda found: f"&#{ord(found[0])};", label)
    return f"&#{ord(tag[0])};{tag[1:]}" if tag in _LAYOUT else tag


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda f: chr(int(f[1])) if f[1] else html.unescape(f[0]), text)


class _Refused(Exception):
    """An edit the agent may not make; its text is the tool's answer."""


@dataclass(frozen=True, slots=True)
class _MemoryTool:
    """One tool: what it is for, its text parameters, and how it makes the new value."""

    purpose: str
    parameters: Mapping[str, str]
    edit: Callable[[str, Mapping[str, str]], str]


def _insert(value: str, arguments: Mapping[str, str]) -> str:
    return f"{value}\n{arguments['new_str']}" if value else arguments["new_str"]


def _replace(value: str, arguments: Mapping[str, str]) -> str:
    old = arguments["old_str"]
    times = value.count(old) if old else 0
    if times != 1:
        raise _Refused(f"old_str must occur exactly once in the block; it occurs {times} times")
    return value.replace(old, arguments["new_str"])


_TOOLS = {
    "memory_insert": _MemoryTool(
        "Add text as new last lines of a memory block.",
        {"new_str": "The text to add."},
        _insert,
    ),
    "memory_replace": _MemoryTool(
        "Replace one piece of text in a memory block, for instance a line that is outdated.",
        {
            "old_str": "The text to replace; it must occur exactly once.",
            "new_str": "The text in its place; empty to delete.",
        },
        _replace,
    ),
    "memory_rethink": _MemoryTool(
        "Rewrite a whole memory block. Leave out nothing that is still true.",
        {"new_memory": "The block's whole new value."},
        lambda _, arguments: arguments["new_memory"],
    ),
}


def _schema(name: str, tool: _MemoryTool) -> dict[str, Any]:
    described = {"label": "The label of the memory block."} | dict(tool.parameters)
    properties = {
        parameter: {"type": "string", "description": text} for parameter, text in described.items()
    }
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": tool.purpose, "parameters": parameters}
    return {"type": "function", "function": function}


TOOL_SCHEMAS: Sequence[Mapping[str, Any]] = [_schema(name, tool) for name, tool in _TOOLS.items()]

ARCHIVE = "archival_memory_insert"
ARCHIVE_SCHEMA: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": ARCHIVE,
        "description": "Keep a detail that is too small for a memory block, to be looked up.",
        "parameters": {
            "type": "object",
            "properties": {"content": {"type": "string", "description": "The text to keep."}},
            "required": ["content"],
        },
    },
}


def archived(call: ToolCall) -> tuple[str, str]:
    """Read a call of `ARCHIVE`; return the text to keep, empty for none, and the tool's answer."""
    try:
        text = printable(_unescape(_arguments(call, ("content",))["content"])).strip()
    except _Refused as refusal:
        return "", f"Error: {refusal}"
    return text, "Kept." if text else "Error: content is empty"


def edited(blocks: Blocks, call: ToolCall, *, escaped: bool = False) -> tuple[Blocks, str]:
    """Carry out one tool call.

    Args:
        blocks: The blocks before it.
        call: The model's call.
        escaped: The model saw the blocks in `system_prompt`: its texts are unescaped, and the
            answer is escaped.

    Returns:
        The blocks after it, and the tool's answer to the model. A call that may not or cannot be
        carried out leaves the blocks as they were and is answered with ``Error: …``.
    """
    try:
        block = _edited_block(blocks, call, escaped=escaped)
    except _Refused as refusal:
        return blocks, _escape(f"Error: {refusal}") if escaped else f"Error: {refusal}"
    answer = f"Block {block.label} now reads:\n{block.value}"
    return {**blocks, block.label: block}, _escape(answer) if escaped else answer


def _edited_block(blocks: Blocks, call: ToolCall, *, escaped: bool) -> Block:
    tool = _TOOLS.get(call.name)
    if tool is None:
        raise _Refused(f"no tool has that name; the tools are: {', '.join(_TOOLS)}")
    arguments = _arguments(call, ("label", *tool.parameters))
    if escaped:
        arguments = _as_meant(arguments, blocks)
    block = blocks.get(arguments["label"])
    if block is None:
        raise _Refused(f"no block has that label; the blocks are: {', '.join(blocks)}")
    if block.read_only:
        raise _Refused("the block is read-only")
    value = printable(tool.edit(block.value, arguments))
    if block.limit_chars is not None and len(value) > block.limit_chars:
        raise _Refused(
            f"the block would have {len(value)} characters, its limit is {block.limit_chars};"
            " shorten it with memory_rethink"
        )
    return replace(block, value=value)


def _as_meant(given: Mapping[str, str], blocks: Blocks) -> dict[str, str]:
    """Unescape a model's texts; keep a label or `old_str` as given if only that can be found."""
    meant = {name: _unescape(text) for name, text in given.items()}
    if meant["label"] not in blocks:
        meant["label"] = given["label"]
    block = blocks.get(meant["label"])
    if block and "old_str" in given and meant["old_str"] not in block.value:
        meant["old_str"] = given["old_str"]
    return meant


def _arguments(call: ToolCall, names: Sequence[str]) -> dict[str, str]:
    try:
        parsed: object = json.loads(call.arguments or "{}")
    except MALFORMED:
        raise _Refused("the arguments are not JSON") from None
    given = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
    texts = {name: given.get(name) for name in names}
    found = {name: text for name, text in texts.items() if isinstance(text, str)}
    if missing := sorted(texts.keys() - found.keys()):
        raise _Refused(f"these arguments must be texts: {', '.join(missing)}")
    return found


def storable(text: str) -> str:
    """Return text without lone surrogates, which neither UTF-8 nor SQLite can hold."""
    return text.encode("utf-8", "replace").decode()
