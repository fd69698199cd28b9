"""The scripts that other tests are written in."""

from typing import Any

import pytest

from tests.playbook import Playbook

pytestmark = pytest.mark.unit


def near(number: float) -> Any:
    """A placeholder for about as much."""
    return pytest.approx(number)


def counting(happens: int) -> list[float]:
    """Do as many things as a number says: 1, 2, 3 …, each a little more than it should be."""
    return [n + 1e-9 for n in range(1, happens + 1)]


def test_a_part_that_follows_its_script_passes() -> None:
    """About what happens, nothing, one or several things are done; a placeholder matches one."""
    assert Playbook(counting) >> 1 << near(1) >> 0 >> 2 << near(1) << near(2)


@pytest.mark.parametrize(
    ("script", "differs"),
    [
        (Playbook(counting) >> 1, ["+ << 1.000000001"]),
        (Playbook(counting) >> 0 << 7.0, ["- << 7.0"]),
        (Playbook(counting) >> 2 << near(1) << 3.0, ["- << 3.0", "+ << 2.000000001"]),
    ],
    ids=["something more", "something less", "something else"],
)
def test_a_part_that_does_otherwise_fails_with_a_diff(
    script: Playbook[int, float], differs: list[str]
) -> None:
    """The error shows the whole script, with what was missed and what was done in its place."""
    with pytest.raises(AssertionError, match="not as in the script") as failed:
        assert script
    lines = str(failed.value).splitlines()[1:]
    assert all(line in lines for line in differs)
    assert lines[0].startswith("  >> ")


def test_nothing_is_done_before_something_happens() -> None:
    """A script that begins with what is done is no script."""
    with pytest.raises(ValueError, match="nothing has happened"):
        assert Playbook(counting) << 1.0
