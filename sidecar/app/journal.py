"""Opens the journal as the settings say; the only place that does, for server and commands."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from sidecar.config.settings import Settings
from sidecar.journal import JOURNAL_FILE
from sidecar.journal.policy import PostPolicy
from sidecar.journal.reports import Reports
from sidecar.journal.sqlite import SqliteJournal
from sidecar.journal.sqlite.reports import reports_of_file
from sidecar.privacy import redaction


@asynccontextmanager
async def opened_journal(
    settings: Settings, directory: Path, *, clock: Callable[[], float]
) -> AsyncGenerator[SqliteJournal]:
    """Open the journal in `directory` as its owner; closes it at the end.

    Args:
        settings: As loaded. They say when turns are due and what is redacted; stored due times
            that are later than these settings allow are moved earlier.
        directory: The data directory.
        clock: Unix time in seconds.

    Raises:
        JournalError: as `SqliteJournal.open`.
    """
    journal = await SqliteJournal.open(
        directory / JOURNAL_FILE,
        policy=PostPolicy(max_turns=settings.post_max_turns, max_age_s=settings.post_max_age_s),
        clock=clock,
        redact=redaction(settings.redact),
    )
    try:
        yield journal
    finally:
        await journal.aclose()


@asynccontextmanager
async def opened_reports(directory: Path) -> AsyncGenerator[Reports]:
    """Open the journal in `directory` to read from it, also while a sidecar owns it.

    Reads block the loop: for a command, not for a server.

    Raises:
        JournalError: there is none, it can't be read, or another version wrote it.
    """
    async with reports_of_file(directory / JOURNAL_FILE) as reports:
        yield reports
