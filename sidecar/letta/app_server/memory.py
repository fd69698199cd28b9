"""The memory of the App Server's agents: blocks read from their files, edits committed to them.

Theory of operation. Listing an agent's memory costs the server 50 to 100 ms; reading a file whose
path is known 1 ms. So a read asks for the agent and for each known file at once, and lists again
only when a file is gone, when its head has changed, or when the last list is older than
`_LIST_EVERY_S`. So unchanged memory costs little to read, a change of a known block is seen by the
very next read, and a new block within that time.

An edit is one commit whose message names its batch and a digest of the edit. Before an edit is
made, the history of the file is searched for that message, so an edit that is repeated is applied
once. A commit that the server refuses leaves its text in the working tree, from where it would be
served as memory, so the old text is written back.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast
from weakref import WeakValueDictionary

import anyio

from sidecar.errors import LettaUnavailable
from sidecar.letta.app_server import files
from sidecar.letta.app_server.socket import AppServerSocket, Frame, Sockets, asking, require
from sidecar.letta.changes import Change, batch_of, edits_of
from sidecar.letta.memory_tools import edited
from sidecar.llm.port import ToolCall
from sidecar.model import Block

_LIST_EVERY_S: Final = 30.0
_AGENTS_REMEMBERED: Final = 2_000
# Commits of one file that are looked through for an edit made before.
_COMMITS: Final = 200


@dataclass(frozen=True, slots=True)
class _Memory:
    """What was last seen of an agent's memory, and when it was listed (by the clock)."""

    files: tuple[files.MemoryFile, ...]
    listed_at_s: float

    def blocks(self) -> tuple[Block, ...]:
        return tuple(sorted((file.block for file in self.files), key=lambda b: b.label))


class AgentMemory:
    """Reads and edits memory.

    Args:
        sockets: To the server.
        timeout_s: Deadline of a read and of each step of an edit.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self, sockets: Sockets, *, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sockets = sockets
        self._timeout_s = timeout_s
        self._clock = clock
        self._seen: OrderedDict[str, _Memory] = OrderedDict()
        self._turn_of_agent: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    async def read(self, agent_id: str) -> tuple[Block, ...]:
        """Return all blocks of an agent, sorted by label.

        Raises:
            AgentNotFound: no such agent. Each read asks for the agent, since the server lists an
                unknown agent's memory as empty and a deleted one's as it was.
            LettaUnavailable: no answer in time.
        """
        async with asking("memory", self._timeout_s), self._sockets.lend() as socket:
            return (await self._read(socket, agent_id)).blocks()

    async def edit(self, agent_id: str, batch_id: str, call: ToolCall) -> tuple[str, bool]:
        """Carry out one tool call of an agent that digests a batch.

        Returns:
            The tool's answer to the model, and whether it is an error. An edit that this batch
            has made before is not made again, and is answered as done.

        Raises:
            LettaUnavailable: the edit may or may not be made; it may be asked for again.
            AgentNotFound: no such agent.
        """
        lock = self._turn_of_agent.setdefault(agent_id, anyio.Lock())
        subject = files.commit_subject(batch_id, call)
        async with (
            lock,
            asking("an edit", 4 * self._timeout_s),
            self._sockets.lend() as socket,
        ):
            return await self._edit(socket, agent_id, subject, call)

    async def changes(self, agent_id: str, *, limit: int) -> tuple[Change, ...]:
        """Return the newest changes of an agent's memory, as `RecordsChanges.changes`."""
        async with asking("memory's history", 4 * self._timeout_s), self._sockets.lend() as socket:
            agent, history = await socket.ask_all(
                [
                    {"type": "agent_retrieve", "agent_id": agent_id},
                    {"type": "memory_history", "agent_id": agent_id, "limit": limit},
                ]
            )
            self._require_agent(agent, agent_id)
            history = require(history, "memory's history")
            commits = cast("list[Mapping[str, Any]]", history.get("commits") or [])
            diffs = await socket.ask_all(
                [
                    {"type": "memory_commit_diff", "agent_id": agent_id, "sha": commit["sha"]}
                    for commit in commits
                ]
            )
        return tuple(
            Change(
                change_id=str(commit["sha"]),
                at_s=datetime.fromisoformat(str(commit["timestamp"])).timestamp(),
                batch_id=batch_of(str(commit.get("message", ""))),
                edits=edits_of(str(require(diff, "a change of memory").get("diff") or "")),
            )
            for commit, diff in zip(commits, diffs, strict=True)
        )

    def forget(self, agent_id: str) -> None:
        """Forget what was seen of an agent's memory."""
        self._seen.pop(agent_id, None)

    async def erase_files(self, agent_id: str) -> None:
        """Delete every file of an agent's memory; earlier commits keep what they hold.

        Raises:
            AgentNotFound, LettaUnavailable: as `read`.
        """
        self.forget(agent_id)
        async with asking("erasing memory", 8 * self._timeout_s), self._sockets.lend() as socket:
            memory = await self._list(socket, agent_id)
            for file in memory.files:
                answer = await socket.ask(
                    "delete_memory_file",
                    agent_id=agent_id,
                    path=file.path,
                    commit_message="voice: forget",
                )
                require(answer, "erasing memory")

    async def _read(self, socket: AppServerSocket, agent_id: str) -> _Memory:
        known = self._seen.get(agent_id)
        if known is None or self._clock() - known.listed_at_s >= _LIST_EVERY_S:
            return await self._list(socket, agent_id)
        agent, *answers = await socket.ask_all(
            [
                {"type": "agent_retrieve", "agent_id": agent_id},
                *(_read_file(agent_id, file.path) for file in known.files),
            ]
        )
        self._require_agent(agent, agent_id)
        now = [
            files.reread(file, raw) if (raw := _content(answer)) is not None else None
            for file, answer in zip(known.files, answers, strict=True)
        ]
        if any(file is None for file in now):
            return await self._list(socket, agent_id)
        return self._remember(
            agent_id, _Memory(tuple(file for file in now if file), known.listed_at_s)
        )

    async def _list(self, socket: AppServerSocket, agent_id: str) -> _Memory:
        listed_at_s = self._clock()
        agent, listed = await socket.ask_all(
            [
                {"type": "agent_retrieve", "agent_id": agent_id},
                {"type": "list_memory", "agent_id": agent_id},
            ]
        )
        agent = self._require_agent(agent, agent_id)
        entries = cast("list[Mapping[str, Any]]", require(listed, "memory")["entries"])
        answers = await socket.ask_all(
            [_read_file(agent_id, str(entry.get("relative_path"))) for entry in entries]
        )
        tags = [str(tag) for tag in agent.get("tags") or ()]
        found: list[files.MemoryFile] = []
        for entry, answer in zip(entries, answers, strict=True):
            raw = _content(answer)
            if (file := files.seen(entry, raw or "", tags)) is None:
                continue
            if raw is None:  # an edit would write the file without its head
                raise LettaUnavailable("memory: the App Server did not read a file that it lists")
            found.append(file)
        return self._remember(agent_id, _Memory(tuple(found), listed_at_s))

    def _require_agent(self, answer: Frame, agent_id: str) -> Frame:
        if not answer.get("success"):
            self.forget(agent_id)
        return cast("Frame", require(answer, "memory")["agent"])

    def _remember(self, agent_id: str, memory: _Memory) -> _Memory:
        self._seen[agent_id] = memory
        self._seen.move_to_end(agent_id)
        while len(self._seen) > _AGENTS_REMEMBERED:
            self._seen.popitem(last=False)
        return memory

    async def _edit(
        self, socket: AppServerSocket, agent_id: str, subject: str, call: ToolCall
    ) -> tuple[str, bool]:
        memory = await self._read(socket, agent_id)
        blocks = {block.label: block for block in memory.blocks()}
        after, answer = edited(blocks, call)
        changed = next((b for b in after.values() if b is not blocks[b.label]), None)
        if changed is None:
            return answer, True
        file = next(file for file in memory.files if file.block.label == changed.label)
        if await self._is_made(socket, agent_id, file.path, subject):
            return f"This edit is made already. {answer_of(blocks[changed.label])}", False
        if changed.value.rstrip() == file.block.value:
            return answer, False
        await self._write(socket, agent_id, file, changed.value, subject)
        return answer, False

    async def _is_made(
        self, socket: AppServerSocket, agent_id: str, path: str, subject: str
    ) -> bool:
        history = require(
            await socket.ask("memory_history", agent_id=agent_id, file_path=path, limit=_COMMITS),
            "the history of a block",
        )
        commits = cast("list[Mapping[str, Any]]", history.get("commits") or [])
        return any(str(commit.get("message", "")).startswith(subject) for commit in commits)

    async def _write(
        self,
        socket: AppServerSocket,
        agent_id: str,
        file: files.MemoryFile,
        value: str,
        subject: str,
    ) -> None:
        answer = await socket.ask(
            "write_memory_file",
            agent_id=agent_id,
            path=file.path,
            content=files.joined(file.head, value),
            commit_message=subject,
        )
        if answer.get("success"):
            return
        await socket.ask(
            "write_memory_file",
            agent_id=agent_id,
            path=file.path,
            content=files.joined(file.head, file.block.value),
            commit_message="voice: undo an edit that was refused",
        )
        raise LettaUnavailable("an edit: the App Server refused to commit it")


def answer_of(block: Block) -> str:
    """Return how a block reads, for the model."""
    return f"Block {block.label} reads:\n{block.value}"


def _read_file(agent_id: str, path: str) -> dict[str, object]:
    return {"type": "read_memory_file", "agent_id": agent_id, "path": path}


def _content(answer: Frame) -> str | None:
    content = answer.get("content")
    return content if answer.get("success") and isinstance(content, str) else None
