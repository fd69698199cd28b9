"""Reports for people, read from the journal's SQLite file while a sidecar may be writing it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import apsw

from sidecar.errors import JournalError, NoJournal
from sidecar.journal.sql import SqlReports
from sidecar.journal.sqlite.file import SCHEMA_VERSION, execute, journal_error, owner_of
from sidecar.journal.sqlite.inline import Inline

_BUSY_MS = 5_000


@asynccontextmanager
async def reports_of_file(path: Path) -> AsyncGenerator[SqlReports]:
    """Open a journal's file for reading only, also while a sidecar owns and writes it.

    Takes no lock that would stop a sidecar from starting. Reads block the loop: for a command, not
    for a server.

    Raises:
        NoJournal: there is none.
        JournalError: it can't be read, or another version wrote it.
    """
    inline = Inline(_connect(path), path)
    try:
        yield SqlReports(inline)
    finally:
        await inline.stop()


def _connect(path: Path) -> apsw.Connection:
    """Open a file of this version for reading.

    Raises:
        JournalError: as `reports_of_file`.
    """
    if not path.is_file():
        raise NoJournal(
            f"there is no journal at {path}",
            hint="start the sidecar once, or check SIDECAR_DATA_DIR",
        )
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(_BUSY_MS)
        ((version,),) = execute(connection, "PRAGMA user_version")
    except apsw.Error as error:
        raise journal_error(error, path) from error
    if version != SCHEMA_VERSION:
        connection.close()
        raise JournalError(
            f"{path} was written by another version of the sidecar (schema {version})",
            hint="start this version once, or look with the version that runs",
        )
    return connection


def version_of_file(path: Path) -> tuple[int, str]:
    """Return the version of a journal's tables, 0 without a file, and the process that owns it.

    Raises:
        JournalError: the file can't be read.
    """
    if not path.is_file():
        return 0, ""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            ((version,),) = execute(connection, "PRAGMA user_version")
        finally:
            connection.close()
    except apsw.Error as error:
        raise journal_error(error, path) from error
    owner = owner_of(path)
    return version, "" if owner is None else f"process {owner}"
