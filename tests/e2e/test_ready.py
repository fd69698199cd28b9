"""`sidecar ready`, as health checks ask it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_link_server import worker
from tests.sidecar_process import SidecarProcess

pytestmark = pytest.mark.e2e


def ready(data_dir: Path, *options: str) -> tuple[int, str]:
    """Its exit code and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "ready", *options],
        env=os.environ | {"SIDECAR_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_ready_follows_the_sidecar(tmp_path: Path) -> None:
    """1 where none runs, 0 while it takes calls, 1 while it drains, 1 after a kill: each says why."""
    data = tmp_path / "data"
    code, said = ready(data)
    assert code == 1
    assert "no sidecar answers" in said
    with SidecarProcess(data) as sidecar:
        assert ready(data) == (0, "ready\n")
        assert json.loads(ready(data, "--json")[1])["ready"] is True
        with worker(sidecar) as peer:
            peer.open("c-live", identity="ada")
            peer.until("memory")
            sidecar.terminate()
            peer.until("drain")
            assert ready(data) == (1, "not ready: it drains\n")
        sidecar.kill()
        code, said = ready(data)
        assert code == 1
        assert "no sidecar answers" in said
