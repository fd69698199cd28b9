"""`sidecar run --restart`: a parent process that starts the sidecar again when it is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.ports import free_port
from tests.sidecar_process import RESTARTED, SidecarProcess, eventually, get

pytestmark = pytest.mark.e2e


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path / "data", port=free_port(), command=RESTARTED) as process:
        yield process


def child_of(sidecar: SidecarProcess) -> psutil.Process:
    (child,) = psutil.Process(sidecar.pid).children()
    return child


def test_killed_it_is_started_again_with_the_same_page(sidecar: SidecarProcess) -> None:
    """After kill -9 a new process serves the same port and accepts the same token."""
    child = child_of(sidecar)
    child.kill()
    eventually(lambda: any("starting it again" in line for line in sidecar.log))
    eventually(lambda: psutil.Process(sidecar.pid).children() not in ([], [child]))
    eventually(lambda: _lives(sidecar), within_s=40)
    assert child_of(sidecar).pid != child.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_through_once(sidecar: SidecarProcess, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C drain the sidecar, and the parent exits with its code."""
    os.kill(sidecar.pid, number)
    assert sidecar.wait() == 0
    assert sum('"drained"' in line for line in sidecar.log) == 1
    assert not any("starting it again" in line for line in sidecar.log)


def test_without_its_parent_the_sidecar_leaves(sidecar: SidecarProcess) -> None:
    """When the parent is killed, the sidecar drains and exits."""
    child = child_of(sidecar)
    sidecar.kill()
    eventually(lambda: not child.is_running())


def test_a_voice_worker_outlives_a_kill_and_is_not_doubled(tmp_path: Path) -> None:
    """A kill of the sidecar does not end its voice worker, and a stop of the sidecar does."""
    said = tmp_path / "said"
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import pathlib, signal\n"
        f"said = pathlib.Path({str(said)!r}).open('a')\n"
        "def end(*_):\n    print('ended', file=said, flush=True); raise SystemExit\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('began', file=said, flush=True)\n"
        "while True: signal.pause()\n"
    )
    livekit = {
        "LIVEKIT_URL": "ws://127.0.0.1:1",
        "LIVEKIT_API_KEY": "k",
        "LIVEKIT_API_SECRET": "s" * 32,
    }
    command = [*RESTARTED, "--worker", str(worker)]
    with SidecarProcess(tmp_path / "data", livekit, port=free_port(), command=command) as sidecar:
        eventually(lambda: said.exists() and said.read_text() == "began\n")
        child = child_of(sidecar)
        child.kill()
        eventually(lambda: psutil.Process(sidecar.pid).children() not in ([], [child]))
        eventually(lambda: _lives(sidecar), within_s=40)
        sidecar.terminate()
        assert sidecar.wait() == 0
        eventually(lambda: said.read_text() == "began\nended\n")


def test_a_wrong_setting_is_final(tmp_path: Path) -> None:
    """A start that can't succeed is tried once, and exits with 2."""
    env = {**os.environ, "SIDECAR_DATA_DIR": str(tmp_path), "SIDECAR_PORT": "none"}
    command = [sys.executable, "-m", "sidecar", "run", "--restart"]
    ended = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.count("SIDECAR_PORT") == 1


def test_what_is_killed_before_it_serves_is_given_up(tmp_path: Path) -> None:
    """A sidecar that is killed three times before it is ready is not started again."""
    count = tmp_path / "count"
    child = f"import os; open({str(count)!r}, 'a').write('.'); os.kill(os.getpid(), 9)"
    parent = (
        "import sys; from sidecar.cli.restart import Parent;"
        f" sys.exit(Parent([sys.executable, '-c', {child!r}]).run())"
    )
    ended = subprocess.run([sys.executable, "-c", parent], timeout=30, check=False)
    assert ended.returncode == 128 + signal.SIGKILL
    assert count.read_text() == "..."


def _lives(sidecar: SidecarProcess) -> bool:
    try:
        return get(f"{sidecar.url}/livez")[0] == 200
    except OSError:
        return False
