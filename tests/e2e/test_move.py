"""`sidecar agents move` between all kinds of Letta, on the real servers."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from sidecar.demo.model import DemoModel
from sidecar.letta.app_server.letta import AppServerLetta
from sidecar.letta.digest_agent import caller_tags
from sidecar.letta.embedded.letta import EmbeddedLetta
from sidecar.letta.port import AgentSpec, Letta
from sidecar.letta.rest.letta import RestLetta
from sidecar.model import Block
from tests.app_server.stack import MODEL as APP_SERVER_MODEL
from tests.app_server.stack import AppServerStack
from tests.e2e.test_cli import Cli
from tests.letta_server.stack import EMBEDDING, MODEL, LettaStack
from tests.sidecar_process import SidecarProcess

pytestmark = [pytest.mark.e2e, pytest.mark.real_letta]

BLOCKS = (
    Block("calls", "", "past calls", limit_chars=5_000),
    Block("human", "Name: Ada\nLikes: Grüße, <tea> & 🦜", "the caller", limit_chars=6_000),
    Block("persona", "Be kind.", "who I am", limit_chars=5_000, read_only=True),
)


Answer = TypeVar("Answer")


class Place:
    """One Letta by its name in `agents move`, with the settings to reach it."""

    def __init__(
        self, name: str, make: Callable[[], Awaitable[Letta]], env: dict[str, str], model: str
    ) -> None:
        self.name = name
        self.env = env
        self._make = make
        self._model = model

    async def _with(self, what: Callable[[Letta], Awaitable[Answer]]) -> Answer:
        letta = await self._make()
        try:
            return await what(letta)
        finally:
            await letta.aclose()
            await anyio.lowlevel.checkpoint()

    def create(self, *tags: str) -> str:
        embedding = EMBEDDING if self._model == MODEL else ""
        spec = AgentSpec("ada's", "You digest.", BLOCKS, tags, self._model, embedding)

        async def created(letta: Letta) -> str:
            return await letta.create_agent(spec)

        return anyio.run(self._with, created)

    def blocks(self, agent_id: str) -> tuple[Block, ...]:
        async def read(letta: Letta) -> tuple[Block, ...]:
            return await letta.read_blocks(agent_id)

        return anyio.run(self._with, read)

    def found(self, *tags: str) -> list[str]:
        async def found(letta: Letta) -> list[str]:
            return [agent.agent_id for agent in await letta.find_agents(tags)]

        return anyio.run(self._with, found)


def at_embedded(data_dir: Path) -> Place:
    async def opened() -> Letta:
        return await EmbeddedLetta.open(data_dir / "letta.db", llm=DemoModel())

    return Place("embedded", opened, {}, "")


def at_app_server(stack: AppServerStack) -> Place:
    env = {"LETTA_APP_SERVER_TOKEN": stack.token, "SIDECAR_READ_TIMEOUT_S": "15"}
    env["LETTA_AGENT_MODEL"] = APP_SERVER_MODEL

    async def opened() -> Letta:
        return AppServerLetta(stack.url, stack.token, read_timeout_s=15.0)

    return Place(stack.url, opened, env, APP_SERVER_MODEL)


def at_classic(stack: LettaStack) -> Place:
    env = {"LETTA_API_KEY": stack.api_key or "any", "SIDECAR_READ_TIMEOUT_S": "15"}
    env |= {"LETTA_AGENT_MODEL": MODEL, "LETTA_AGENT_EMBEDDING": EMBEDDING}

    async def opened() -> Letta:
        return RestLetta(stack.base_url, stack.api_key, read_timeout_s=15.0)

    return Place(stack.base_url, opened, env, MODEL)


def moved(tmp_path: Path, source: Place, target: Place, *, how: str = "blocks") -> None:
    """Check a dry run, a move and a repeated move of an agent, then changes at the source."""
    tags = caller_tags("default", tmp_path.name)
    agent_id = source.create(*tags)
    before = source.blocks(agent_id)
    cli = Cli(tmp_path, **(source.env | target.env))
    where = ("agents", "move", agent_id, "--from", source.name, "--to", target.name)
    (planned,) = cli.json(*where)
    assert (planned["state"], planned["how"], planned["target_id"]) == ("to move", how, "")
    assert target.found(*tags) == [], "a dry run changes nothing"
    (done,) = cli.json(*where, "--yes")
    assert done["state"] == "moved"
    assert source.blocks(agent_id) == before
    assert target.found(*tags) == [done["target_id"]]
    there = {block.label: block for block in target.blocks(done["target_id"])}
    assert [there[b.label].value for b in BLOCKS] == [b.value for b in BLOCKS]
    assert there["human"].limit_chars == 6_000
    assert there["persona"].read_only
    (again,) = cli.json(*where, "--yes")
    assert (again["state"], again["target_id"]) == ("there already", done["target_id"])
    assert target.found(*tags) == [done["target_id"]]


def test_from_the_embedded_one_to_the_app_server(
    tmp_path: Path, app_server: AppServerStack
) -> None:
    """An agent is moved from the embedded Letta to the App Server, and only once."""
    moved(tmp_path, at_embedded(tmp_path), at_app_server(app_server))


@pytest.mark.slow
def test_from_the_app_server_to_the_embedded_one(
    tmp_path: Path, app_server: AppServerStack
) -> None:
    """An agent is moved from the App Server to the embedded Letta."""
    moved(tmp_path, at_app_server(app_server), at_embedded(tmp_path))


@pytest.mark.slow
def test_from_the_classic_server_to_the_app_server(
    tmp_path: Path, app_server: AppServerStack, letta_server: LettaStack
) -> None:
    """An agent is moved from the classic server to the App Server."""
    moved(tmp_path, at_classic(letta_server), at_app_server(app_server))


def test_from_the_app_server_to_the_classic_one(
    tmp_path: Path, app_server: AppServerStack, letta_server: LettaStack
) -> None:
    """An agent is moved from the App Server to the classic server."""
    moved(tmp_path, at_app_server(app_server), at_classic(letta_server))


@pytest.mark.slow
def test_between_classic_servers_an_agent_file_is_carried(
    tmp_path: Path, letta_server: LettaStack, letta_server_without_redis: LettaStack
) -> None:
    """Between classic servers the whole agent is moved as an .af file."""
    source, target = at_classic(letta_server_without_redis), at_classic(letta_server)
    moved(tmp_path, source, target, how="af")


def test_what_has_come_to_differ_is_left_alone(tmp_path: Path, app_server: AppServerStack) -> None:
    """A caller who has an agent at the target keeps it, and the command exits with 1."""
    source, target = at_embedded(tmp_path), at_app_server(app_server)
    tags = caller_tags("default", tmp_path.name)
    agent_id = source.create(*tags)
    theirs = target.create(*tags)
    cli = Cli(tmp_path, **target.env)
    where = ("agents", "move", agent_id, "--from", "embedded", "--to", target.name, "--yes")
    done = cli.run(*where, "--json")
    assert done.returncode == 1
    (move,) = json.loads(done.stdout)
    assert (move["state"], move["target_id"]) == ("taken", theirs)
    assert target.found(*tags) == [theirs]


def test_a_running_sidecar_is_not_moved_from_under_its_callers(tmp_path: Path) -> None:
    """While a sidecar runs on the data directory nothing is moved."""
    with SidecarProcess(tmp_path):
        done = Cli(tmp_path).run("agents", "move", "--all", "--to", "app-server", "--yes")
        assert done.returncode == 2
        assert "stop it" in done.stderr
