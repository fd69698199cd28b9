"""What is started warm behaves as the command does that it stands for."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.sidecar_process import eventually
from tests.warm import Warm

pytestmark = pytest.mark.e2e

PROGRAM = """
import json, os, sys
print(json.dumps([sys.argv[1:], sys.stdin.read(), dict(os.environ), os.getcwd(), __name__]))
print("to stderr", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def warm() -> Generator[Warm]:
    started = Warm(["json"])
    yield started
    started.close()


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def test_a_program_runs_as_by_its_command(warm: Warm, program: str) -> None:
    """Arguments, input, environment, output, errors and exit code are those of a cold start."""
    env = {"ONLY": "this", "LC_ALL": "C.UTF-8"}
    there = warm.run([program, "3", "ä"], env=env, stdin="said", timeout=30)
    cold = subprocess.run(
        [sys.executable, program, "3", "ä"],
        env=env,
        input="said",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (there.returncode, there.stderr) == (cold.returncode, cold.stderr)
    assert json.loads(there.stdout) == json.loads(cold.stdout)


def test_a_module_runs_in_the_directory_that_is_given(warm: Warm, tmp_path: Path) -> None:
    """A module of the working directory is found there, as after `python -m`."""
    (tmp_path / "of_the_directory.py").write_text("import sys; sys.exit(7)")
    assert warm.start(["of_the_directory"], env={}, cwd=tmp_path).wait(30) == 7


def test_a_signal_ends_it_alone(warm: Warm, tmp_path: Path) -> None:
    """A killed process has the exit code of its signal, and others go on."""
    (tmp_path / "sleeps.py").write_text("import signal; signal.pause()")
    first, second = (warm.start(["sleeps"], env={}, cwd=tmp_path) for _ in range(2))
    first.kill()
    assert first.wait(30) == -signal.SIGKILL
    assert first.poll() == -signal.SIGKILL
    assert second.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.01)
    second.terminate()
    assert second.wait(30) == -signal.SIGTERM


def test_all_of_them_end_with_what_started_them(tmp_path: Path) -> None:
    """When the process that forks is closed, what it started is killed."""
    (tmp_path / "sleeps.py").write_text("import signal; signal.pause()")
    warm = Warm([])
    process = warm.start(["sleeps"], env=dict(os.environ), cwd=tmp_path)
    warm.close()
    eventually(lambda: not Path(f"/proc/{process.pid}").exists())
    assert process.wait(30) == -signal.SIGKILL
