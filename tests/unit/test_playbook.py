"""The scripts that other tests are written in."""

from dataclasses import dataclass
from typing import Any

import pytest
from typing_extensions import override

from tests.playbook import Playbook

pytestmark = pytest.mark.unit


def near(number: float) -> Any:
    """A placeholder for about as much."""
    return pytest.approx(number)


def counting(happens: int) -> list[float]:
    """Do as many things as a number says: 1, 2, 3 …, each a little more than it should be."""
    return [n + 1e-9 for n in range(1, happens + 1)]


class Adding:
    """Say the sum of all that happened so far."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, happens: int) -> list[int]:
        if happens < 0:
            raise OverflowError("below zero")
        self.total += happens
        return [self.total]


@dataclass
class Alike:
    """Reads as any other of its kind."""

    number: int

    @override
    def __str__(self) -> str:
        return "a number"


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


def test_the_diff_names_the_step_and_ends_there() -> None:
    """Of a script that goes wrong in the middle, what agreed reads as the script, and no more."""
    script = Playbook(counting) >> 1 << near(1) >> 3 << near(1) << near(3) >> 2 << near(7)
    with pytest.raises(AssertionError) as failed:
        assert script
    assert str(failed.value).splitlines() == [
        "not as in the script, step 2: >> 3",
        "  >> 1",
        f"  << {near(1)}",
        "  >> 3",
        f"  << {near(1)}",
        "+ << 2.000000001",
        f"  << {near(3)}",
    ]


def test_what_reads_alike_is_not_the_same() -> None:
    """What was done is compared, not what it reads as."""

    def alike(happens: int) -> list[Alike]:
        return [Alike(happens)]

    with pytest.raises(AssertionError, match="step 1: >> 2"):
        assert Playbook(alike) >> 2 << Alike(3)


def test_a_script_goes_on_where_it_was_asserted() -> None:
    """What was played is not played again; a fault in what was added is shown behind it."""
    adding = Adding()
    script = Playbook(adding) >> 1 << 1
    assert script
    assert adding.total == 1
    assert script >> 2 << 3
    assert adding.total == 3
    with pytest.raises(AssertionError, match="step 3: >> 4") as failed:
        assert script >> 4 << 4
    lines = str(failed.value).splitlines()[1:]
    assert [line for line in lines if not line.startswith("?")] == [
        *("  >> 1", "  << 1", "  >> 2", "  << 3"),
        *("  >> 4", "- << 4", "+ << 7"),
    ]


def test_an_error_of_the_part_names_the_step() -> None:
    """What a part raises is the test's failure as it is, with a note of what had happened."""
    with pytest.raises(OverflowError) as failed:
        assert Playbook(Adding()) >> 1 << 1 >> -1
    assert failed.value.__notes__ == ["at step 2: >> -1"]


def test_nothing_is_done_before_something_happens() -> None:
    """A script that begins with what is done is no script, nor does one go on with it."""
    with pytest.raises(ValueError, match="nothing has happened"):
        assert Playbook(counting) << 1.0
    script = Playbook(counting) >> 1 << near(1)
    assert script
    with pytest.raises(ValueError, match="nothing has happened"):
        assert script << 2.0
