"""The files in ops/ and .github/ pass linters of their kind, offline, without being run."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.dockerfile import ROOT

pytestmark = pytest.mark.e2e

OPS = ROOT / "ops"
FORGE = ROOT / ".github"
WORKFLOW = FORGE / "workflows/ci.yml"
KUBERNETES = ("1.29", "1.37")
"""The first with native sidecar containers by default, and the newest with locked schemas."""
EXPOSURE_MAX = 15
"""An exposure of `systemd-analyze security` times ten; 100 is a service without limits."""


def linter(name: str) -> str:
    """Return a linter that ship.txt installs; CI has all of them."""
    path = ROOT / ".ship-venv/bin" / name
    if not path.exists():
        assert not os.environ.get("CI"), "CI lints what it ships: make .ship-venv/.installed"
        pytest.skip(f"{name} is not installed: make .ship-venv/.installed")
    return str(path)


def debian(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        assert not os.environ.get("CI"), f"CI lints what it ships: apt-get install {package}"
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return found


def clean(command: Sequence[str], *, silent: bool = False) -> None:
    """Run a linter that must find nothing; with `silent` it must not even warn."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    assert not (silent and said.strip()), said


def test_the_dockerfile_passes_hadolint() -> None:
    """Hadolint, with its shellcheck, finds nothing."""
    clean([linter("hadolint"), "--no-color", "--failure-threshold=style", str(OPS / "Dockerfile")])


def test_hadolint_would_find_a_fault(tmp_path: Path) -> None:
    """Hadolint finds a Dockerfile that runs as root and pins nothing."""
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN apt-get install curl\n")
    with pytest.raises(AssertionError, match="DL3006"):
        clean([linter("hadolint"), "--no-color", str(tmp_path / "Dockerfile")])


def test_the_compose_file_fits_the_compose_specification() -> None:
    """Each key is one that compose knows, with a value of its kind."""
    check = [linter("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    clean([*check, str(OPS / "compose.yaml")])


def test_a_wrong_compose_file_does_not_fit(tmp_path: Path) -> None:
    """A key that compose does not know is refused."""
    wrong = yaml.safe_load((OPS / "compose.yaml").read_text())
    wrong["services"]["sidecar"]["read_onyl"] = True
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(wrong))
    check = [linter("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    with pytest.raises(AssertionError, match="read_onyl"):
        clean([*check, str(tmp_path / "compose.yaml")])


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifests_fit_the_schemas_of_kubernetes(version: str) -> None:
    """Each object and each of its fields is known to this version of Kubernetes."""
    check = [linter("kubernetes-validate"), "--strict", "-k", version]
    clean([*check, str(OPS / "kubernetes/voice-agent.yaml")])


def test_a_wrong_manifest_does_not_fit(tmp_path: Path) -> None:
    """A misspelt field does not fit the schemas."""
    text = (OPS / "kubernetes/voice-agent.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(text.replace("restartPolicy: Always", "restartPolcy: no"))
    with pytest.raises(AssertionError, match="restartPolcy"):
        clean([linter("kubernetes-validate"), "--strict", str(tmp_path / "wrong.yaml")])


def test_all_yaml_is_tidy() -> None:
    """Yamllint finds nothing, not even a duplicate key."""
    config = str(OPS / "yamllint.yaml")
    clean([linter("yamllint"), "--strict", "-c", config, str(OPS), str(FORGE)])


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.github-workflows", "workflows/ci.yml"),
        ("custom.github-workflows-require-timeout", "workflows/ci.yml"),
        ("vendor.dependabot", "dependabot.yml"),
        ("vendor.github-issue-config", "ISSUE_TEMPLATE/config.yml"),
        ("vendor.github-issue-forms", "ISSUE_TEMPLATE/fault.yml"),
        ("vendor.github-issue-forms", "ISSUE_TEMPLATE/wish.yml"),
    ],
)
def test_the_files_of_the_forge_fit_its_schemas(schema: str, file: str) -> None:
    """Workflow, update configuration and issue forms fit GitHub's schemas."""
    clean([linter("check-jsonschema"), "--builtin-schema", schema, str(FORGE / file)])


def test_every_file_of_the_forge_is_judged() -> None:
    """Every YAML file in .github/ is checked above."""
    listed = {
        "workflows/ci.yml",
        "dependabot.yml",
        *(f"ISSUE_TEMPLATE/{name}.yml" for name in ("config", "fault", "wish")),
    }
    assert {path.relative_to(FORGE).as_posix() for path in FORGE.rglob("*.y*ml")} == listed


def zizmor(directory: Path) -> list[str]:
    flags = ["--offline", "--no-progress", "--strict-collection", "--pedantic", "--quiet"]
    return [linter("zizmor"), *flags, str(directory)]


def test_the_workflow_passes_zizmor() -> None:
    """Every action is pinned, jobs have no needless rights, and no foreign text runs in a shell."""
    clean(zizmor(FORGE))


@pytest.mark.parametrize(
    ("good", "bad", "audit"),
    [
        ("checkout@3d3c42e5aac5ba805825da76410c181273ba90b1", "checkout@v7", "unpinned-uses"),
        ("permissions: {}", "permissions: write-all", "excessive-permissions"),
        ("run: make lint", "run: echo ${{ github.head_ref }}", "template-injection"),
    ],
)
def test_zizmor_would_find_a_fault(good: str, bad: str, audit: str, tmp_path: Path) -> None:
    """Zizmor finds a moving tag, a job with every right, and a branch's name in a shell."""
    (tmp_path / ".github/workflows").mkdir(parents=True)
    text = WORKFLOW.read_text()
    assert good in text
    (tmp_path / ".github/workflows/ci.yml").write_text(text.replace(good, bad))
    with pytest.raises(AssertionError, match=audit):
        clean(zizmor(tmp_path / ".github"))


@pytest.mark.parametrize("unit", ["voice-sidecar", "voice-worker"])
def test_systemd_takes_the_units(unit: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` finds no unknown setting and no missing program."""
    analyze = debian("systemd-analyze", "systemd")
    copies: list[str] = []
    for source in (OPS / "systemd").glob("*.service"):
        # The programs are installed on the operator's machine, so any program replaces them.
        text = source.read_text().replace("=/opt/voice-sidecar/bin/", f"={tmp_path}/")
        (tmp_path / source.name).write_text(text)
        copies.append(str(tmp_path / source.name))
    for program in ("sidecar", "python"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    clean([analyze, "verify", "--man=no", *copies], silent=True)
    (tmp_path / f"{unit}.service").write_text(
        (tmp_path / f"{unit}.service").read_text().replace("PrivateTmp", "PrivatTmp")
    )
    with pytest.raises(AssertionError, match="Unknown key 'PrivatTmp'"):
        clean([analyze, "verify", "--man=no", str(tmp_path / f"{unit}.service")], silent=True)


@pytest.mark.parametrize("unit", ["voice-sidecar", "voice-worker"])
def test_the_units_are_closed(unit: str) -> None:
    """`systemd-analyze security` finds a low exposure."""
    analyze = debian("systemd-analyze", "systemd")
    threshold = f"--threshold={EXPOSURE_MAX}"
    path = str(OPS / f"systemd/{unit}.service")
    clean([analyze, "security", "--offline=true", "--no-pager", threshold, path])
