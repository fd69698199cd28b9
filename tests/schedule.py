"""Which tests run in one process, one after the other, where `make test` runs several processes.

Tests of one real server share its process, so that it is started once; only `test_move` starts an
App Server beside the classic one. So do the tests of a module that starts processes of its own: its
fixtures are then made once, and its processes do not compete.
All others go wherever there is room. Decided by a test's id alone: pytest-xdist 3.8 reads its own
mark `xdist_group` from an attribute that pytest 9.2 no longer has, and ignores it silently.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final, TypeVar

import pytest
from typing_extensions import override
from xdist.scheduler.loadscope import (  # pyright: ignore[reportMissingTypeStubs]
    LoadScopeScheduling,
)

LETTA: Final = "letta"
APP_SERVER: Final = "app-server"
POSTGRES: Final = "postgres"
_SERVER_OF_MODULE: Final = {
    "test_letta_dies": LETTA,
    "test_real_letta": LETTA,
    "test_forget_real_letta": LETTA,
    "test_move": LETTA,
    "test_app_server": APP_SERVER,
    "test_app_server_traps": APP_SERVER,
    "test_postgres": POSTGRES,
    "test_replicas": POSTGRES,
    "test_upgrade": POSTGRES,
    "test_postgres_journal": POSTGRES,
    "test_journal_copy": POSTGRES,
    "test_call_goes_on": POSTGRES,
}
_SERVER_OF_TEST: Final = {"test_the_second_call_recalls_what_letta_made_of_the_first": LETTA}
_KIND: Final = re.compile(r"[\[-](real|app-server)[-\]]")
"""The parameter of a test of `test_letta`, by which it needs a real server."""
_ONE_PROCESS_EACH: Final = {"e2e", "chaos"}
_ALSO: Final = {"test_vapi_types"}
T = TypeVar("T")


def group_of(nodeid: str) -> str:
    """Return the name of the group of a test; its own id where it has none."""
    path, _, test = nodeid.partition("::")
    module = PurePosixPath(path).stem
    if re.search(r"[\[-]postgres[-\]]", test):
        return POSTGRES
    if module == "test_letta" and (kind := _KIND.search(test)):
        return APP_SERVER if kind[1] == APP_SERVER else LETTA
    if server := _SERVER_OF_MODULE.get(module) or _SERVER_OF_TEST.get(test):
        return server
    layer = PurePosixPath(path).parent.name
    return module if layer in _ONE_PROCESS_EACH or module in _ALSO else nodeid


def mixed(groups: Mapping[str, Sequence[T]]) -> list[T]:
    """Return all tests with those that wait, in groups, spread among those that compute.

    Groups of several tests mostly wait for their servers and processes. One after the other they
    would leave the cores idle in the first minutes, and the tests that compute would compete for
    them in the last.

    Args:
        groups: The tests of each group, by its name, as they were collected.
    """
    waiting = [tests for name, tests in groups.items() if not _is_single(name)]
    single = [test for name, tests in groups.items() if _is_single(name) for test in tests]
    first, rest = waiting[:2], waiting[2:]
    share = -(-len(single) // max(1, len(rest)))
    order = [test for tests in first for test in tests]
    for number in range(max(1, len(rest))):
        order += single[number * share : (number + 1) * share]
        order += rest[number] if number < len(rest) else []
    return order


def _is_single(group: str) -> bool:
    return "::" in group


class GroupedScheduling(LoadScopeScheduling):
    """Gives each group to one process, in the order in which the groups were collected."""

    @override
    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def only_here(tmp_path_factory: pytest.TempPathFactory, worker: str, server: str) -> None:
    """Note that a test process starts a shared server; fail where another process has done so.

    Args:
        tmp_path_factory: Of this process.
        worker: Its name with pytest-xdist; empty without.
        server: The server.

    Raises:
        AssertionError: tests of the server were given to two processes.
    """
    if not worker:
        return
    started = tmp_path_factory.getbasetemp().parent / f"{server}.started"
    try:
        with started.open("x") as file:
            file.write(worker)
    except FileExistsError:
        message = f"{server} was started by {started.read_text()} already: see tests/schedule.py"
        raise AssertionError(message) from None
