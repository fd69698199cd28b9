"""Fixtures: the real Letta server, one of each kind for the whole test run.

Tests share it, so each makes its own agents. They are skipped where `make letta-server` has not
run, except on CI, where a missing server is a failure.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.letta_server.stack import LettaStack, installed
from tests.schedule import only_here
from tests.stack import not_installed

PASSWORD = "a password for tests"


@pytest.fixture(scope="session")
def letta_server(
    tmp_path_factory: pytest.TempPathFactory, xdist_process: str
) -> Iterator[LettaStack]:
    """A server with Redis; `letta_server.api_key` is the key that it requires."""
    only_here(tmp_path_factory, xdist_process, "letta")
    yield from _running(tmp_path_factory.mktemp("letta"), redis=True, password=PASSWORD)


@pytest.fixture(scope="session")
def letta_server_without_redis(
    tmp_path_factory: pytest.TempPathFactory, xdist_process: str
) -> Iterator[LettaStack]:
    """A server that refuses background posts and accepts any key."""
    only_here(tmp_path_factory, xdist_process, "letta-no-redis")
    yield from _running(tmp_path_factory.mktemp("letta-no-redis"), redis=False, password="")


def _running(workdir: Path, *, redis: bool, password: str) -> Iterator[LettaStack]:
    if not installed():
        not_installed("the real Letta server is not installed: run `make letta-server`")
    with LettaStack(workdir, redis=redis, password=password) as stack:
        yield stack
