"""A small Letta built into the sidecar, for a first run without keys and for tests.

Agents, blocks, passages, conversations and messages in one SQLite file, with the semantics of the
classic server that the sidecar relies on: an otid is digested once, a conversation takes one post
at a time, a message is there only after its run, and the agent edits its blocks and fills its
archive with tools. It searches by words, not by meaning; it has no chat and no server, and is not
meant to be more.

Theory of operation: a post is a *run*. Its edits are made on a copy of the blocks and stored with
the message in one transaction at its end, so a crash, a cancelled post or a failed model leaves
nothing, and the same post may run again. Runs of one agent follow one another, even in different
conversations, so no edit is lost. Runs are known in memory only: after a restart there are none.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import ENOSPC
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import apsw
from typing_extensions import override

from sidecar.errors import (
    LettaError,
    LettaUnavailable,
    LlmError,
    NotAccepted,
    OutcomeUnknown,
    PromptTooLong,
    TooLarge,
)
from sidecar.letta.embedded.store import EmbeddedStore
from sidecar.letta.memory_tools import (
    ARCHIVE,
    ARCHIVE_SCHEMA,
    TOOL_SCHEMAS,
    Blocks,
    archived,
    edited,
    system_prompt,
)
from sidecar.letta.port import AgentSpec, Finding, FoundAgent, Letta, Post
from sidecar.llm.port import Llm, Reply
from sidecar.model import Block, Passage

MAX_STEPS = 12
RUN_BUDGET_S = 120.0

T = TypeVar("T")


@dataclass(slots=True, weakref_slot=True)
class _EmbeddedRun:
    """A post that is being processed. `stored` is its outcome once `over` is set."""

    otid: str
    over: anyio.Event = field(default_factory=anyio.Event)
    stored: bool = False


def _remedy(error: Exception, path: Path) -> str:
    if isinstance(error, apsw.FullError | apsw.IOError) or getattr(error, "errno", 0) == ENOSPC:
        return f"free space on the disk that holds {path}"  # the stored memory is intact
    if isinstance(error, apsw.NotADBError | apsw.CorruptError):
        return f"check {path}, or move it away to start with an empty memory"
    return f"check {path}, and who may use it"


class EmbeddedLetta(Letta):
    """The embedded Letta; made by `open`.

    Beyond the port: a post whose task is cancelled leaves nothing, and `messages` shows what a
    conversation holds.
    """

    def __init__(
        self, store: EmbeddedStore, llm: Llm, *, clock: Callable[[], float], run_budget_s: float
    ) -> None:
        self._store = store
        self._llm = llm
        self._clock = clock
        self._run_budget_s = run_budget_s
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._running: dict[str, _EmbeddedRun] = {}
        self._turn_of_agent: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        llm: Llm,
        clock: Callable[[], float] = time.time,
        run_budget_s: float = RUN_BUDGET_S,
    ) -> "EmbeddedLetta":
        """Open the file, or make it (mode 0600).

        Args:
            path: The SQLite file.
            llm: The model that digests; it is not closed here.
            clock: Unix time in seconds.
            run_budget_s: A run that takes longer is given up and leaves nothing.

        Raises:
            LettaError: the file cannot be opened or is not an embedded Letta's.
        """
        try:
            store = await anyio.to_thread.run_sync(EmbeddedStore, path)
        except (apsw.Error, OSError) as error:
            raise LettaError(
                f"the embedded Letta's file cannot be opened: {type(error).__name__}",
                hint=_remedy(error, path),
            ) from error
        return cls(store, llm, clock=clock, run_budget_s=run_budget_s)

    @property
    @override
    def name(self) -> str:
        return f"embedded Letta ({self._llm.name})"

    @override
    async def read_blocks(self, agent_id: str) -> tuple[Block, ...]:
        _, blocks = await self._stored(self._store.read_agent, agent_id)
        return tuple(blocks.values())

    @override
    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        return tuple(await self._stored(self._store.search_passages, agent_id, query, limit))

    @override
    async def open_conversation(self, agent_id: str, *, label: str) -> str:
        return await self._stored(
            partial(self._store.open_conversation, now_s=self._clock()), agent_id, label
        )

    @override
    async def post(self, post: Post) -> None:
        running = self._running.get(post.conversation_id)
        if running is None:
            await self._run(post)
        elif running.otid == post.batch_id:
            await running.over.wait()
            if not running.stored:
                raise OutcomeUnknown("the run that was joined has failed", over=True)
        else:
            raise NotAccepted("the conversation is processing another post", busy=True)

    @override
    async def find(self, post: Post) -> Finding:
        if any(run.otid == post.batch_id for run in self._running.values()):
            return "running"
        return "found" if await self._stored(self._store.has, post) else "absent"

    @override
    async def find_agents(self, tags: Sequence[str]) -> Sequence[FoundAgent]:
        return await self._stored(self._store.find_agents, tags)

    @override
    async def create_agent(self, spec: AgentSpec) -> str:
        return await self._stored(partial(self._store.create_agent, now_s=self._clock()), spec)

    @override
    async def delete_agent(self, agent_id: str) -> None:
        await self._stored(self._store.delete_agent, agent_id)

    @override
    async def erase_agent(self, agent_id: str) -> None:
        await self._stored(self._store.delete_agent, agent_id)
        await self._stored(self._store.checkpoint)

    @override
    async def erase_conversation(self, agent_id: str, conversation_id: str) -> None:
        await self._stored(self._store.delete_conversation, agent_id, conversation_id)
        await self._stored(self._store.checkpoint)

    async def messages(self, conversation_id: str) -> list[tuple[str, str]]:
        """Return otid and text of every message a conversation holds, oldest first.

        Raises:
            LettaUnavailable: the file failed.
        """
        return await self._stored(self._store.messages, conversation_id)

    @override
    async def aclose(self) -> None:
        await self._stored(self._store.close)

    async def _run(self, post: Post) -> None:
        run = _EmbeddedRun(post.batch_id)
        self._running[post.conversation_id] = run
        try:
            if await self._admitted(post):
                with anyio.fail_after(self._run_budget_s):
                    await self._digest(post)
            run.stored = True
        except PromptTooLong as error:
            raise TooLarge(
                "the batch is too large for the context of the language model", hint=error.hint
            ) from error
        except LlmError as error:
            raise OutcomeUnknown(
                f"the language model failed: {error.message}", over=True, hint=error.hint
            ) from error
        except TimeoutError as error:
            raise OutcomeUnknown("the run took too long and was stopped", over=True) from error
        finally:
            del self._running[post.conversation_id]
            run.over.set()

    async def _admitted(self, post: Post) -> bool:
        try:
            return await self._stored(self._store.admit, post)
        except LettaUnavailable as error:
            raise NotAccepted(error.message, hint=error.hint) from error

    async def _digest(self, post: Post) -> None:
        """Let the agent work on one post and store the result."""
        turn = self._turn_of_agent.setdefault(post.agent_id, anyio.Lock())
        async with turn:
            instructions, before = await self._stored(self._store.read_agent, post.agent_id)
            archived: list[str] = []
            blocks = await digested(self._llm, instructions, before, post.text, archive=archived)
            changed = [block for label, block in blocks.items() if block != before[label]]
            try:
                store = partial(self._store.store_digested, now_s=self._clock())
                await self._stored(store, post, changed, archived)
            except LettaUnavailable as error:
                raise OutcomeUnknown(error.message, over=True, hint=error.hint) from error

    async def _stored(self, job: Callable[..., T], *arguments: object) -> T:
        """Run one transaction in a worker thread; it is never cut off half way."""
        try:
            return await anyio.to_thread.run_sync(
                partial(job, *arguments), limiter=self._one_at_a_time
            )
        except apsw.Error as error:
            raise LettaUnavailable(
                f"the embedded Letta's file failed: {type(error).__name__}",
                hint="check the disk's free space and health",
            ) from error


async def digested(
    llm: Llm, instructions: str, blocks: Blocks, text: str, *, archive: list[str] | None = None
) -> Blocks:
    """Let an agent work on one message with its memory tools, in at most `MAX_STEPS` steps.

    Args:
        llm: The model that digests.
        instructions: The agent's.
        blocks: The agent's, before it.
        text: The message.
        archive: Receives what the agent puts into its archival memory; None: it has none.

    Returns:
        Its blocks as it left them; nothing is stored.

    Raises:
        LlmError: the model failed.
    """
    talk: list[dict[str, Any]] = [{"role": "user", "content": text}]
    tools = TOOL_SCHEMAS if archive is None else [*TOOL_SCHEMAS, ARCHIVE_SCHEMA]
    for _ in range(MAX_STEPS):
        system = {"role": "system", "content": system_prompt(instructions, blocks)}
        reply = await llm.complete([system, *talk], tools=tools)
        if not reply.tool_calls:
            break
        talk.append(_as_message(reply))
        for call in reply.tool_calls:
            if call.name == ARCHIVE and archive is not None:
                passage, answer = archived(call)
                archive += [passage] if passage else []
            else:
                blocks, answer = edited(blocks, call, escaped=True)
            talk.append({"role": "tool", "tool_call_id": call.call_id, "content": answer})
    return blocks


def _as_message(reply: Reply) -> dict[str, Any]:
    calls = [
        {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in reply.tool_calls
    ]
    return {"role": "assistant", "content": reply.text or None, "tool_calls": calls}
