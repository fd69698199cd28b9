"""The state behind the stand-in Letta server: agents, conversations, messages and runs.

Everything but runs is appended to one file of JSON lines as it happens, one line for a message
together with the blocks it changed, and read again at the next start. Lines are handed to the
operating system before the request is answered, so they outlive ``kill -9`` of the process, though
not a power cut. A line that was cut short is dropped.
"""

import json
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import anyio

from sidecar.model import Block

RUNS_LIMIT = 10_000

Json: TypeAlias = dict[str, Any]
RunStatus: TypeAlias = Literal["running", "completed", "failed"]


class Digest(Protocol):
    """How an agent digests a message: from its blocks and a text to its new blocks."""

    async def __call__(
        self, system: str, blocks: Mapping[str, Block], text: str, /
    ) -> Mapping[str, Block]:
        """Return the blocks after the run.

        Raises:
            LlmError: the run fails and leaves nothing.
        """
        ...


@dataclass(slots=True)
class StoredAgent:
    """An agent."""

    agent_id: str
    name: str
    system: str
    tags: list[str]
    blocks: dict[str, Block]
    created_at_s: float
    passages: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One accepted message."""

    message_id: str
    conversation: str
    otid: str
    text: str
    at_s: float


@dataclass(slots=True)
class StoredConversation:
    """A conversation; `busy` names the run that holds its lock."""

    conversation_id: str
    agent_id: str
    summary: str
    created_at_s: float
    messages: list[StoredMessage] = field(default_factory=list[StoredMessage])
    busy: "Run | None" = None


@dataclass(slots=True)
class Run:
    """A run with the frames of its stream; `news` is set and replaced for each new frame."""

    run_id: str
    agent_id: str
    conversation_id: str
    otid: str
    background: bool
    created_at_s: float
    status: RunStatus = "running"
    frames: list[bytes] = field(default_factory=list[bytes])
    news: anyio.Event = field(default_factory=anyio.Event)

    def tell(self, frame: bytes) -> None:
        """Append a frame to the stream."""
        self.frames.append(frame)
        self.news.set()
        self.news = anyio.Event()


class LettaState:
    """The whole state.

    Args:
        file: Where it is kept; None keeps it in memory alone.
        clock: Unix time in seconds.
    """

    def __init__(self, file: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.agents: dict[str, StoredAgent] = {}
        self.conversations: dict[str, StoredConversation] = {}
        self.messages: list[StoredMessage] = []
        self.runs: OrderedDict[str, Run] = OrderedDict()
        self.run_of_otid: dict[str, Run] = {}
        self._file = None
        if file is not None:
            lines = _whole_lines(file)
            for line in lines:
                self._apply(json.loads(line))
            self._file = file.open("ab", buffering=0)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def create_agent(
        self, name: str, system: str, tags: Sequence[str], blocks: Sequence[Block]
    ) -> StoredAgent:
        """Add an agent and return it."""
        agent_id = f"agent-{uuid.uuid4()}"
        self._record(
            kind="agent",
            agent=agent_id,
            name=name,
            system=system,
            tags=list(tags),
            blocks=[_block_json(block) for block in blocks],
            at_s=self.clock(),
        )
        return self.agents[agent_id]

    def delete_agent(self, agent_id: str) -> None:
        """Delete an agent and its conversations; what it was sent stays in `messages`."""
        self._record(kind="agent.deleted", agent=agent_id)

    def set_block(self, agent_id: str, block: Block) -> None:
        """Replace a block, as its owner would."""
        self._record(kind="block", agent=agent_id, blocks=[_block_json(block)])

    def add_passage(self, agent_id: str, text: str) -> str:
        """Add a piece of archival memory and return its id."""
        passage_id = f"passage-{uuid.uuid4()}"
        self._record(kind="passage", agent=agent_id, passage=passage_id, text=text)
        return passage_id

    def open_conversation(self, agent_id: str, summary: str) -> StoredConversation:
        """Add a conversation and return it."""
        conversation_id = f"conv-{uuid.uuid4()}"
        self._record(
            kind="conversation",
            conversation=conversation_id,
            agent=agent_id,
            summary=summary,
            at_s=self.clock(),
        )
        return self.conversations[conversation_id]

    def start_run(self, conversation: StoredConversation, otid: str, *, background: bool) -> Run:
        """Start a run, which holds its conversation until `end_run`."""
        run = Run(
            f"run-{uuid.uuid4()}",
            conversation.agent_id,
            conversation.conversation_id,
            otid,
            background,
            self.clock(),
        )
        conversation.busy = run
        self.runs[run.run_id] = run
        if background:
            self.run_of_otid[otid] = run
        while len(self.runs) > RUNS_LIMIT:
            _, old = self.runs.popitem(last=False)
            if self.run_of_otid.get(old.otid) is old:
                del self.run_of_otid[old.otid]
        return run

    async def carry_out(self, run: Run, text: str, digest: Digest) -> None:
        """Digest a run's message and store it, with the blocks it changed, in one line.

        Raises:
            LlmError: nothing was stored.
            KeyError: the agent or the conversation is gone; nothing was stored.
        """
        agent = self.agents[run.agent_id]
        before = dict(agent.blocks)
        after = await digest(agent.system, before, text)
        changed = [block for label, block in after.items() if block != before.get(label)]
        conversation = self.conversations[run.conversation_id]
        self._record(
            kind="message",
            message=f"message-{uuid.uuid4()}",
            conversation=conversation.conversation_id,
            agent=agent.agent_id,
            otid=run.otid,
            text=text,
            at_s=self.clock(),
            blocks=[_block_json(block) for block in changed],
        )

    def end_run(self, run: Run, status: RunStatus) -> None:
        """End a run and free its conversation."""
        run.status = status
        conversation = self.conversations.get(run.conversation_id)
        if conversation is not None and conversation.busy is run:
            conversation.busy = None

    def _record(self, **line: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line).encode() + b"\n")
        self._apply(line)

    def _apply(self, line: Json) -> None:
        match line["kind"]:
            case "agent":
                blocks = [_block_of(block) for block in line["blocks"]]
                self.agents[line["agent"]] = StoredAgent(
                    line["agent"],
                    line["name"],
                    line["system"],
                    line["tags"],
                    {block.label: block for block in blocks},
                    line["at_s"],
                )
            case "agent.deleted":
                self.agents.pop(line["agent"], None)
                for key, conversation in list(self.conversations.items()):
                    if conversation.agent_id == line["agent"]:
                        del self.conversations[key]
            case "conversation":
                self.conversations[line["conversation"]] = StoredConversation(
                    line["conversation"], line["agent"], line["summary"], line["at_s"]
                )
            case "message":
                self._apply_message(line)
            case "passage":
                if line["agent"] in self.agents:
                    self.agents[line["agent"]].passages[line["passage"]] = line["text"]
            case "block":
                self._apply_blocks(line)
            case kind:
                raise ValueError(f"an unknown line: {kind}")

    def _apply_message(self, line: Json) -> None:
        message = StoredMessage(
            line["message"], line["conversation"], line["otid"], line["text"], line["at_s"]
        )
        self.messages.append(message)
        if line["conversation"] in self.conversations:
            self.conversations[line["conversation"]].messages.append(message)
        self._apply_blocks(line)

    def _apply_blocks(self, line: Json) -> None:
        agent = self.agents.get(line["agent"])
        for block in map(_block_of, line["blocks"] if agent else ()):
            assert agent is not None
            agent.blocks[block.label] = block


def iso(at_s: float) -> str:
    """Return Unix time as Letta writes it."""
    return datetime.fromtimestamp(at_s, UTC).isoformat()


def _block_json(block: Block) -> Json:
    return {
        "label": block.label,
        "value": block.value,
        "description": block.description,
        "limit": block.limit_chars,
        "read_only": block.read_only,
    }


def _block_of(line: Json) -> Block:
    return Block(
        line["label"], line["value"], line["description"], line["limit"], line["read_only"]
    )


def _whole_lines(file: Path) -> list[bytes]:
    """Return the lines of a file and cut off an incomplete one at its end."""
    if not file.exists():
        return []
    raw = file.read_bytes()
    end = raw.rfind(b"\n") + 1
    if end < len(raw):
        with file.open("rb+") as opened:
            opened.truncate(end)
    return raw[:end].splitlines()
