"""The Letta Code App Server (PyPI `letta` from 0.32 on), over its WebSocket.

Theory of operation. Memory is files that the server keeps (`memory`); a batch is one turn of the
agent in the call's conversation (`turn`). The agent edits its memory with tools that this process
registers and carries out itself, and has no other tool. Look-ups read the conversation
(`history`): the server keeps no record of a post except its message.

The protocol calls itself an alpha: this adapter speaks version 1, and refuses any other with an
error that names it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, cast

import anyio
from typing_extensions import override

from sidecar.errors import (
    AgentNotFound,
    ConversationGone,
    LettaError,
    LettaUnavailable,
    NotAccepted,
    NotOffered,
    OutcomeUnknown,
    Rejected,
)
from sidecar.letta.app_server import files
from sidecar.letta.app_server.conversation import look, subscribe
from sidecar.letta.app_server.memory import AgentMemory
from sidecar.letta.app_server.socket import (
    AppServerSocket,
    Frame,
    Sockets,
    asking,
    is_missing,
    require,
)
from sidecar.letta.app_server.turn import AgentTurn, Ended
from sidecar.letta.changes import Change
from sidecar.letta.digest_agent import CALLER_TAG
from sidecar.letta.port import AgentSpec, Finding, FoundAgent, Letta, Post
from sidecar.model import Block, Passage

_PAGE: Final = 1_000
_BATCHES_REMEMBERED: Final = 10_000
_REFUSED_MEMORY: Final = "Memory validation"
_NO_REPOSITORY: Final = ("inside a git repository", "not a git repository")
_SMALL_MODELS: Final = ("mini", "haiku", "flash")


@dataclass(slots=True)
class _ServerRun:
    """A post that is being processed. `digested` is its outcome once `over` is set."""

    batch_id: str
    over: anyio.Event = field(default_factory=anyio.Event)
    digested: bool = False


class AppServerLetta(Letta):
    """The adapter.

    Args:
        url: Of the server, `ws://host:port`.
        token: Bearer token; None or empty where the server asks for none.
        read_timeout_s: Deadline of a read and of each step of a look-up or an edit.
        post_timeout_s: Deadline of a post, its digestion included; the turn is aborted then.
        reflect: Have the agent reflect on each call when its last batch is digested. The server
            does that with another agent, whose tools include a shell.
        run_cutoff_s: How long a stored message without an answer may be at work for another
            process; None is the deadline of a post plus 5 s.
        clock: The machine's Unix time.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        read_timeout_s: float = 5.0,
        post_timeout_s: float = 120.0,
        reflect: bool = False,
        run_cutoff_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._read_timeout_s = read_timeout_s
        self._post_timeout_s = post_timeout_s
        self._run_cutoff_s = post_timeout_s + 5.0 if run_cutoff_s is None else run_cutoff_s
        self._clock = clock
        self._reflect = reflect
        self._sockets = Sockets(url, token or None, timeout_s=read_timeout_s)
        self._memory = AgentMemory(self._sockets, timeout_s=read_timeout_s)
        self._running: dict[str, _ServerRun] = {}
        self._ended: OrderedDict[str, Ended] = OrderedDict()
        self._reflection_is_off = False

    @property
    @override
    def name(self) -> str:
        return f"Letta App Server at {self._sockets.where}"

    # Reading

    @override
    async def read_blocks(self, agent_id: str) -> tuple[Block, ...]:
        return await self._memory.read(agent_id)

    @override
    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        raise NotOffered("the App Server has no archival memory: an agent's memory is its files")

    @override
    async def find_agents(self, tags: Sequence[str]) -> Sequence[FoundAgent]:
        query = {"tags": list(tags), "match_all_tags": True, "limit": _PAGE}
        async with asking("agents by tag", self._read_timeout_s), self._sockets.lend() as socket:
            answer = require(await socket.ask("agent_list", query=query), "agents by tag")
        # A server without `match_all_tags` would return other callers' agents.
        found = [
            agent
            for agent in map(files.found_agent, cast("list[Mapping[str, Any]]", answer["agents"]))
            if set(tags) <= set(agent.tags)
        ]
        return sorted(found, key=lambda agent: (agent.created_at_s, agent.agent_id))

    async def changes(self, agent_id: str, *, limit: int) -> Sequence[Change]:
        """Return the newest changes of an agent's memory, as `RecordsChanges` promises."""
        return await self._memory.changes(agent_id, limit=limit)

    # Agents and conversations

    @override
    async def open_conversation(self, agent_id: str, *, label: str) -> str:
        if await self._has_blocks(agent_id) or not await self._is_unused(agent_id):
            body = {"agent_id": agent_id, "summary": label}
            async with (
                asking("a new conversation", self._read_timeout_s),
                self._sockets.lend() as socket,
            ):
                answer = await socket.ask("conversation_create", body=body)
            if not (_lacks_a_repository(answer) and await self._is_unused(agent_id)):
                return str(require(answer, "a new conversation")["conversation"]["id"])
        await self.delete_agent(agent_id)
        raise AgentNotFound(
            "the agent was half made when its App Server was killed; it was deleted",
            hint="a new one will be created for its caller",
        )

    async def _has_blocks(self, agent_id: str) -> bool:
        """Return whether an agent's memory holds anything to edit; True if it can't be read.

        A server that was killed while it made an agent gives it an empty memory when it starts.
        """
        with suppress(LettaUnavailable):
            if not await self._memory.read(agent_id):
                self._memory.forget(agent_id)  # it may have been read while it was made
                return bool(await self._memory.read(agent_id))
        return True

    async def _is_unused(self, agent_id: str) -> bool:
        """Return whether an agent was made for a caller, and has never received a message."""
        async with asking("conversations", self._read_timeout_s), self._sockets.lend() as socket:
            agent, listed = await socket.ask_all(
                [
                    {"type": "agent_retrieve", "agent_id": agent_id},
                    {"type": "conversation_list", "query": {"agent_id": agent_id, "limit": _PAGE}},
                ]
            )
        tags = require(agent, "the agent")["agent"].get("tags") or ()
        conversations = require(listed, "conversations")["conversations"]
        return (
            any(str(tag).startswith(CALLER_TAG) for tag in tags)
            and len(conversations) < _PAGE
            and all(one["last_message_at"] is None for one in conversations)
        )

    @override
    async def create_agent(self, spec: AgentSpec) -> str:
        labels = [block.label for block in spec.blocks]
        if len(set(labels)) != len(labels):
            raise Rejected("two blocks of the agent share a label")
        tags = files.tags_of(spec.blocks, spec.tags, created_at_s=self._clock())
        # The server makes a git repository for the agent's memory.
        async with asking("a new agent", 4 * self._read_timeout_s), self._sockets.lend() as socket:
            body: dict[str, object] = {
                "name": spec.name,
                "model": _model(spec.model, await _models(socket)),
                "tags": tags,
                "metadata": dict(spec.metadata),
                "memory_blocks": [
                    {"label": b.label, "value": b.value, "description": b.description or b.label}
                    for b in spec.blocks
                ],
            }
            if spec.system:
                body["system"] = spec.system
            answer = await socket.ask("agent_create", body=body)
        if _REFUSED_MEMORY in str(answer.get("error") or ""):
            # The server refuses it when it commits the memory; the agent without memory stays.
            for half_made in await self.find_agents(tags):
                await self.delete_agent(half_made.agent_id)
            raise Rejected(
                "the App Server did not take the agent's blocks",
                hint="it takes 20,000 characters a block, its description included",
            )
        return str(require(answer, "a new agent")["agent"]["id"])

    @override
    async def delete_agent(self, agent_id: str) -> None:
        with suppress(AgentNotFound):
            async with (
                asking("deleting an agent", self._read_timeout_s),
                self._sockets.lend() as socket,
            ):
                answer = await socket.ask("agent_delete", agent_id=agent_id)
                require(answer, "deleting an agent")
        self._memory.forget(agent_id)

    @override
    async def erase_agent(self, agent_id: str) -> None:
        # The server leaves a deleted agent's memory behind and still lists it.
        with suppress(AgentNotFound):
            await self._memory.erase_files(agent_id)
        await self.delete_agent(agent_id)

    @override
    async def erase_conversation(self, agent_id: str, conversation_id: str) -> None:
        async with (
            asking("looking for a conversation", self._read_timeout_s),
            self._sockets.lend() as socket,
        ):
            answer = await socket.ask("conversation_retrieve", conversation_id=conversation_id)
        if is_missing(answer, "Conversation"):
            return
        raise LettaUnavailable(
            "the App Server cannot delete a conversation",
            hint="delete its file in the App Server's own folder, or delete the agent",
        )

    # Posting

    @override
    async def post(self, post: Post) -> None:
        running = self._running.get(post.conversation_id)
        if running is None:
            await self._run(post)
        elif running.batch_id == post.batch_id:
            await running.over.wait()
            if not running.digested:
                raise OutcomeUnknown("the turn that was joined has failed", over=True)
        else:
            raise NotAccepted("the conversation is processing another post", busy=True)

    async def _run(self, post: Post) -> None:
        run = _ServerRun(post.batch_id)
        self._running[post.conversation_id] = run
        turn = AgentTurn(
            self._sockets,
            post,
            self._memory.edit,
            timeout_s=self._read_timeout_s,
            before=self._ended.get(post.batch_id),
            is_young=self._is_young,
        )
        try:
            with anyio.fail_after(self._post_timeout_s):
                await self._turn_reflection_off(post)
                await turn.digest()
            run.digested = True
            if self._reflect and post.final:
                await self._begin_reflection(post)
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"the agent had not digested the post in {self._post_timeout_s:.0f} s", over=True
            ) from error
        except ConversationGone:
            # A missing agent's conversations are gone, too: then this read raises AgentNotFound.
            with suppress(LettaUnavailable):
                await self._memory.read(post.agent_id)
            raise
        finally:
            del self._running[post.conversation_id]
            self._note_end(post.batch_id, None if run.digested else turn.ended)
            run.over.set()

    def _note_end(self, batch_id: str, ended: Ended | None) -> None:
        if ended is None:
            return
        self._ended[batch_id] = ended
        while len(self._ended) > _BATCHES_REMEMBERED:
            self._ended.popitem(last=False)

    def _is_young(self, stored_at_s: float) -> bool:
        return self._clock() - stored_at_s < self._run_cutoff_s

    async def _turn_reflection_off(self, post: Post) -> None:
        """Keep the server from starting turns by itself every 25 steps; once is enough."""
        if self._reflection_is_off:
            return
        try:
            async with (
                asking("the reflection setting", self._read_timeout_s),
                self._sockets.lend() as socket,
            ):
                answer = await socket.ask(
                    "set_reflection_settings",
                    runtime={"agent_id": post.agent_id, "conversation_id": post.conversation_id},
                    settings={"trigger": "off", "step_count": 25},
                    scope="global",
                )
        except LettaUnavailable as error:
            raise NotAccepted(error.message, hint=error.hint) from error
        self._reflection_is_off = bool(answer.get("success"))

    async def _begin_reflection(self, post: Post) -> None:
        """Have the server reflect on a call; it goes on by itself, and no post fails with it."""
        with suppress(LettaError):
            async with asking("a reflection", self._read_timeout_s):
                socket = await self._sockets.open()
                try:
                    await subscribe(socket, post)
                    await socket.ask(
                        "execute_command",
                        command_id="reflect",
                        runtime={
                            "agent_id": post.agent_id,
                            "conversation_id": post.conversation_id,
                        },
                    )
                finally:
                    socket.close()

    # Looking up

    @override
    async def find(self, post: Post) -> Finding:
        running = self._running.get(post.conversation_id)
        if running is not None and running.batch_id == post.batch_id:
            return "running"
        async with asking("a post", 3 * self._read_timeout_s), self._sockets.lend() as socket:
            require(await socket.ask("agent_retrieve", agent_id=post.agent_id), "the agent")
            trace = await look(socket, post)
        if trace is None or not trace.stored:
            return "absent"
        if trace.digested:
            return "found"
        # The server is not asked: asking what a conversation is doing subscribes to it, and that
        # makes a restarted server resume what it was doing, without our tools.
        at_work = post.batch_id not in self._ended and self._is_young(trace.stored_at_s)
        return "running" if at_work else "absent"

    # The rest

    @override
    async def aclose(self) -> None:
        await self._sockets.aclose()


def _lacks_a_repository(answer: Frame) -> bool:
    """Return whether an answer says that the agent's memory is not a git repository.

    A server that is killed while it makes an agent leaves it so; it can open no conversation then.
    """
    error = str(answer.get("error") or "")
    return not answer.get("success") and any(words in error for words in _NO_REPOSITORY)


async def _models(socket: AppServerSocket) -> Sequence[str]:
    """Return the models the server can run an agent on; if it lists none yet, make it look."""
    answer = require(await socket.ask("list_models"), "the server's models")
    if not answer.get("available_handles"):
        answer = require(await socket.ask("list_models", force=True), "the server's models")
    return cast("Sequence[str]", answer.get("available_handles") or ())


def _model(asked: str, handles: Sequence[str]) -> str:
    """Return the model of a new agent: the one asked for, else a small one, else the first.

    Raises:
        Rejected: the server has none, or not the one asked for; the server itself would accept
            it and fail at the first turn.
    """
    hint = "LETTA_AGENT_MODEL names what the agent runs on; `letta connect` adds models"
    if asked:
        if asked not in handles:
            raise Rejected(
                f"the App Server has no model {asked[:100]!r} (LETTA_AGENT_MODEL)", hint=hint
            )
        return asked
    chat = [handle for handle in handles if "embedding" not in handle]
    if not chat:
        raise Rejected("the App Server has no model", hint=hint)
    return next((h for h in chat if any(word in h for word in _SMALL_MODELS)), chat[0])
