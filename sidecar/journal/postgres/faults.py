"""What an error of PostgreSQL means for the journal."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import errors

from sidecar.errors import JournalAway, JournalError, JournalFull, JournalRefused


def is_lost(error: Exception, connection: psycopg.Connection[object] | None) -> bool:
    """Whether an error means that the connection is gone, or that the database is going down."""
    if not isinstance(error, psycopg.Error):
        return False
    if isinstance(error, errors.AdminShutdown | errors.CrashShutdown | errors.CannotConnectNow):
        return True
    return connection is None or connection.closed or connection.broken


def is_passing(error: Exception) -> bool:
    """Whether a transaction was undone for others' sake, and may simply be made again."""
    return isinstance(
        error, errors.DeadlockDetected | errors.SerializationFailure | errors.LockNotAvailable
    )


def away(error: Exception) -> JournalAway:
    """Return what it means that the database was away for too long, with what it said last."""
    found = journal_error(error)
    if isinstance(found, JournalAway | JournalRefused):
        return JournalAway(found.message, hint=found.hint)
    return JournalAway(
        "the journal's database does not answer", hint="start it, or check SIDECAR_JOURNAL_URL"
    )


@contextmanager
def as_journal_errors() -> Generator[None]:
    """Raise what an error of the driver means in its place.

    Raises:
        JournalError: see `journal_error`.
    """
    try:
        yield
    except psycopg.Error as error:
        raise journal_error(error) from error


def journal_error(error: Exception) -> JournalError:
    """Return the `JournalError` that an error means. It carries no value of a statement."""
    if isinstance(error, JournalError):
        return error
    for kinds, message, hint in _MEANINGS:
        if isinstance(error, kinds):
            return _of_kind(error)(message, hint=hint)
    if isinstance(error, psycopg.OperationalError):
        # A refused sign-in has no code of its own here: libpq gives the server's text alone.
        for text, message, hint in _REFUSALS:
            if text.search(str(error)):
                return JournalRefused(message, hint=hint)
        return JournalAway(
            "the journal's database does not answer",
            hint="start it, or check SIDECAR_JOURNAL_URL",
        )
    return JournalError(f"the journal failed: {type(error).__name__}")


def _of_kind(error: Exception) -> type[JournalError]:
    return JournalFull if isinstance(error, errors.DiskFull) else JournalRefused


_SIGN_IN: Final = ("the journal's database refuses the sign-in", "check SIDECAR_JOURNAL_URL")
_NONE_THERE: Final = (
    "the journal's database does not exist",
    "create it, or check SIDECAR_JOURNAL_URL",
)
_MEANINGS: Final = (
    (
        errors.DiskFull,
        "the database takes no more of the journal",
        "free space on the database's disk",
    ),
    (
        errors.ReadOnlySqlTransaction,
        "the journal's database is read-only",
        "name the primary in SIDECAR_JOURNAL_URL, with target_session_attrs=read-write",
    ),
    (
        errors.InsufficientPrivilege,
        "the journal's database refuses a right that the sidecar needs",
        "let the role of SIDECAR_JOURNAL_URL own its schema",
    ),
    (
        errors.LockNotAvailable,
        "another session has a table of the journal locked",
        "try again when it has ended (a dump, a migration)",
    ),
    (errors.UndefinedTable, "there is no journal in the database", "run `sidecar journal migrate`"),
    ((errors.InvalidPassword, errors.InvalidAuthorizationSpecification), *_SIGN_IN),
    ((errors.InvalidCatalogName, errors.InvalidSchemaName), *_NONE_THERE),
)
_REFUSALS: Final = (
    (re.compile(r"database .* does not exist"), *_NONE_THERE),
    (
        re.compile(r"password authentication failed|no password supplied|role .* does not"),
        *_SIGN_IN,
    ),
    (
        re.compile(r"permission denied for database"),
        "the journal's database refuses a right that the sidecar needs",
        "grant CONNECT on it to the role of SIDECAR_JOURNAL_URL",
    ),
    (
        re.compile(r"no pg_hba.conf entry|SSL|certificate"),
        "the journal's database refuses the connection",
        "check sslmode in SIDECAR_JOURNAL_URL, and the server's pg_hba.conf",
    ),
    (
        re.compile(r"statement pooling mode"),
        "the pooler before the journal's database allows no transactions",
        "set pool_mode = transaction (or session) in the pooler",
    ),
    (
        re.compile(r"session is read-only|not a hot standby|is in hot standby"),
        "no server of SIDECAR_JOURNAL_URL takes writes",
        "name the primary in it",
    ),
)
