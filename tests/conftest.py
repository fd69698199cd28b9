"""Fixtures for every test, and which tests share a process when `make test` runs two at a time."""

import pytest
import trio.testing
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.letta_server.fixtures", "tests.app_server.fixtures"]

# How long an example takes says how busy the machine is, and nothing of the product.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> str | tuple[str, dict[str, object]]:
    """The event loop of a test: asyncio, as in production, or the ones its `backend` mark names.

    `pytest.mark.backend("asyncio", "trio")` runs it on each; `backend("virtual-time")` on trio
    with a clock that jumps to the next deadline as soon as all tasks wait. Where a fixture that
    outlives a test is async, or decides on the loop, its module overrides this one.
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of one real server into one process, and each other slow module into one.

    A server is then started once, and tests that share a module's processes stay together. Tests
    in virtual time go wherever there is room.
    """
    for item in items:
        if item.get_closest_marker("real_letta"):
            app_server = "app_server" in item.path.name or "app-server" in item.name
            item.add_marker(pytest.mark.xdist_group("app-server" if app_server else "letta"))
        elif item.get_closest_marker("e2e") or item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
