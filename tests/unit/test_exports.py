"""The package's public names: one short path for a LiveKit worker, and the version."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sidecar
import sidecar.livekit
from sidecar import __main__ as command
from sidecar.worker import call
from sidecar.worker.livekit import job, memory, voice_parts
from tests.documents import fences

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
BEHIND: tuple[ModuleType, ...] = (call, job, memory, voice_parts)
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS_OF_THE_SIDECAR = {
    *("access", "app", "calls", "channels", "cli", "config", "delivery", "http", "jobs"),
    *("journal", "letta", "memory", "testing", "tools"),
}


def names_of(requirements: list[str]) -> set[str]:
    """Return the names of the packages in a list of requirements."""
    return {re.split(r"[^a-z0-9-]", line)[0] for line in requirements}


def of_server() -> set[str]:
    """Return the module names of the extra `server`."""
    packages = names_of(PROJECT["optional-dependencies"]["server"])
    return {{"phonenumberslite": "phonenumbers"}.get(n, n.replace("-", "_")) for n in packages}


def test_the_public_path_exports_what_the_modules_behind_it_do() -> None:
    """`sidecar.livekit` exports exactly the public names of the modules behind it."""
    combined = [name for module in BEHIND for name in module.__all__]
    assert set(combined) == set(sidecar.livekit.__all__)
    assert not [name for name, times in Counter(combined).items() if times > 1]


def test_the_public_path_holds_imports_and_no_code() -> None:
    """`sidecar/livekit.py` imports the names that it exports, and does nothing else."""
    docstring, *body, exported = ast.parse((ROOT / "sidecar/livekit.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(exported, ast.Assign)
    assert ast.unparse(exported.targets[0]) == "__all__"
    imports = [node for node in body if isinstance(node, ast.ImportFrom)]
    assert imports == body
    assert {name.name for node in imports for name in node.names} == set(sidecar.livekit.__all__)


@pytest.mark.parametrize("name", sidecar.livekit.__all__)
def test_a_public_name_is_the_one_of_its_module(name: str) -> None:
    """A name of `sidecar.livekit` is the module's own object, and it is documented."""
    (owner,) = (module for module in BEHIND if name in module.__all__)
    assert getattr(sidecar.livekit, name) is getattr(owner, name)
    assert getattr(owner, name).__module__ == owner.__name__
    assert getattr(owner, name).__doc__


def test_documents_and_examples_use_the_public_path_alone() -> None:
    """Code that users copy imports from `sidecar.livekit` only, and only names that it has."""
    shown = {
        fence.document: "\n".join(fence.lines) for fence in fences() if fence.language == "python"
    }
    for path in (ROOT / "voice_worker.py", *(ROOT / "examples").rglob("*.py")):
        shown[path.name] = path.read_text()
    imported = [
        (found["module"], name.strip())
        for text in shown.values()
        for found in re.finditer(
            r"^from (?P<module>sidecar[\w.]*) import (?P<names>[\w, ]+)", text, re.MULTILINE
        )
        for name in found["names"].split(",")
    ]
    assert ("sidecar.livekit", "CallerMemory") in imported
    assert {module for module, _ in imported} == {"sidecar.livekit"}
    assert {name for _, name in imported} <= set(sidecar.livekit.__all__)


def test_a_worker_imports_nothing_of_the_sidecar() -> None:
    """`import sidecar.livekit` imports no package of the extra `server` and no sidecar module."""
    # livekit-agents imports prometheus-client itself; that doesn't count here.
    code = (
        "import sys, json, livekit.agents.inference; before = set(sys.modules)\n"
        "import sidecar.livekit; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported: list[str] = json.loads(done.stdout)
    assert "sidecar.worker.link" in imported
    assert not {name.partition(".")[0] for name in imported} & of_server()
    rooms = {name.split(".")[1] for name in imported if name.startswith("sidecar.")}
    assert not rooms & ROOMS_OF_THE_SIDECAR


def test_the_version_is_that_of_the_installed_package() -> None:
    """`sidecar.__version__` is the version in pyproject.toml, and other names are missing."""
    assert sidecar.__version__ == PROJECT["version"]
    with pytest.raises(AttributeError):
        _ = sidecar.__vision__


def test_the_command_knows_what_the_sidecar_needs() -> None:
    """The modules that `sidecar` looks for before it starts are those of the extra `server`."""
    assert set(command.SERVER_MODULES) == of_server()


@pytest.mark.parametrize("missing", ["starlette", "apsw", "typer"])
def test_the_command_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a package missing, `sidecar` prints one line with the remedy and exits with 2."""

    def find_spec(name: str) -> object | None:
        return None if name == missing else object()

    monkeypatch.setattr(command, "find_spec", find_spec)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "pip install 'letta-voice-sidecar[server]'" in error
    assert error.count("\n") == 1


LOCKS = {
    "worker": (),
    "speech": ("speech",),
    "run": ("server",),
    "dev": ("server", "speech", "dev"),
}


def test_lock_files_hold_their_extras_and_agree() -> None:
    """Lock files hold their extras at the same versions, and the workers' none of `server`."""
    extras = {name: names_of(lines) for name, lines in PROJECT["optional-dependencies"].items()}
    pinned: dict[str, dict[str, set[str]]] = {}
    for lock in LOCKS:
        text = (ROOT / f"requirements/{lock}.txt").read_text()
        pinned[lock] = {}
        for line in re.findall(r"^[a-z0-9].*?(?= \\$)", text, re.MULTILINE):
            name, _, version = line.partition("==")
            pinned[lock].setdefault(name, set()).add(version.partition(" ")[0])
    for lock, chosen in LOCKS.items():
        wanted = names_of(PROJECT["dependencies"]).union(*(extras[extra] for extra in chosen))
        assert wanted <= pinned[lock].keys(), lock
        assert all(pinned["dev"][name] == found for name, found in pinned[lock].items()), lock
    # livekit-agents depends on these itself.
    of_livekit = {"prometheus-client", "rich", "typer"}
    for lock in ("worker", "speech"):
        assert not (extras["server"] - of_livekit) & pinned[lock].keys()
