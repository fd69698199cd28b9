"""Fixture: the real App Server, one for the whole test run.

Tests share it, so each makes its own agents. They are skipped where `make app-server` has not run,
except on CI, where a missing server is a failure.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app_server.stack import LETTA, AppServerStack, installed
from tests.stack import not_installed


@pytest.fixture(scope="session")
def app_server_program() -> Path:
    """The server's program, for tests that have the sidecar start it."""
    if not installed():
        not_installed("the App Server is not installed: run `make app-server` (and install git)")
    return LETTA


@pytest.fixture(scope="session")
def app_server(
    app_server_program: Path,  # noqa: ARG001 - skips, or fails, where there is none
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[AppServerStack]:
    """A server that requires `app_server.token`."""
    with AppServerStack(tmp_path_factory.mktemp("app-server")) as stack:
        yield stack
