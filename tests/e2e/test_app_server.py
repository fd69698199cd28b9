"""A caller is remembered by a real agent on a real Letta App Server, across calls."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from sidecar.letta.app_server.letta import AppServerLetta
from sidecar.model import Block
from tests.app_server.stack import AppServerStack
from tests.console_page import opened
from tests.sidecar_process import SidecarProcess, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.real_letta]


@pytest.fixture
def sidecar(tmp_path: Path, app_server: AppServerStack) -> Iterator[SidecarProcess]:
    env = {
        "LETTA_APP_SERVER_URL": app_server.url,
        "LETTA_APP_SERVER_TOKEN": app_server.token,
        "SIDECAR_POST_MAX_AGE_S": "1",
    }
    with SidecarProcess(tmp_path / "data", env) as process:
        yield process


def blocks_of_callers(stack: AppServerStack) -> list[tuple[Block, ...]]:
    async def read() -> list[tuple[Block, ...]]:
        letta = AppServerLetta(stack.url, stack.token)
        try:
            found = await letta.find_agents(("voice-sidecar",))
            return [await letta.read_blocks(agent.agent_id) for agent in found]
        finally:
            await letta.aclose()

    return anyio.run(read)


def test_a_caller_is_remembered_by_the_app_server(
    sidecar: SidecarProcess, app_server: AppServerStack
) -> None:
    """What was said in one call is in the agent's memory files and is known in the next."""
    with opened(sidecar) as page:
        page.call("ada")
        page.say("My favourite colour is teal")
        page.hang_up()
        eventually(lambda: sidecar.undelivered() == 0, within_s=60)
        known = blocks_of_callers(app_server)
        assert any("teal" in block.value for blocks in known for block in blocks)
        page.call("ada")
        assert "teal" in page.say("What is my favourite colour?")
        page.hang_up()
    with opened(sidecar) as page:
        page.call("bob")
        assert "teal" not in page.say("What is my favourite colour?")
        page.hang_up()
