"""`sidecar backup`: a copy of the journal, beside a running sidecar or without one."""

from pathlib import Path
from typing import Annotated

import typer

from sidecar.cli import reach, show
from sidecar.errors import JournalError
from sidecar.journal import JOURNAL_FILE


def backup(
    target: Annotated[Path, typer.Argument(help="A new file.", metavar="FILE")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Copy the journal, as it is now, into a new file; a running sidecar keeps running.

    The copy holds what callers said, unencrypted, and what Letta has not digested yet. It does not
    hold Letta's own memory.
    """
    from sidecar.journal.sqlite.backup import back_up  # noqa: PLC0415

    if reach.settings().journal_url is not None:
        raise JournalError(
            "the journal is in a PostgreSQL database, which has its own backups",
            hint="pg_dump makes one: docs/postgres.md",
        )
    size_bytes = back_up(reach.data_dir() / JOURNAL_FILE, target)
    if as_json:
        show.as_json({"file": str(target), "bytes": size_bytes})
    else:
        show.say(f"{target}: {size_bytes / 1e6:.1f} MB")
