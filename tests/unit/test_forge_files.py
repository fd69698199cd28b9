"""The workflow for a public forge runs what `make check` runs, on each supported Python."""

import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.documents import ROOT

pytestmark = pytest.mark.unit

WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
STEPS: list[dict[str, Any]] = [step for job in JOBS.values() for step in job["steps"]]


def supported() -> list[str]:
    """Every minor version between the bounds of `requires-python`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"])
    assert bounds is not None
    return [f"3.{minor}" for minor in range(int(bounds[1]), int(bounds[2]))]


def test_each_step_of_the_workflow_is_a_make_target() -> None:
    """The workflow runs the make targets of `make check`, and both halves of the tests."""
    makefile = (ROOT / "Makefile").read_text()
    check = re.search(r"^check: ([a-z -]+?) *##", makefile, re.MULTILINE)
    assert check is not None
    run = [step["run"] for step in STEPS if "run" in step]
    assert sorted(run) == sorted(f"make {target}" for target in (*check[1].split(), "test", "slow"))


def test_the_tests_run_on_every_python_that_is_supported() -> None:
    """The matrix lists each Python of `requires-python`, and each run uses its own."""
    tests = JOBS["tests"]
    assert tests["strategy"]["matrix"]["python"] == supported()
    assert tests["env"]["PYTHON"] == "python${{ matrix.python }}"
    assert "PYTHON ?=" in (ROOT / "Makefile").read_text()


def test_actions_are_named_by_the_hash_of_a_commit() -> None:
    """Each action is pinned to a commit's hash, with its version in a comment."""
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    used = re.findall(r"uses: (.*)", text)
    assert len(used) == sum("uses" in step for step in STEPS)
    pinned = r"actions/[a-z-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+"
    assert [use for use in used if not re.fullmatch(pinned, use)] == []


def test_a_job_reads_the_tree_and_may_do_nothing_else() -> None:
    """The workflow as a whole has no permission, and each job can only read."""
    assert WORKFLOW["permissions"] == {}
    assert [job["permissions"] for job in JOBS.values()] == [{"contents": "read"}] * len(JOBS)
