"""How an agent whose memory tools are ours sees and edits its blocks. Pure.

The embedded Letta's agent has them, and the App Server's, which has none of its own. The prompt
has Letta's own layout, and the tools the names of Letta's own, so that a model finds here what it
would find there.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from sidecar.llm.port import ToolCall
from sidecar.model import Block

Blocks: TypeAlias = Mapping[str, Block]


def system_prompt(instructions: str, blocks: Blocks) -> str:
    """Return an agent's instructions followed by its blocks, as Letta lays them out."""
    lines = [
        instructions,
        "",
        "<memory_blocks>",
        "The following memory blocks are currently engaged in your core memory unit:",
        "",
    ]
    for block in blocks.values():
        lines += [f"<{block.label}>", "<description>", block.description, "</description>"]
        lines += ["<metadata>", *(["- read_only=true"] if block.read_only else [])]
        lines.append(f"- chars_current={len(block.value)}")
        if block.limit_chars is not None:
            lines.append(f"- chars_limit={block.limit_chars}")
        lines += ["</metadata>", "<value>", block.value, "</value>", f"</{block.label}>", ""]
    lines.append("</memory_blocks>")
    return "\n".join(lines)


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
    """Read a call of `ARCHIVE`: what to keep, empty where that is nothing, and the answer."""
    try:
        text = storable(_arguments(call, ("content",))["content"]).strip()
    except _Refused as refusal:
        return "", f"Error: {refusal}"
    return text, "Kept." if text else "Error: content is empty"


def edited(blocks: Blocks, call: ToolCall) -> tuple[Blocks, str]:
    """Carry out one tool call.

    Returns:
        The blocks after it, and the tool's answer to the model. A call that may not or cannot be
        carried out leaves the blocks as they were and is answered with ``Error: …``.
    """
    try:
        block = _edited_block(blocks, call)
    except _Refused as refusal:
        return blocks, f"Error: {refusal}"
    return {**blocks, block.label: block}, f"Block {block.label} now reads:\n{block.value}"


def _edited_block(blocks: Blocks, call: ToolCall) -> Block:
    tool = _TOOLS.get(call.name)
    if tool is None:
        raise _Refused(f"no tool of that name; there are: {', '.join(_TOOLS)}")
    arguments = _arguments(call, ("label", *tool.parameters))
    block = blocks.get(arguments["label"])
    if block is None:
        raise _Refused(f"no block of that label; there are: {', '.join(blocks)}")
    if block.read_only:
        raise _Refused("the block is read-only")
    value = storable(tool.edit(block.value, arguments))
    if block.limit_chars is not None and len(value) > block.limit_chars:
        raise _Refused(
            f"the block would have {len(value)} characters, its limit is {block.limit_chars};"
            " shorten it with memory_rethink"
        )
    return replace(block, value=value)


def _arguments(call: ToolCall, names: Sequence[str]) -> dict[str, str]:
    try:
        parsed: object = json.loads(call.arguments or "{}")
    except ValueError:
        raise _Refused("the arguments are no JSON") from None
    given = cast("dict[str, object]", parsed) if isinstance(parsed, dict) else {}
    texts = {name: given.get(name) for name in names}
    found = {name: text for name, text in texts.items() if isinstance(text, str)}
    if missing := sorted(texts.keys() - found.keys()):
        raise _Refused(f"these arguments must be texts: {', '.join(missing)}")
    return found


def storable(text: str) -> str:
    """Return text without lone surrogates, which neither UTF-8 nor SQLite can hold."""
    return text.encode("utf-8", "replace").decode()
