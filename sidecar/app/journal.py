"""Opens the journal as the settings say; the only place that does, for server and commands.

It is in the PostgreSQL database of `SIDECAR_JOURNAL_URL`, or in a file of the data directory.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio.to_thread
from typing_extensions import override

from sidecar.clock import SteadyClock
from sidecar.config.settings import Settings
from sidecar.errors import ConfigError, NoJournal
from sidecar.journal import JOURNAL_FILE
from sidecar.journal.policy import PostPolicy
from sidecar.journal.reports import Reports
from sidecar.journal.sql import SqlJournal
from sidecar.privacy import redaction
from sidecar.private import has_secret, installation_secret, is_installation_secret

if TYPE_CHECKING:
    from sidecar.journal.postgres.about import DatabaseStatus


@dataclass(frozen=True, slots=True)
class Place:
    """Where a journal is: in a database, or in a file.

    Attributes:
        url: Of the database; empty: it is in the file.
        file: Its path.
    """

    url: str
    file: Path

    @override
    def __str__(self) -> str:
        """Return it as it may be shown: a URL without user, password and settings."""
        if not self.url:
            return str(self.file)
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def place_of(settings: Settings, directory: Path) -> Place:
    """Return where the settings say that the journal is.

    Raises:
        ConfigError: a database is named, and its driver is not installed.
    """
    if settings.journal_url is None:
        return Place("", directory / JOURNAL_FILE)
    require_driver("SIDECAR_JOURNAL_URL")
    return Place(settings.journal_url.get_secret_value(), Path())


@asynccontextmanager
async def opened_journal(
    settings: Settings,
    directory: Path,
    *,
    clock: Callable[[], float],
    existing: bool = False,
    alone: bool = True,
    wait_s: float = 0.0,
) -> AsyncGenerator[SqlJournal]:
    """Open the journal to read and write; closes it at the end.

    A file is one process's at a time. A database is shared by all sidecars on it.

    Args:
        settings: As loaded. They say where it is, when turns are due and what is redacted.
        directory: The data directory.
        clock: Unix time in seconds. A `SteadyClock` follows the database's.
        existing: Make none.
        alone: Only where no sidecar has it open.
        wait_s: How long to wait for the lease of another process on the database to end.

    Raises:
        ConfigError: the database is named, and its driver is not installed.
        NoJournal: there is none, and `existing` is set.
        JournalError: as `SqliteJournal.open` and `PostgresJournal.open`.
    """
    place = place_of(settings, directory)
    if existing:
        await require_journal(place)
    own_secret = not place.url and settings.secret is None
    async with opened_at(
        place,
        policy=policy_of(settings),
        secret=None if own_secret else secret_of(settings, directory),
        clock=clock,
        redact=redaction(settings.redact),
        alone=alone,
        wait_s=wait_s,
    ) as journal:
        yield journal


@asynccontextmanager
async def opened_at(
    place: Place,
    *,
    policy: PostPolicy,
    secret: bytes | None,
    clock: Callable[[], float],
    redact: Callable[[str], str] | None = None,
    alone: bool = True,
    wait_s: float = 0.0,
    copied_from: str = "",
) -> AsyncGenerator[SqlJournal]:
    """Open the journal at a place to read and write; closes it at the end.

    Args:
        place: Where it is, or is made.
        policy: When turns are due.
        secret: Keys the tombstones; None: that of the file's directory.
        clock: See `opened_journal`.
        redact: Returns a turn's text as it may be kept.
        alone: See `opened_journal`.
        wait_s: See `opened_journal`.
        copied_from: See `PostgresJournal.open`.

    Raises:
        JournalError: as `SqliteJournal.open` and `PostgresJournal.open`.
    """
    if place.url:
        from sidecar.journal.postgres import PostgresJournal  # noqa: PLC0415 - an extra

        journal = await PostgresJournal.open(
            place.url,
            secret=secret or b"",
            policy=policy,
            clock=clock,
            redact=redact,
            wait_s=wait_s,
            alone=alone,
            copied_from=copied_from,
            timed=clock.follow if isinstance(clock, SteadyClock) else None,
        )
    else:
        from sidecar.journal.sqlite import SqliteJournal  # noqa: PLC0415 - one of two

        journal = await SqliteJournal.open(
            place.file, policy=policy, clock=clock, redact=redact, secret=secret
        )
    try:
        yield journal
    finally:
        await journal.aclose()


@asynccontextmanager
async def opened_reports(place: Place) -> AsyncGenerator[Reports]:
    """Open the journal to read from it, also while a sidecar owns it.

    Reads block the loop: for a command, not for a server.

    Raises:
        NoJournal: there is none.
        JournalError: it can't be read, or another version wrote it.
    """
    if place.url:
        from sidecar.journal.postgres.reports import reports_of_database  # noqa: PLC0415 - an extra

        opened = reports_of_database(place.url)
    else:
        from sidecar.journal.sqlite.reports import reports_of_file  # noqa: PLC0415 - one of two

        opened = reports_of_file(place.file)
    async with opened as reports:
        yield reports


async def require_journal(place: Place) -> None:
    """Check that there is a journal; makes none.

    Raises:
        NoJournal: there is none.
        JournalError: it can't be read.
    """
    if place.url:
        async with opened_reports(place):
            return
    if not place.file.is_file():
        raise NoJournal(
            f"there is no journal in {place.file.parent}",
            hint="start the sidecar once, or check SIDECAR_DATA_DIR",
        )


def policy_of(settings: Settings) -> PostPolicy:
    """Return when turns are due."""
    return PostPolicy(max_turns=settings.post_max_turns, max_age_s=settings.post_max_age_s)


def require_driver(field: str) -> None:
    """Check that the driver of PostgreSQL is installed.

    Args:
        field: What names a database.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("psycopg") is None:
        remedy = "install the driver: pip install 'letta-voice-sidecar[server,postgres]'"
        raise ConfigError(f"{field}: {remedy}", fields=((field, remedy),))


def secret_of(settings: Settings, directory: Path) -> bytes:
    """Return the secret of this installation: the one that is set, or the data directory's own.

    Raises:
        ConfigError: one is set, and the data directory has another, by which the tombstones of the
            callers that were erased so far are known.
    """
    if settings.secret is None:
        return installation_secret(directory)
    secret = settings.secret.get_secret_value().encode()
    if has_secret(directory) and not is_installation_secret(directory, secret):
        remedy = f"unset it, or remove {directory}/secret if no caller was ever erased"
        raise ConfigError(
            f"SIDECAR_SECRET: {directory} has a secret of its own; {remedy}",
            fields=(("SIDECAR_SECRET", remedy),),
        )
    return secret


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalStatus:
    """Where the journal is, and of which version.

    Attributes:
        engine: `sqlite` or `postgresql`.
        place: The file, or the database without its user and password.
        schema: Version of the tables; 0: there are none.
        newest: The version that this sidecar makes.
        writers: Who writes to it, where that is known.
    """

    engine: str
    place: str
    schema: int
    newest: int
    writers: tuple[str, ...]


def status_of(place: Place) -> JournalStatus:
    """Look at the journal. Blocking.

    Raises:
        JournalError: it can't be read.
    """
    if place.url:
        found = database_status(place)
        return JournalStatus(
            engine="postgresql",
            place=str(place),
            schema=found.schema,
            newest=found.newest,
            writers=found.writers,
        )
    from sidecar.journal.sqlite.file import SCHEMA_VERSION  # noqa: PLC0415 - one of two
    from sidecar.journal.sqlite.reports import version_of_file  # noqa: PLC0415

    schema, writer = version_of_file(place.file)
    writers = (writer,) if writer else ()
    return JournalStatus(
        engine="sqlite", place=str(place), schema=schema, newest=SCHEMA_VERSION, writers=writers
    )


def database_status(place: Place) -> "DatabaseStatus":
    """Look at a journal's database. Blocking.

    Raises:
        JournalError: it does not answer or refuses.
    """
    from sidecar.journal.postgres.about import about  # noqa: PLC0415 - an extra

    return about(place.url)


async def migrate(settings: Settings, directory: Path) -> None:
    """Make the journal's tables, or bring them to this version.

    Raises:
        ConfigError: the database is named, and its driver is not installed.
        JournalLocked: a sidecar has the file open; the next start of this version migrates it.
        JournalError: it can't be opened, or a newer sidecar made it.
    """
    place = place_of(settings, directory)
    if not place.url:
        async with opened_journal(settings, directory, clock=time.time):
            return
    from sidecar.journal.postgres.about import migrated  # noqa: PLC0415 - an extra

    await anyio.to_thread.run_sync(migrated, place.url)
