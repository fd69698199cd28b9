"""Fixtures for every test, and how tests share the processes of `make test`."""

import gc
import os

import pytest
import trio.testing
from hypothesis import HealthCheck, settings
from xdist.remote import Producer  # pyright: ignore[reportMissingTypeStubs]

from tests.schedule import GroupedScheduling, group_of, mixed

pytest_plugins = [
    "tests.letta_server.fixtures",
    "tests.app_server.fixtures",
    "tests.postgres.fixtures",
]

# The time that an example takes depends on the machine's load, not on the product.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> str | tuple[str, dict[str, object]]:
    """The event loop of a test: asyncio, as in production, or those that its `backend` mark names.

    `pytest.mark.backend("asyncio", "trio")` runs it on each; `backend("virtual-time")` runs it on
    trio with a clock that jumps to the next deadline as soon as all tasks wait. A module overrides
    this fixture if it has an async fixture that outlives a test, or one that chooses the loop.
    """
    asked = getattr(request, "param", "asyncio")
    if asked == "virtual-time":
        return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return asked


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once on each loop that its `backend` mark names."""
    mark = metafunc.definition.get_closest_marker("backend")
    if mark is not None and "anyio_backend" in metafunc.fixturenames:
        metafunc.parametrize("anyio_backend", mark.args, indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes run them, mix the tests that wait with those that compute."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        groups: dict[str, list[pytest.Item]] = {}
        for item in items:
            groups.setdefault(group_of(item.nodeid), []).append(item)
        items[:] = mixed(groups)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was collected, which lives to the end."""
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupedScheduling:
    """Run the tests of a real server, and of a slow module, in one process each."""
    return GroupedScheduling(config, log)


@pytest.fixture(scope="session")
def xdist_process() -> str:
    """The name of this process with pytest-xdist, or empty."""
    return os.environ.get("PYTEST_XDIST_WORKER", "")
