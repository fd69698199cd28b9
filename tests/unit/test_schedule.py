"""Which tests share a process."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.schedule import APP_SERVER, LETTA, group_of, mixed, only_here

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/contract/test_letta.py::test_x[real-no-redis]", LETTA),
        ("tests/contract/test_letta.py::test_x[a long text-real]", LETTA),
        ("tests/contract/test_letta.py::test_x[app-server]", APP_SERVER),
        ("tests/chaos/test_letta_dies.py::test_x", LETTA),
        ("tests/e2e/test_app_server.py::test_x", APP_SERVER),
        ("tests/e2e/test_cli.py::test_x[real]", "test_cli"),
        ("tests/contract/test_vapi_types.py::test_x[call]", "test_vapi_types"),
    ],
)
def test_tests_that_share_a_process_have_one_group(nodeid: str, group: str) -> None:
    """Tests of a real server run in one process, and so do those of a module with processes."""
    assert group_of(nodeid) == group


@pytest.mark.parametrize(
    "nodeid",
    [
        "tests/contract/test_letta.py::test_x[stand-in]",
        "tests/unit/test_vapi_call.py::test_x[real]",
    ],
)
def test_other_tests_go_wherever_there_is_room(nodeid: str) -> None:
    """A test that needs no process of its own is a group of its own."""
    assert group_of(nodeid) == nodeid


@given(st.integers(0, 6), st.integers(0, 40))
def test_what_waits_is_mixed_with_what_computes(waiting: int, single: int) -> None:
    """Every test runs once, a group's tests one after the other, and no core's work comes last."""
    groups = {f"g{n}": [f"g{n}-{m}" for m in range(3)] for n in range(waiting)}
    singles = {f"t.py::t{n}": [f"t{n}"] for n in range(single)}
    order = mixed({**groups, **singles})
    assert sorted(order) == sorted(test for tests in (groups | singles).values() for test in tests)
    for tests in groups.values():
        assert order[order.index(tests[0]) :][:3] == tests
    if waiting > 2 and single:
        first = [test for tests in list(groups.values())[:2] for test in tests]
        assert order[: len(first) + 1] == [*first, "t0"]
        assert order[-1] in groups[f"g{waiting - 1}"]


def test_a_server_that_two_processes_start_fails_the_second(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Tests of one server that were given to two processes say so, and where to mend it."""
    name = f"server-{Path(tmp_path_factory.mktemp('name')).name}-{id(tmp_path_factory)}"
    only_here(tmp_path_factory, "", name)
    only_here(tmp_path_factory, "gw0", name)
    with pytest.raises(AssertionError, match=r"gw0 already: see tests/schedule\.py"):
        only_here(tmp_path_factory, "gw1", name)
