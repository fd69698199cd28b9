r"""Blocks as the App Server keeps them: markdown files with a head, one git repository per agent.

Pure. A file is ``---\nname: …\ndescription: …\n---\nvalue\n``; the server refuses any other
key in the head, so what else a block has (its limit, that it is read-only) is kept in tags of the
agent. The server trims a value's end; so does this module. Files in folders, except the folder
`system` of earlier releases, are not in the agent's own prompt, and are not blocks here.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sidecar.letta.port import FoundAgent
from sidecar.llm.port import ToolCall
from sidecar.model import Block
from sidecar.untrusted import MALFORMED

_FENCE: Final = "---\n"
_END: Final = "\n---\n"
_SUFFIX: Final = ".md"
_SYSTEM: Final = "system/"
_LIMIT: Final = "voice-limit:"
_READ_ONLY: Final = "voice-read-only:"
_CREATED: Final = "voice-created:"
# The server's own tag; a classic server that sees it renames the agent's blocks.
_IN_GIT: Final = "git-memory-enabled"
_ORIGIN: Final = "origin:"
_INDEX: Final = "MEMORY.md"
_EMPTY_INDEX: Final = "# Memory"


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """A file as last seen.

    Attributes:
        path: Below the agent's memory folder.
        head: The raw text up to the value.
        block: The block it holds.
        is_plain: `split` finds the value in the raw text; otherwise only the server's own list
            has it.
    """

    path: str
    head: str
    block: Block
    is_plain: bool


def split(raw: str) -> tuple[str, str]:
    """Return the head of a raw file, up to the value, and the value as the server shows it."""
    end = raw.find(_END, len(_FENCE) - 1) if raw.startswith(_FENCE) else -1
    if end < 0:
        return "", raw.rstrip()
    head = raw[: end + len(_END)]
    return head, raw[len(head) :].rstrip()


def joined(head: str, value: str) -> str:
    """Return the raw file of a head and a value."""
    return f"{head}{value}\n"


def seen(entry: Mapping[str, Any], raw: str, tags: Sequence[str]) -> MemoryFile | None:
    """Return a file of the server's list; None for one that is not a block.

    Args:
        entry: Its entry in the answer to `list_memory`.
        raw: The same file's raw text.
        tags: Of the agent.
    """
    path, value = str(entry.get("relative_path", "")), str(entry.get("content") or "").rstrip()
    if entry.get("kind", "markdown") != "markdown" or not path.endswith(_SUFFIX):
        return None
    if "/" in path.removeprefix(_SYSTEM):
        return None
    if path == _INDEX and value in {"", _EMPTY_INDEX}:
        return None
    head, plain = split(raw)
    label = path.removesuffix(_SUFFIX)
    limits = [tag.removeprefix(f"{_LIMIT}{label}:") for tag in tags]
    block = Block(
        label=label,
        value=value,
        description=str(entry.get("description") or ""),
        limit_chars=next((int(limit) for limit in limits if limit.isdecimal()), None),
        read_only=f"{_READ_ONLY}{label}" in tags,
    )
    return MemoryFile(path, head, block, is_plain=value == plain)


def reread(file: MemoryFile, raw: str) -> MemoryFile | None:
    """Return a file with the value it has now; None when only the server's list has it."""
    head, value = split(raw)
    if not file.is_plain or head != file.head:
        return None
    return replace(file, block=replace(file.block, value=value))


def tag_of_birth(created_at_s: float) -> str:
    """Return the tag that says when an agent was made, since the server does not."""
    return f"{_CREATED}{created_at_s:.6f}"


def tags_of(blocks: Iterable[Block], tags: Sequence[str], *, created_at_s: float) -> list[str]:
    """Return an agent's tags, with those that hold what its files cannot."""
    own = [tag_of_birth(created_at_s)]
    for block in blocks:
        if block.limit_chars is not None:
            own.append(f"{_LIMIT}{block.label}:{block.limit_chars}")
        if block.read_only:
            own.append(f"{_READ_ONLY}{block.label}")
    return [*tags, *own]


def without_own(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags without the server's own and without those that `tags_of` adds."""
    own = (_LIMIT, _READ_ONLY, _CREATED, _ORIGIN)
    return tuple(tag for tag in tags if not tag.startswith(own) and tag != _IN_GIT)


def found_agent(agent: Mapping[str, Any]) -> FoundAgent:
    """Return an agent of the server's list. One that the sidecar did not make was created at 0."""
    tags = tuple(str(tag) for tag in agent.get("tags") or ())
    created = [tag.removeprefix(_CREATED) for tag in tags if tag.startswith(_CREATED)]
    try:
        created_at_s = float(created[0]) if created else 0.0
    except ValueError:
        created_at_s = 0.0
    return FoundAgent(str(agent.get("id", "")), str(agent.get("name", "")), tags, created_at_s)


def commit_subject(batch_id: str, call: ToolCall) -> str:
    """Return the commit message of an edit. The same edit of the same batch has the same one.

    It holds nothing a caller said: the batch's id, the tool, and a digest of its arguments.
    """
    try:
        arguments = json.dumps(json.loads(call.arguments), sort_keys=True)
    except MALFORMED:
        arguments = call.arguments
    digest = hashlib.sha256(f"{call.name}\0{arguments}".encode("utf-8", "surrogatepass"))
    return f"voice batch {batch_id}: {call.name} {digest.hexdigest()[:16]}"
