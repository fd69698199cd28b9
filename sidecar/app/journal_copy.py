"""`sidecar journal copy`: everything of one journal into another, for a change of engine."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sidecar import environment
from sidecar.app.journal import (
    Place,
    opened_at,
    policy_of,
    require_driver,
    require_journal,
    secret_of,
)
from sidecar.clock import SteadyClock
from sidecar.config.settings import Settings
from sidecar.errors import ConfigError, JournalError
from sidecar.journal import JOURNAL_FILE
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sql import SqlJournal
from sidecar.journal.sql.copying import Progress, copy
from sidecar.journal.sqlite.file import FileLock
from sidecar.private import has_secret, is_installation_secret, make_directory

_UNFINISHED = ".copying"


def place_named(text: str, field: str) -> Place:
    """Return the place that a text names: a URL, a file, or a directory with a journal.

    Args:
        text: As the user wrote it.
        field: What the user wrote it for.

    Raises:
        ConfigError: it is none of these, or the database's driver is not installed.
    """
    if "://" in text:
        try:
            url = environment.database_url(text)
        except ValueError as error:
            raise ConfigError(f"{field}: {error}", fields=((field, str(error)),)) from None
        require_driver(field)
        return Place(url, Path())
    path = Path(text).expanduser().resolve()
    return Place("", path / JOURNAL_FILE if path.is_dir() else path)


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did, by table.

    Attributes:
        rows: How many the source has, each of which is in the target and the same there.
        written: How many of them were not there before.
    """

    rows: Mapping[str, int]
    written: Mapping[str, int]


async def copy_journal(
    settings: Settings, directory: Path, source: Place, target: Place, *, progress: Progress
) -> Copied:
    """Copy a journal, and compare every row.

    No sidecar may be running on either. An interrupted copy is no journal: nothing opens it, and
    the next call goes on with it.

    Args:
        settings: As loaded.
        directory: The data directory; its secret, or the one that is set, is that of both.
        source: The journal to copy.
        target: A database without a journal, or a file that is not there yet.
        progress: See `sidecar.journal.sql.copying.Progress`.

    Raises:
        NoJournal: there is none at the source.
        JournalError: one of the two can't be opened or failed, or there is a journal at the target.
        ConfigError: no secret is set, and none is in the directory that has it.
    """
    if source == target:
        raise JournalError("a journal can't be copied to where it is", hint="name another place")
    await require_journal(source)
    secret = _secret(settings, directory if source.url else source.file.parent)
    policy, clock = policy_of(settings), SteadyClock()
    async with (
        opened_at(source, policy=policy, secret=secret, clock=clock) as old,
        _opened_target(target, source, secret, policy) as new,
    ):
        copied = await copy(old.executor, new.executor, progress=progress)
        rows: dict[str, int] = {}

        def compared(table: str, done: int, total: int) -> None:
            rows[table] = done
            progress(table, done, total)

        again = await copy(old.executor, new.executor, progress=compared)
        if any(again.values()):
            raise JournalError("the copy differs from its source", hint="stop what changes it")
    return Copied({table: rows.get(table, 0) for table in copied}, copied)


def _secret(settings: Settings, directory: Path) -> bytes:
    """Return the secret of the source, which the target gets as well; makes none.

    Raises:
        ConfigError: there is none.
    """
    if settings.secret is None and not has_secret(directory):
        remedy = "set it, or name by SIDECAR_DATA_DIR the data directory of the sidecar whose it is"
        raise ConfigError(
            f"SIDECAR_SECRET: {directory} has no secret; {remedy}",
            fields=(("SIDECAR_SECRET", remedy),),
        )
    return secret_of(settings, directory)


@asynccontextmanager
async def _opened_target(
    place: Place, source: Place, secret: bytes, policy: PostPolicy
) -> AsyncGenerator[SqlJournal]:
    """Open where the copy goes; it becomes a journal at the end, unless an error ends it."""
    clock = SteadyClock()
    if place.url:
        async with opened_at(
            place, policy=policy, secret=secret, clock=clock, copied_from=str(source)
        ) as journal:
            yield journal
            await journal.finish_copy()
        return
    make_directory(place.file.parent)
    lock = FileLock(place.file)  # no sidecar starts there meanwhile
    try:
        async with _opened_file(place, secret, policy) as file:
            yield file
    finally:
        lock.release()


@asynccontextmanager
async def _opened_file(
    place: Place, secret: bytes, policy: PostPolicy
) -> AsyncGenerator[SqlJournal]:
    if place.file.exists():
        raise JournalError(f"{place} is there already", hint="name a new file")
    if not is_installation_secret(place.file.parent, secret):
        raise JournalError(
            f"{place.file.parent} belongs to an installation with another secret",
            hint="name an empty directory, or set SIDECAR_SECRET",
        )
    unfinished = place.file.with_name(place.file.name + _UNFINISHED)
    async with opened_at(
        Place("", unfinished), policy=policy, secret=secret, clock=SteadyClock()
    ) as journal:
        yield journal
    if unfinished.with_name(f"{unfinished.name}-wal").exists():
        raise JournalError(
            f"a program has {unfinished} open", hint="end it, and repeat the command"
        )
    unfinished.rename(place.file)
    for beside in ("-shm", ".lock", ".reserve"):
        with suppress(FileNotFoundError):
            unfinished.with_name(unfinished.name + beside).unlink()
