"""A copy of the journal's file, taken while a sidecar may be writing it."""

import os
from pathlib import Path

import apsw

from sidecar.errors import JournalError
from sidecar.journal.sqlite.file import execute, journal_error

_BUSY_MS = 5_000


def back_up(path: Path, target: Path) -> int:
    """Copy the journal at `path` as it is at one moment; returns the size of the copy in bytes.

    Every turn acked before the call is in it, and no half of a transaction. The copy is one file,
    0600, fsynced, and a journal like any other. Writers do not wait for it. Blocking.

    Raises:
        JournalError: there is no journal, it can't be read, or the copy can't be written; what was
            at `target` before is untouched, and no half copy stays.
    """
    if not path.is_file():
        raise JournalError(
            f"there is no journal at {path}",
            hint="start the sidecar once, or check SIDECAR_DATA_DIR",
        )
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise JournalError(
            f"{target} is there already", hint="name a new file: backups are not overwritten"
        ) from None
    except OSError as error:
        raise JournalError(
            f"{target} can't be written: {error.strerror}", hint="name another file"
        ) from error
    try:
        _copy(path, target)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, apsw.Error | OSError):
            raise journal_error(error, path) from error
        raise
    return target.stat().st_size


def _copy(path: Path, target: Path) -> None:
    source = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        source.set_busy_timeout(_BUSY_MS)
        copy = apsw.Connection(str(target))
        try:
            with copy.backup("main", source, "main") as backup:
                backup.step(-1)
            # The copy is in the WAL mode of its source: without this it would need a log file.
            execute(copy, "PRAGMA journal_mode = DELETE")
        finally:
            copy.close()
    finally:
        source.close()
    for durable in (target, target.parent):
        descriptor = os.open(durable, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
