"""Forgetting a caller on a real Letta server: the agent, its messages and its blocks."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.console_page import opened
from tests.e2e.test_cli import Cli
from tests.letta_server.stack import LettaStack
from tests.sidecar_process import SidecarProcess, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.real_letta]


def asked(stack: LettaStack, path: str) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    request = urllib.request.Request(f"{stack.base_url}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None


def test_a_forgotten_caller_is_gone_from_a_real_letta(
    letta_server: LettaStack, tmp_path: Path
) -> None:
    """After `forget --yes` the server has neither the agent nor a block with what was said."""
    env = {"LETTA_BASE_URL": letta_server.base_url, "LETTA_API_KEY": letta_server.api_key or ""}
    cli = Cli(tmp_path / "data", **env)
    with SidecarProcess(tmp_path / "data", env) as sidecar:
        with opened(sidecar) as page:
            page.call("zoe-real")
            page.say("Hello, my name is Zoe and I live in Zanzibar.")
            page.hang_up()
        eventually(lambda: sidecar.undelivered() == 0, within_s=60)
        plan = cli.json("forget", "--caller", "id:zoe-real")
        (agent_id,) = plan["agents"]
        status, agent = asked(letta_server, f"/v1/agents/{agent_id}?include=agent.blocks")
        assert status == 200
        blocks = [block["id"] for block in agent["blocks"]]
        assert any("Zoe" in block["value"] for block in agent["blocks"])
        report = cli.json("forget", "--caller", "id:zoe-real", "--yes")
        assert report["traces"] == []
        assert len(report["left"]) == 1
        assert asked(letta_server, f"/v1/agents/{agent_id}")[0] == 404
        assert {asked(letta_server, f"/v1/blocks/{block}")[0] for block in blocks} == {404}
        findings = {f["what"]: f for f in cli.json("doctor")}
        assert findings["letta"]["verdict"] == "ok"
        assert "classic server" in findings["letta"]["found"]
