"""The Letta of this machine: an App Server that the sidecar starts, watches and ends itself."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.letta.app_server.process import end_leftovers
from tests.console_page import opened
from tests.e2e.test_cli import Cli, bytes_below
from tests.sidecar_process import SidecarProcess, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.real_letta]


def env_of(program: Path) -> dict[str, str]:
    return {
        "SIDECAR_LETTA": "auto",
        "SIDECAR_APP_SERVER_PROGRAM": str(program),
        "SIDECAR_READ_TIMEOUT_S": "15",
    }


def server_pid(data_dir: Path) -> int:
    return int(json.loads((data_dir / "app-server/server.json").read_text())["pid"])


def is_ready(data_dir: Path) -> bool:
    return (data_dir / "app-server/server.json").exists()


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def tell(sidecar: SidecarProcess, text: str, caller: str = "ada") -> None:
    with opened(sidecar) as page:
        page.call(caller)
        page.say(text)
        page.hang_up()
    eventually(lambda: sidecar.undelivered() == 0, within_s=60)


def until_answered(sidecar: SidecarProcess, question: str, word: str) -> None:
    """Ask in new calls until the answer has the word, as a read may take a while."""

    def answered() -> bool:
        with opened(sidecar) as page:
            page.call("ada")
            said = page.say(question)
            page.hang_up()
        return word in said

    eventually(answered, saying=f"{question} {word}")


def test_a_second_start_finds_the_same_agent_and_memory(
    tmp_path: Path, app_server_program: Path
) -> None:
    """Without a key a real agent remembers over kill -9, and `memory log` names its calls."""
    env = env_of(app_server_program)
    cli = Cli(tmp_path / "data", **env)
    sidecar = SidecarProcess(tmp_path / "data", env)
    with sidecar:
        assert "real: Letta App Server on this machine (demo model)" in sidecar.banner
        tell(sidecar, "My favourite colour is teal")
        (agent,) = cli.json("agents", "list")
        pid = server_pid(tmp_path / "data")
        sidecar.kill()
        eventually(lambda: not runs(pid), saying="the server dies with the sidecar")
        sidecar.start()
        eventually(lambda: is_ready(tmp_path / "data"), within_s=60)
        until_answered(sidecar, "What is my favourite colour?", "teal")
        tell(sidecar, "My dog is called Rex")
        again = server_pid(tmp_path / "data")
    assert not runs(again)
    assert cli.json("agents", "list") == [agent]
    shown = cli.ok("agents", "show", agent["agent_id"])
    assert "teal" in shown
    assert "Rex" in shown
    log = cli.json("memory", "log", agent["agent_id"])
    learned = {line: change for change in log for e in change["edits"] for line in e["added"]}
    (teal,) = [line for line in learned if "teal" in line]
    (rex,) = [line for line in learned if "Rex" in line]
    assert learned[teal]["call"].startswith("default/console-")
    assert learned[teal]["call"] != learned[rex]["call"]
    table = cli.ok("memory", "log", agent["agent_id"])
    assert "+ " + rex in table
    assert max(len(line) for line in table.splitlines()) <= 80
    of_call = cli.ok("memory", "diff", agent["agent_id"], "--call", learned[teal]["call"])
    assert f"[human]\n+ {teal}" in of_call
    assert rex not in of_call
    assert not is_ready(tmp_path / "data"), "a command leaves no server behind"
    folder = tmp_path / "data/app-server"
    assert folder.stat().st_mode & 0o777 == 0o700
    auth_file = folder / "home/.letta/lc-local-backend/providers/auth.json"
    assert {p.stat().st_mode & 0o777 for p in (folder / "token", auth_file)} == {0o600}


@pytest.mark.slow
def test_a_server_that_dies_is_started_again(tmp_path: Path, app_server_program: Path) -> None:
    """After kill -9 of the App Server calls go on, and what was said meanwhile is remembered."""
    with SidecarProcess(tmp_path / "data", env_of(app_server_program)) as sidecar:
        tell(sidecar, "My favourite colour is teal")
        pid = server_pid(tmp_path / "data")
        with opened(sidecar) as page:
            page.call("ada")
            os.killpg(pid, signal.SIGKILL)
            assert "teal" in page.say("What is my favourite colour?")
            page.say("My dog is called Rex")
            page.hang_up()
        eventually(lambda: sidecar.undelivered() == 0, within_s=60)
        assert server_pid(tmp_path / "data") != pid
        until_answered(sidecar, "What is my dog called?", "Rex")


def test_what_a_caller_said_is_forgotten_in_the_servers_files_too(
    tmp_path: Path, app_server_program: Path
) -> None:
    """After `forget` no file of the App Server has the words, not even its git history."""
    env = env_of(app_server_program)
    cli = Cli(tmp_path / "data", **env)
    with SidecarProcess(tmp_path / "data", env) as sidecar:
        tell(sidecar, "I live in Ouagadougou", "zoe")
        files = bytes_below(tmp_path / "data/app-server/home")
        assert any(b"Ouagadougou" in raw for raw in files.values())
        (agent,) = cli.json("agents", "list")
        report = cli.json("forget", "--caller", "id:zoe", "--yes")
        assert report["traces"] == []
        assert len(report["left"]) == 1
        left = bytes_below(tmp_path / "data/app-server/home")
        assert [name for name, raw in left.items() if b"Ouagadougou" in raw] == []
        assert [name for name in left if agent["agent_id"] in name] == []


@pytest.mark.parametrize("why", ["absent", "broken"])
def test_where_it_cannot_start_the_embedded_one_remembers(tmp_path: Path, why: str) -> None:
    """If the App Server can't start, the reason is shown and the embedded Letta stays in use."""
    program = tmp_path / "letta"
    if why == "broken":
        program.write_text("#!/bin/sh\necho no such luck; exit 3\n")
        program.chmod(0o755)
    env = env_of(program)
    with SidecarProcess(tmp_path / "data", env) as sidecar:
        assert "DEMO: embedded Letta (demo model)" in sidecar.banner
        said = "not installed" if why == "absent" else "ended with 3: no such luck"
        assert said in sidecar.banner
        tell(sidecar, "My favourite colour is teal")
        until_answered(sidecar, "What is my favourite colour?", "teal")
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    with SidecarProcess(tmp_path / "data", env) as sidecar:
        assert "DEMO" in sidecar.banner
        assert "sidecar agents move" in sidecar.banner
        cli = Cli(tmp_path / "data", **env)
        (agent,) = cli.json("agents", "list")
        done = cli.run("memory", "log", agent["agent_id"])
        assert done.returncode == 1
        assert "keeps no history" in done.stderr
        until_answered(sidecar, "What is my favourite colour?", "teal")


@pytest.mark.slow
def test_memory_does_not_change_hands_when_the_server_is_gone(
    tmp_path: Path, app_server_program: Path
) -> None:
    """If an App Server with agents is missing, turns wait until it is installed again."""
    env = env_of(tmp_path / "letta")
    (tmp_path / "letta").symlink_to(app_server_program)
    with SidecarProcess(tmp_path / "data", env) as sidecar:
        tell(sidecar, "My favourite colour is teal")
    (tmp_path / "letta").unlink()
    with SidecarProcess(tmp_path / "data", env) as sidecar:
        assert "AWAY" in sidecar.banner
        with opened(sidecar) as page:
            page.call("ada")
            assert "teal" in page.say("What is my favourite colour?")
            page.say("My dog is called Rex")
            page.hang_up()
        assert sidecar.undelivered() > 0
        (tmp_path / "letta").symlink_to(app_server_program)
        eventually(lambda: sidecar.undelivered() == 0, within_s=90)
        until_answered(sidecar, "What is my dog called?", "Rex")
    assert not (tmp_path / "data/letta.db").exists()


def test_the_app_server_asked_for_by_name_is_not_replaced(tmp_path: Path) -> None:
    """With SIDECAR_LETTA=app-server, a server that can't run is an error with the reason."""
    env = env_of(tmp_path / "letta") | {"SIDECAR_LETTA": "app-server"}
    done = Cli(tmp_path / "data", **env).run("run")
    assert done.returncode == 2
    assert "SIDECAR_LETTA=app-server" in done.stderr
    assert "not installed" in done.stderr


def test_a_server_left_behind_is_ended(tmp_path: Path) -> None:
    """A process with this folder's token file in its command line is ended, and no other."""
    token_file = tmp_path / "app-server/token"
    waiting = [sys.executable, "-c", "input()"]
    left = subprocess.Popen([*waiting, str(token_file)], stdin=subprocess.PIPE)
    other = subprocess.Popen([*waiting, f"{token_file}-of-another"], stdin=subprocess.PIPE)
    try:
        assert end_leftovers(token_file) == 1
        assert left.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.communicate()
