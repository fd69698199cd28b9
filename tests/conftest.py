"""Fixtures for every test, and which tests share a process when `make test` runs two at a time."""

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and no test asserts a time.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

pytest_plugins = ["tests.letta_server.fixtures", "tests.app_server.fixtures"]


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
