"""Every Letta that the contract suite runs against, with what a test needs to control it.

A world is a Letta behind the port. Without the adapter under test, its model can be slowed down and
made to fail, and its conversations can be deleted and read.
"""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from letta_client import AsyncLetta
from typing_extensions import override

from sidecar.demo.model import DemoModel
from sidecar.errors import LettaUnavailable, LlmError, NotAccepted
from sidecar.letta.app_server.history import text_of
from sidecar.letta.app_server.letta import AppServerLetta
from sidecar.letta.app_server.socket import Sockets
from sidecar.letta.embedded.letta import EmbeddedLetta, digested
from sidecar.letta.port import AgentSpec, Letta, Post
from sidecar.letta.rest.letta import RestLetta
from sidecar.llm.port import Llm, Reply, ToolCall
from sidecar.model import Block
from sidecar.testing.letta_routes import StandInOptions
from sidecar.testing.letta_server import standing_in
from sidecar.testing.letta_state import Digest
from sidecar.testing.openai_server import ModelFaults
from tests.app_server.stack import MODEL as APP_SERVER_MODEL
from tests.app_server.stack import AppServerStack
from tests.letta_server.stack import EMBEDDING, MODEL, LettaStack

WRONG_KEY = "not the key"
HUMAN = Block("human", "", "the caller", limit_chars=5_000)
SETTLE_S = 120.0  # a hang: a real server on a busy machine takes its time


class World(ABC):
    """One Letta for one test. `letta` is under test.

    `stores_at_start`: a message is stored when its run begins, and stays if the run fails.
    `longest_chars`: a length of a block's value that every server of this kind accepts.
    """

    letta: Letta
    stores_at_start = False
    longest_chars = 20_000

    @abstractmethod
    async def set_model(self, **faults: float | bool) -> None:
        """Change some of `delay_s`, `hang` and `fail` of the model, and keep the others."""

    async def slow_model(self, delay_s: float) -> None:
        """Make every later step of a run take `delay_s` longer; 0 ends that."""
        await self.set_model(delay_s=delay_s)

    async def stall_model(self) -> None:
        """Hold every later step until `release_model`."""
        await self.set_model(hang=True)

    async def release_model(self) -> None:
        """Let all held steps end."""
        await self.set_model(hang=False)

    async def break_model(self, *, broken: bool) -> None:
        """Make every later run fail, or let runs succeed again."""
        # A real server repeats a failed step, so a single failure would not be seen.
        await self.set_model(fail=1_000_000 * broken)

    @abstractmethod
    async def texts(self, post: Post) -> list[str]:
        """Return the user messages stored in the post's conversation."""

    @abstractmethod
    async def delete_conversation(self, post: Post) -> None:
        """Delete the post's conversation without the adapter."""

    async def archive(self, agent_id: str, text: str) -> None:
        """Put a text into the agent's archival memory without the adapter."""
        raise NotImplementedError

    def with_wrong_key(self) -> Letta:
        """Return an adapter of the same Letta with a wrong key."""
        raise NotImplementedError

    async def copies(self, post: Post) -> int:
        """Return how often the batch is stored."""
        return sum(post.batch_id in text for text in await self.texts(post))

    def spec(
        self, *blocks: Block, tags: Sequence[str] = ("contract",), name: str = "contract"
    ) -> AgentSpec:
        """Return the spec of an agent that this Letta can make."""
        return AgentSpec(name, "You digest.", blocks, tags, model=MODEL, embedding=EMBEDDING)


class RestWorld(World):
    """A REST server, used through `RestLetta` and through a bare client of the SDK."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url
        self.letta = RestLetta(base_url, api_key, read_timeout_s=15.0)
        self.bare = AsyncLetta(base_url=base_url, api_key=api_key or None, timeout=30.0)
        self.opened: list[Letta] = [self.letta]

    @override
    async def texts(self, post: Post) -> list[str]:
        page = await self.bare.conversations.messages.list(post.conversation_id, limit=200)
        return [str(m.content) for m in page.items if m.message_type == "user_message"]

    @override
    async def delete_conversation(self, post: Post) -> None:
        await self.bare.conversations.delete(post.conversation_id)

    @override
    async def archive(self, agent_id: str, text: str) -> None:
        await self.bare.agents.passages.create(agent_id, text=text)

    @override
    def with_wrong_key(self) -> Letta:
        self.opened.append(RestLetta(self.base_url, WRONG_KEY))
        return self.opened[-1]

    async def aclose(self) -> None:
        await self.bare.close()
        for letta in self.opened:
            await letta.aclose()


class RealWorld(RestWorld):
    """The real classic server."""

    def __init__(self, stack: LettaStack) -> None:
        super().__init__(stack.base_url, stack.api_key)
        self.stack = stack

    @override
    async def set_model(self, **faults: float | bool) -> None:
        await anyio.to_thread.run_sync(lambda: self.stack.control_llm(**faults))


class FaultyModel(Llm):
    """The demo model, which a test can slow down and break."""

    def __init__(self) -> None:
        self._demo = DemoModel()
        self._faults = ModelFaults()
        self._released = anyio.Event()
        self.archive = ""
        """A text to be put into archival memory at the next step."""

    def set(self, **faults: float | bool) -> None:
        """Change some of the faults; without `hang`, held steps end."""
        self._faults = msgspec.structs.replace(self._faults, **faults)
        if not self._faults.hang:
            self._released.set()
            self._released = anyio.Event()

    @property
    @override
    def name(self) -> str:
        return "faulty model"

    @override
    async def stream(self, messages: Sequence[Mapping[str, Any]]) -> AsyncIterator[str]:
        async for piece in self._demo.stream(messages):
            yield piece

    @override
    async def complete(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Reply:
        if self._faults.hang:
            await self._released.wait()
        await anyio.sleep(self._faults.delay_s)
        if self._faults.fail:
            raise LlmError("a fault was asked for")
        if self.archive:
            arguments, self.archive = json.dumps({"content": self.archive}), ""
            return Reply("", (ToolCall("call-1", "archival_memory_insert", arguments),))
        return await self._demo.complete(messages, tools=tools)

    @override
    async def aclose(self) -> None:
        pass


class EmbeddedWorld(World):
    """The embedded Letta on its own file."""

    def __init__(self, letta: EmbeddedLetta, model: FaultyModel) -> None:
        self.letta = self._letta = letta
        self._model = model

    @override
    async def set_model(self, **faults: float | bool) -> None:
        self._model.set(**faults)

    @override
    async def texts(self, post: Post) -> list[str]:
        return [text for _, text in await self._letta.messages(post.conversation_id)]

    @override
    async def archive(self, agent_id: str, text: str) -> None:
        self._model.archive = text
        await self.letta.post(await new_post(self, agent_id))

    @override
    async def delete_conversation(self, post: Post) -> None:
        raise NotImplementedError("the embedded Letta deletes conversations with their agent only")


class StandInWorld(RestWorld):
    """The stand-in server that the kill loop and the benchmarks use."""

    def __init__(self, base_url: str, api_key: str, model: FaultyModel) -> None:
        super().__init__(base_url, api_key)
        self._model = model

    @override
    async def set_model(self, **faults: float | bool) -> None:
        self._model.set(**faults)


class AppServerWorld(World):
    """The real App Server, used through `AppServerLetta` and through bare sockets."""

    stores_at_start = True
    longest_chars = 19_200

    def __init__(self, stack: AppServerStack) -> None:
        self.stack = stack
        self.letta = AppServerLetta(stack.url, stack.token, read_timeout_s=15.0)
        self.bare = Sockets(stack.url, stack.token, timeout_s=15.0)
        self.opened: list[Letta] = [self.letta]

    @override
    async def set_model(self, **faults: float | bool) -> None:
        await anyio.to_thread.run_sync(lambda: self.stack.control_llm(**faults))

    @override
    async def texts(self, post: Post) -> list[str]:
        query = {"agent_id": post.agent_id, "limit": 200}
        async with self.bare.lend() as socket:
            answer = await socket.ask(
                "conversation_messages_list", conversation_id=post.conversation_id, query=query
            )
        users = [m for m in answer["messages"] if m["message_type"] == "user_message"]
        return [text_of(message) for message in reversed(users)]

    @override
    async def delete_conversation(self, post: Post) -> None:
        raise NotImplementedError("the App Server deletes conversations with their agent only")

    @override
    def with_wrong_key(self) -> Letta:
        self.opened.append(AppServerLetta(self.stack.url, WRONG_KEY))
        return self.opened[-1]

    @override
    def spec(
        self, *blocks: Block, tags: Sequence[str] = ("contract",), name: str = "contract"
    ) -> AgentSpec:
        return AgentSpec(name, "You digest.", blocks, tags, model=APP_SERVER_MODEL)

    async def aclose(self) -> None:
        await self.bare.aclose()
        for letta in self.opened:
            await letta.aclose()


@asynccontextmanager
async def open_world(
    kind: str, stack: LettaStack | AppServerStack | None, folder: Path
) -> AsyncGenerator[World]:
    """Open a world; at the end all its faults are removed.

    Args:
        kind: `embedded`, `stand-in…`, `real…` or `app-server`.
        stack: The real server, for kinds that have one.
        folder: For files.
    """
    async with AsyncExitStack() as after:
        model = FaultyModel()
        if kind == "embedded":
            letta = await EmbeddedLetta.open(folder / "letta.db", llm=model)
            after.push_async_callback(letta.aclose)
            yield EmbeddedWorld(letta, model)
            return
        if kind.startswith("stand-in"):
            options = StandInOptions(
                digest=_digest_by(model), redis="no-redis" not in kind, password="the key"
            )
            url, _ = await after.enter_async_context(standing_in(options))
            stand_in = StandInWorld(url, "the key", model)
            after.push_async_callback(stand_in.aclose)
            yield stand_in
            return
        assert stack is not None, kind
        real = AppServerWorld(stack) if isinstance(stack, AppServerStack) else RealWorld(stack)
        after.push_async_callback(real.aclose)
        after.push_async_callback(real.slow_model, 0.0)
        after.push_async_callback(real.release_model)
        after.push_async_callback(_mend, real)
        yield real


async def _mend(world: World) -> None:
    await world.break_model(broken=False)


def _digest_by(model: Llm) -> Digest:
    async def digest(system: str, blocks: Mapping[str, Block], text: str) -> Mapping[str, Block]:
        return await digested(model, system, blocks, text)

    return digest


# Helpers for tests in any world


async def new_agent(world: World, *blocks: Block) -> str:
    return await world.letta.create_agent(world.spec(*(blocks or (HUMAN,))))


async def new_post(world: World, agent_id: str, words: str = "hello") -> Post:
    """A batch for a new conversation; `words` are what the caller says."""
    conversation_id = await world.letta.open_conversation(agent_id, label="a call")
    return next_post(agent_id, conversation_id, words)


def next_post(agent_id: str, conversation_id: str, words: str) -> Post:
    batch_id = str(uuid.uuid4())
    text = (
        f'<transcript batch="{batch_id}" call="c" channel="console" caller="k" part="1"'
        f' final="false">\n<turn speaker="caller" time="2026-11-22T18:00:00Z">{words}</turn>\n'
        "</transcript>"
    )
    return Post(batch_id, agent_id, conversation_id, text, time.time())


async def value_of(letta: Letta, agent_id: str, label: str = "human") -> str:
    return next(b.value for b in await letta.read_blocks(agent_id) if b.label == label)


async def takes_nothing(letta: Letta, agent_id: str, post: Post) -> None:
    """A server that is down: nothing was posted for sure, and reads report it unavailable."""
    with pytest.raises(LettaUnavailable):
        await letta.read_blocks(agent_id)
    with pytest.raises(NotAccepted):
        await letta.post(post)
    with pytest.raises(LettaUnavailable):
        await letta.find(post)


async def until_running(letta: Letta, post: Post) -> None:
    with anyio.fail_after(SETTLE_S):
        while await letta.find(post) != "running":  # noqa: ASYNC110 - no event for it
            await anyio.sleep(0.05)
