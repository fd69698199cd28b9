"""Fixture: the real App Server, one for the whole test run.

Tests share it, so each makes agents of its own. They skip where `make app-server` has not run,
except on CI, where a missing server is a failure.
"""

import os
from collections.abc import Iterator

import pytest

from tests.app_server.stack import AppServerStack, installed


@pytest.fixture(scope="session")
def app_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServerStack]:
    """A server that wants `app_server.token`."""
    if not installed():
        absent = "the App Server is not installed: run `make app-server` (and install git)"
        if os.environ.get("CI"):
            pytest.fail(absent)
        pytest.skip(absent)
    with AppServerStack(tmp_path_factory.mktemp("app-server")) as stack:
        yield stack
