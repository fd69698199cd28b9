"""Fixtures: one PostgreSQL and one pooler for the whole test run."""

from collections.abc import Iterator

import pytest

from tests.postgres.pooler import PROGRAM, Pooler
from tests.postgres.server import PostgresServer, binaries
from tests.schedule import only_here
from tests.stack import not_installed


@pytest.fixture(scope="session")
def postgres(
    tmp_path_factory: pytest.TempPathFactory, xdist_process: str
) -> Iterator[PostgresServer]:
    """A server."""
    if binaries() is None:
        not_installed("PostgreSQL is not installed: run `make debian`")
    only_here(tmp_path_factory, xdist_process, "postgres")
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def pooler(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Pooler]:
    """A pooler in front of the server."""
    if not PROGRAM.exists():
        not_installed("pgbouncer is not installed: run `make debian`")
    with Pooler(tmp_path_factory.mktemp("pooler"), postgres_port=postgres.port) as running:
        yield running
