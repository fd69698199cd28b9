"""The journal's tables in a PostgreSQL database: numbered migrations, each applied once."""

import re
from importlib import resources
from typing import Final, LiteralString, cast

from sidecar.errors import JournalRefused
from sidecar.journal.postgres.connection import STATEMENT_S, Connection

# All writes wait for a migration: it waits for no reader of a table for long.
_IN_TIME: Final = cast(
    "LiteralString",
    f"SET LOCAL lock_timeout = '{STATEMENT_S}s';"
    f" SET LOCAL idle_in_transaction_session_timeout = '{STATEMENT_S}s'",
)
_LOCK: Final = 0x4C534A31
"""Of one migration at a time; the same figure as in the header of the SQLite file."""
OLDEST_READER: Final = 1
"""The lowest schema version whose sidecars still work on the newest tables."""


def migrations() -> dict[int, str]:
    """Return the SQL of each migration by its number."""
    found: dict[int, str] = {}
    for file in resources.files("sidecar.journal.postgres").joinpath("migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})\.sql", file.name):
            found[int(match[1])] = file.read_text("utf-8")
    return found


SCHEMA_VERSION: Final = max(migrations())


def version_of(connection: Connection) -> int:
    """Return the version of the journal's tables; 0: there are none."""
    ((there,),) = connection.execute("SELECT to_regclass('journal_schema') IS NOT NULL").fetchall()
    if not there:
        return 0
    ((version,),) = connection.execute("SELECT max(version) FROM journal_schema").fetchall()
    return version or 0


def refuse_newer(connection: Connection) -> None:
    """Refuse tables that this version of the sidecar can't work on.

    Raises:
        JournalRefused: a newer sidecar made them, and says so.
        psycopg.Error: the database refused.
    """
    ((version, oldest),) = connection.execute(
        "SELECT coalesce(max(version), 0), coalesce(max(oldest_reader), 0) FROM journal_schema"
    ).fetchall()
    if oldest > SCHEMA_VERSION:
        raise JournalRefused(
            f"the journal's tables are of a newer sidecar (schema {version})",
            hint="start that version",
        )


def migrate(connection: Connection) -> list[int]:
    """Apply what is missing, in one transaction; return the numbers of what was applied.

    Raises:
        JournalRefused: as `refuse_newer`.
        psycopg.Error: the database refused, or another session had a table locked for too long;
            nothing was changed.
    """
    applied: list[int] = []
    if version_of(connection) >= SCHEMA_VERSION:  # needs no right to make tables
        refuse_newer(connection)
        return applied
    with connection.transaction():
        connection.execute(_IN_TIME)
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        connection.execute(
            "CREATE TABLE IF NOT EXISTS journal_schema("
            " version INTEGER PRIMARY KEY, oldest_reader INTEGER NOT NULL,"
            " applied TIMESTAMPTZ NOT NULL DEFAULT now())"
        )
        refuse_newer(connection)
        version = version_of(connection)
        if version:  # every write of a sidecar begins with this row: none is under way from here on
            connection.execute("SELECT 1 FROM writer FOR UPDATE")
        for number, sql in sorted(migrations().items()):
            if number > version:
                connection.execute(cast("LiteralString", sql))
                connection.execute(
                    "INSERT INTO journal_schema(version, oldest_reader) VALUES (%s, %s)",
                    [number, OLDEST_READER],
                )
                applied.append(number)
    return applied
