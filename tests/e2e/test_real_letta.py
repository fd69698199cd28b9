"""The whole path on a real Letta server: a fact, a changed block, the next call's prompt."""

from functools import partial
from pathlib import Path

import pytest

from tests.console_page import opened
from tests.letta_server.stack import LettaStack
from tests.sidecar_process import SidecarProcess, eventually, sidecar_command

pytestmark = [pytest.mark.e2e, pytest.mark.real_letta]


def settings(stack: LettaStack) -> dict[str, str]:
    return {"LETTA_BASE_URL": stack.base_url, "LETTA_API_KEY": stack.api_key or ""}


def test_a_fact_changes_a_block_on_a_real_letta_and_is_in_the_next_call(
    letta_server: LettaStack, tmp_path: Path
) -> None:
    """A fact said in one call is in the agent's block and in the next call's memory."""
    with (
        SidecarProcess(tmp_path / "data", settings(letta_server)) as sidecar,
        opened(sidecar) as page,
    ):
        page.call("ada-real")
        page.say("Hello, my name is Ada and I live in Lyon.")
        page.hang_up()
        eventually(lambda: sidecar.undelivered() == 0, within_s=60)
        page.call("ada-real")
        memory = page.until("memory", served="fresh")
        assert any("Ada" in block["value"] for block in memory["blocks"])
        assert "Ada" in page.say("What is my name?")
    assert "Ada" not in "".join(sidecar.log)


def test_letta_goes_away_in_a_call_and_nothing_is_lost(
    letta_server: LettaStack, tmp_path: Path
) -> None:
    """With Letta killed the caller notices nothing, and the words arrive when it is back."""
    with (
        SidecarProcess(tmp_path / "data", settings(letta_server)) as sidecar,
        opened(sidecar) as page,
    ):
        page.call("bob-real")
        page.say("Hello, my name is Bob.")
        page.hang_up()
        eventually(lambda: sidecar.undelivered() == 0, within_s=60)
        letta_server.kill_letta()
        try:
            page.call("bob-real")
            assert "Bob" in page.say("What is my name?")
            page.say("My dog is called Rex.")
            page.hang_up()
            assert sidecar.readiness()["ready"]
            assert sidecar.undelivered() > 0
            page.call("bob-real")
            assert "Rex" in page.say("What is my dog called?")
            page.hang_up()
        finally:
            letta_server.start_letta()
        eventually(lambda: sidecar.undelivered() == 0, within_s=120)


def test_the_command_line_makes_and_shows_an_agent(
    letta_server: LettaStack, tmp_path: Path
) -> None:
    """`agents create` prints an id, `agents show` its blocks, a wrong id a clear error."""
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "SIDECAR_DATA_DIR": str(tmp_path),
        **settings(letta_server),
    }

    sidecar = partial(sidecar_command, env=env)
    made = sidecar("agents", "create", "front desk")
    assert made.returncode == 0, made.stderr
    shown = sidecar("agents", "show", made.stdout.strip())
    assert "[human]" in shown.stdout
    missing = sidecar("agents", "show", "agent-00000000-0000-4000-8000-000000000000")
    assert missing.returncode == 1
    assert "agent" in missing.stderr
