"""Databases that no journal can be in, and what is said of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import LiteralString, cast

from sidecar.journal.postgres.connection import connect
from sidecar.journal.postgres.schema import SCHEMA_VERSION
from tests.postgres.server import PostgresServer


def asked(url: str, sql: str) -> list[tuple[object, ...]]:
    """Run SQL of a test's own; returns its rows."""
    with connect(url) as connection:
        cursor = connection.execute(cast("LiteralString", sql))
        return cursor.fetchall() if cursor.description else []


@dataclass(frozen=True)
class Wrong:
    """One of them.

    Attributes:
        arrange: Makes it; returns its URL.
        message: Is in what is said.
        hint: Is in the remedy.
        reads: A command that only reads meets it too.
    """

    arrange: Callable[[PostgresServer], str]
    message: str
    hint: str
    reads: bool = True


def _closed_port(postgres: PostgresServer) -> str:
    return postgres.url("postgres").replace(f":{postgres.port}/", ":1/")


def _without_rights(postgres: PostgresServer) -> str:
    new = postgres.database(migrated=False)
    asked(new, "DROP ROLE IF EXISTS guest")
    asked(new, "CREATE ROLE guest LOGIN")
    return new.replace("sidecar@", "guest@")


def _too_new(postgres: PostgresServer) -> str:
    new, later = postgres.database(), SCHEMA_VERSION + 1
    asked(new, f"INSERT INTO journal_schema(version, oldest_reader) VALUES ({later}, {later})")
    return new


def _read_only(postgres: PostgresServer) -> str:
    new = postgres.database()
    with connect(postgres.url("postgres")) as admin:
        name = new.rpartition("/")[2]
        admin.execute(
            cast("LiteralString", f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        )
    return new


WRONG = {
    "port": Wrong(_closed_port, "does not answer", "start it, or check SIDECAR_JOURNAL_URL"),
    "database": Wrong(lambda at: at.url("nowhere"), "does not exist", "create it"),
    "role": Wrong(
        lambda at: at.database().replace("sidecar@", "nobody@"),
        "refuses the sign-in",
        "check SIDECAR_JOURNAL_URL",
    ),
    "rights": Wrong(_without_rights, "refuses a right", "own its schema", reads=False),
    "newer": Wrong(_too_new, "are of a newer sidecar", "start that version"),
    "read-only": Wrong(_read_only, "is read-only", "name the primary", reads=False),
}
