"""The journal's file: one owner, private, checked when opened, with disk kept in reserve."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import apsw

from sidecar.errors import JournalCorrupt, JournalError, JournalFull, JournalLocked
from sidecar.private import make_directory

APPLICATION_ID = 0x4C534A31  # "LSJ1", in the file's header: this is a journal of ours
SCHEMA_VERSION = 8
# SQL that upgrades a file from version N to N + 1; a new file is made by schema.sql alone.
MIGRATIONS = {
    1: "ALTER TABLE turns ADD COLUMN traceparent TEXT;"
    "ALTER TABLE calls ADD COLUMN consent TEXT NOT NULL DEFAULT ''",
    2: "ALTER TABLE batches ADD COLUMN replayed_s REAL",
    3: "DROP INDEX calls_of_caller;"
    "CREATE INDEX calls_of_caller ON calls(caller_key);"
    "CREATE INDEX calls_settled ON calls(lane, caller_key, settled_s);"
    "CREATE INDEX calls_waiting ON calls(lane, caller_key) WHERE head > acked;"
    "CREATE INDEX calls_live ON calls(id) WHERE closed_at_s IS NULL;"
    "CREATE INDEX lanes_of_caller ON lanes(substr(name, instr(name, '/') + 1));"
    "CREATE INDEX batches_dead_of_lane ON batches(lane, call) WHERE state = 'dead';"
    "CREATE TABLE tombstones(seal BLOB PRIMARY KEY, erased_s REAL NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX tombstones_by_age ON tombstones(erased_s)",
    4: "ALTER TABLE calls ADD COLUMN final INTEGER NOT NULL DEFAULT 0",
    5: "CREATE TABLE replicas(name TEXT PRIMARY KEY, entered_s REAL NOT NULL) WITHOUT ROWID;"
    "ALTER TABLE lanes ADD COLUMN replica TEXT NOT NULL DEFAULT '';"
    "ALTER TABLE lanes ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE calls ADD COLUMN replica TEXT NOT NULL DEFAULT '';"
    "ALTER TABLE calls ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0",
    6: "ALTER TABLE calls ADD COLUMN room TEXT NOT NULL DEFAULT '';"
    "ALTER TABLE calls ADD COLUMN lost_s REAL;"
    "ALTER TABLE calls ADD COLUMN opened_by TEXT;"
    "CREATE INDEX calls_of_room ON calls(room, caller_key) WHERE room <> '';"
    "CREATE TABLE successors(key TEXT PRIMARY KEY, call INTEGER NOT NULL REFERENCES calls(id),"
    " opened_at_s REAL NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX successors_of_call ON successors(call)",
    7: "CREATE TABLE commands(n INTEGER PRIMARY KEY AUTOINCREMENT,"
    " call INTEGER NOT NULL REFERENCES calls(id), command TEXT NOT NULL, text TEXT NOT NULL,"
    " asked_s REAL NOT NULL);"
    "CREATE INDEX commands_of_call ON commands(call);"
    "ALTER TABLE calls ADD COLUMN tokens INTEGER NOT NULL DEFAULT 0;"
    "CREATE TABLE spent(tenant TEXT NOT NULL, day INTEGER NOT NULL, tokens INTEGER NOT NULL,"
    " PRIMARY KEY(tenant, day)) WITHOUT ROWID;"
    "CREATE TABLE once(name TEXT PRIMARY KEY, call INTEGER REFERENCES calls(id),"
    " answer TEXT NOT NULL DEFAULT '', until_s REAL NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX once_of_call ON once(call);"
    "CREATE INDEX once_by_age ON once(until_s)",
}
_QUICK_CHECK_BYTES = 64 << 20  # a larger file is not read through at each start
_BUSY_MS = 5_000

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_WRITE_FAULTS = frozenset(
    {
        apsw.SQLITE_IOERR_WRITE,
        apsw.SQLITE_IOERR_FSYNC,
        apsw.SQLITE_IOERR_DIR_FSYNC,
        apsw.SQLITE_IOERR_TRUNCATE,
        apsw.SQLITE_IOERR_SHMSIZE,
        apsw.SQLITE_IOERR_SHMMAP,
        apsw.SQLITE_IOERR_SHMOPEN,
    }
)


def execute(
    connection: apsw.Connection, sql: str, values: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    """Run SQL and return its rows. The only place that handles apsw's untyped values."""
    return cast("Any", connection).execute(sql, values).fetchall()


def journal_error(error: Exception, path: Path) -> JournalError:
    """Return the `JournalError` that `error` means for the journal at `path`."""
    if isinstance(error, JournalError):
        return error
    if isinstance(error, apsw.FullError) or is_write_fault(error):
        return JournalFull(
            "the disk takes no more of the journal",
            hint=f"free space on the disk that holds {path}",
        )
    if isinstance(error, apsw.CorruptError | apsw.NotADBError | apsw.IOError):
        return JournalCorrupt(
            f"{path} is damaged or is no journal",
            hint=f"move it aside and start again; `sqlite3 {path} .recover` saves what is readable",
        )
    if isinstance(error, OSError):
        if error.errno in _NO_ROOM:
            return JournalFull(
                "the disk has no room for the journal", hint=f"free space for {path}"
            )
        return JournalError(
            f"{path} cannot be opened: {error.strerror}", hint="check SIDECAR_DATA_DIR"
        )
    return JournalError(f"the journal failed: {type(error).__name__}")


def is_write_fault(error: Exception) -> bool:
    """Whether the disk refused a write, which undoes the transaction and may be temporary."""
    return isinstance(error, apsw.FullError) or (
        isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) in _WRITE_FAULTS
    )


class FileLock:
    """An exclusive lock beside the journal; the kernel frees it however the process ends.

    Args:
        path: The journal's file.

    Raises:
        JournalLocked: another process holds it; the error names that process.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(self._fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise JournalLocked(
                f"process {pid} holds {path}",
                hint="stop it, or give this sidecar a SIDECAR_DATA_DIR of its own",
            ) from error
        # This may fail on a full disk: the number only helps a person.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock."""
        os.close(self._fd)


def owner_of(path: Path) -> str | None:
    """Return the id of the process that has the journal at `path` open; None: none is known of.

    It reads the kernel's list of locks, since a lock taken to find out could stop a sidecar that
    starts just then. The list is Linux's.
    """
    try:
        inode = Path(f"{path}.lock").stat().st_ino
        locks = Path("/proc/locks").read_text("ascii")
    except OSError:
        return None
    for line in locks.splitlines():  # 1: FLOCK  ADVISORY  WRITE 4242 fe:00:131 0 EOF
        fields = line.split()
        if fields[1:2] == ["FLOCK"] and fields[5].rpartition(":")[2] == str(inode):
            return fields[4]
    return None


class Reserve:
    """Disk space kept aside, so that settling and erasing go on when the disk is full.

    Args:
        path: The journal's file.
        size_bytes: How much is kept.
    """

    _RETRY_S = 0.25

    def __init__(self, path: Path, *, size_bytes: int) -> None:
        self._path = f"{path}.reserve"
        self._size_bytes = size_bytes
        self._tried_s = 0.0
        self.allocated = False

    def take(self) -> bool:
        """Allocate the reserve unless it is; returns whether it is now. Tried 4 times a second."""
        now_s = time.monotonic()
        if self.allocated or now_s - self._tried_s < self._RETRY_S:
            return self.allocated
        self._tried_s = now_s
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size_bytes)
            finally:
                os.close(fd)
        except OSError:
            self.free()
            return False
        self.allocated = True
        return True

    def free(self) -> None:
        """Give the space back to the disk."""
        self.allocated = False
        with contextlib.suppress(OSError):
            os.unlink(self._path)  # noqa: PTH108 - no Path: this runs when everything fails


def open_writer(path: Path) -> apsw.Connection:
    """Open the file for writing, create it when there is none, and recover a torn tail.

    Raises:
        JournalCorrupt: it is damaged, is not a journal, or was written by a newer sidecar.
        JournalFull: there is no room to create it.
    """
    try:
        _touch_private(path)
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(_BUSY_MS)
        _claim_format(connection, path)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
            execute(connection, f"PRAGMA {pragma}")
        _check(connection, path)
    except (apsw.Error, OSError) as error:
        raise journal_error(error, path) from error
    return connection


def open_in_memory() -> apsw.Connection:
    """Return a connection to a new database in memory, which ends with the connection."""
    connection = apsw.Connection(":memory:")
    _create(connection)
    return connection


def open_reader(path: Path) -> apsw.Connection:
    """Open the file a second time, for reading only."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(_BUSY_MS)
    execute(connection, "PRAGMA query_only = ON")
    return connection


def _touch_private(path: Path) -> None:
    """Create what is missing: the directory 0700, the file 0600 (SQLite's side files follow)."""
    make_directory(path.parent)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)


def _create(connection: apsw.Connection) -> None:
    schema = resources.files(__package__ or "").joinpath("schema.sql").read_text("utf-8")
    with connection:
        execute(connection, schema)
        execute(connection, f"PRAGMA application_id = {APPLICATION_ID}")
        execute(connection, f"PRAGMA user_version = {SCHEMA_VERSION}")


def _claim_format(connection: apsw.Connection, path: Path) -> None:
    version = _pragma(connection, "user_version")
    if version == 0:
        if execute(connection, "SELECT count(*) FROM sqlite_schema") != [(0,)]:
            raise JournalCorrupt(
                f"{path} is a database, but no journal", hint="point SIDECAR_DATA_DIR elsewhere"
            )
        _create(connection)
    elif _pragma(connection, "application_id") != APPLICATION_ID:
        raise JournalCorrupt(
            f"{path} is a database, but no journal", hint="point SIDECAR_DATA_DIR elsewhere"
        )
    elif version > SCHEMA_VERSION:
        raise JournalCorrupt(
            f"{path} was written by a newer sidecar (schema {version})",
            hint="start that version, or move the file aside",
        )
    elif version < SCHEMA_VERSION:
        with connection:
            for older in range(version, SCHEMA_VERSION):
                execute(connection, MIGRATIONS[older])
            execute(connection, f"PRAGMA user_version = {SCHEMA_VERSION}")


def _pragma(connection: apsw.Connection, name: str) -> int:
    return execute(connection, f"PRAGMA {name}")[0][0]


def _check(connection: apsw.Connection, path: Path) -> None:
    if path.stat().st_size > _QUICK_CHECK_BYTES:
        return
    found = execute(connection, "PRAGMA quick_check(1)")
    if found != [("ok",)]:
        raise apsw.CorruptError
