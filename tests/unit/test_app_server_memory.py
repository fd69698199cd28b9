"""Memory on a fake App Server that answers only some requests."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from sidecar.errors import LettaUnavailable
from sidecar.letta.app_server.memory import AgentMemory
from sidecar.letta.app_server.socket import Sockets
from sidecar.llm.port import ToolCall

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

RAW = "---\ndescription: the caller\n---\nName: Ada\n"
PATH = "human.md"
INSERT = ToolCall("c1", "memory_insert", '{"label": "human", "new_str": "Home: Lyon"}')


class HalfServer:
    """Lists its files, and fails questions of a kind in `failing`."""

    def __init__(self) -> None:
        self.files = {PATH: RAW}
        self.failing: set[str] = set()

    @asynccontextmanager
    async def lend(self) -> AsyncGenerator["HalfServer"]:
        yield self

    async def ask(self, kind: str, /, **fields: Any) -> Mapping[str, Any]:
        return self._answer({"type": kind, **fields})

    async def ask_all(self, questions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [self._answer(question) for question in questions]

    def _answer(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        if asked["type"] in self.failing:
            return {"success": False, "error": "busy"}
        match asked["type"]:
            case "agent_retrieve":
                return {"success": True, "agent": {"id": asked["agent_id"], "tags": []}}
            case "list_memory":
                value = {path: raw.split("---\n")[-1] for path, raw in self.files.items()}
                entries = [
                    {"relative_path": path, "content": value[path], "description": "the caller"}
                    for path in self.files
                ]
                return {"success": True, "entries": entries}
            case "read_memory_file":
                return {"success": True, "content": self.files[asked["path"]]}
            case "write_memory_file":
                self.files[asked["path"]] = asked["content"]
                return {"success": True}
            case _:
                return {"success": True, "commits": []}


async def test_a_file_that_is_listed_and_not_read_is_no_memory() -> None:
    """A partly failed read serves no block, and a partly failed edit changes no file."""
    server = HalfServer()
    memory = AgentMemory(cast("Sockets", server), timeout_s=5.0)
    server.failing = {"read_memory_file"}
    with pytest.raises(LettaUnavailable):
        await memory.read("agent-1")
    with pytest.raises(LettaUnavailable):
        await memory.edit("agent-1", "b1", INSERT)
    assert server.files == {PATH: RAW}
    server.failing = set()
    assert [block.value for block in await memory.read("agent-1")] == ["Name: Ada"]
    await memory.edit("agent-1", "b1", INSERT)
    assert server.files == {PATH: RAW + "Home: Lyon\n"}
