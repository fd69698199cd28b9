"""The published OpenAPI describes the routes: fuzzing finds no other answer."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.app.routes import OPENAPI
from tests.sidecar_process import SidecarProcess, get
from tests.vapi.model import Model

pytestmark = pytest.mark.e2e

KEY, SECRET = "key-0123456789abcdef", "secret-0123456789abcdef"
EXAMPLES = 8  # cases per route and phase; raise it for a longer run


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    with Model() as model:
        env = {
            "LLM_BASE_URL": f"{model.url}/v1",
            "LLM_MODEL": "demo",
            "SIDECAR_VAPI_KEY": KEY,
            "SIDECAR_VAPI_SECRET": SECRET,
            "SIDECAR_VAPI_RATE_PER_S": "5000",
        }
        with SidecarProcess(tmp_path_factory.mktemp("openapi") / "data", env) as process:
            yield process


def fuzzed(process: SidecarProcess, directory: Path, document: dict[str, Any] | None = None) -> str:
    """Fuzz every route with a fixed seed; return the output of schemathesis."""
    schema = directory / "openapi.json"
    schema.write_text(json.dumps(document)) if document else schema.write_bytes(
        OPENAPI.read_bytes()
    )
    token = json.loads((process.data_dir / "control.json").read_text())["token"]
    settings = directory / "schemathesis.toml"
    settings.write_text(
        f'[auth.openapi.modelKey]\nbearer = "{KEY}"\n'
        f'[auth.openapi.webhookBearer]\nbearer = "{SECRET}"\n'
        f'[auth.openapi.webhookSecret]\napi_key = "{SECRET}"\n'
        f'[auth.openapi.adminToken]\nbearer = "{token}"\n'
    )
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(settings), "run"]
    command += [str(schema), "--url", process.url, "--seed", "1", "--max-examples", str(EXAMPLES)]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


def test_the_document_is_published(sidecar: SidecarProcess) -> None:
    """`/openapi.json` is the file in the package."""
    status, document = get(f"{sidecar.url}/openapi.json")
    assert status == 200
    assert json.loads(document) == json.loads(OPENAPI.read_bytes())


def test_no_route_answers_what_is_not_in_it(sidecar: SidecarProcess, tmp_path: Path) -> None:
    """Requests of any kind get only statuses, types and bodies that the document names."""
    output = fuzzed(sidecar, tmp_path)
    assert "No issues found" in output, output[-6000:]
    faults = [
        line for line in sidecar.log if "Exception in ASGI" in line or '"part_failed"' in line
    ]
    assert faults == []


def test_the_fuzzer_can_complain(sidecar: SidecarProcess, tmp_path: Path) -> None:
    """A document with a missing status and a wrong field does not pass."""
    document = json.loads(OPENAPI.read_bytes())
    document["paths"] = {path: document["paths"][path] for path in ("/vapi/webhook", "/readyz")}
    del document["paths"]["/vapi/webhook"]["post"]["responses"]["400"]
    document["components"]["schemas"]["Readiness"]["properties"]["ready"] = {"type": "string"}
    output = fuzzed(sidecar, tmp_path, document)
    assert "Undocumented status code" in output
    assert "Response violates schema" in output
