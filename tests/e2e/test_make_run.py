"""`make run` as a person types it, with stand-ins for what it installs and starts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def made(folder: Path, uv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `make run` in a folder where all is installed except the App Server."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    (folder / ".venv/bin").mkdir(parents=True)
    for name, script in (("uv", uv), ("sidecar", 'echo "the sidecar runs: $*"')):
        program = folder / ".venv/bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    (folder / ".venv/.run").touch()
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("LETTA_", "SIDECAR_", "MAKE"))
    }
    return subprocess.run(
        ["make", "run"],
        cwd=folder,
        env=inherited | env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_an_app_server_that_cannot_be_installed_stops_nothing(tmp_path: Path) -> None:
    """Without a network `make run` says why there is no App Server, and starts the sidecar."""
    done = made(tmp_path, 'echo "no route to the registry" >&2; exit 1')
    assert done.returncode == 0
    assert "no route to the registry" in done.stderr
    assert "could not be installed" in done.stderr
    assert "the sidecar runs: run" in done.stdout


@pytest.mark.parametrize(
    "env", [{"LETTA_BASE_URL": "http://127.0.0.1:8283"}, {"SIDECAR_LETTA": "embedded"}]
)
def test_nothing_is_installed_where_another_letta_is_chosen(
    tmp_path: Path, env: dict[str, str]
) -> None:
    """If another Letta is configured, `make run` does not download the App Server."""
    done = made(tmp_path, "touch asked", **env)
    assert done.returncode == 0
    assert not (tmp_path / "asked").exists()
    assert "the sidecar runs: run" in done.stdout


def test_the_app_server_is_installed_once(tmp_path: Path) -> None:
    """`make run` installs the App Server the first time only, before the sidecar starts."""
    script = 'echo "$1" >> asked; mkdir -p .app-server-venv'
    assert made(tmp_path, script).returncode == 0
    assert (tmp_path / "asked").read_text().split() == ["venv", "pip"]
    again = subprocess.run(
        ["make", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "asked").read_text().split() == ["venv", "pip"]
