"""What only this user may use: directories (0700), and the secrets kept in them (0600).

All functions block: call them off the loop, or before it runs.
"""

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sidecar.errors import ConfigError

LINK_TOKEN_FILE = "link-token"  # noqa: S105 - a name
"""In the data directory: the token that opens the sidecar if none is set."""
_SECRET_FILE = "secret"  # noqa: S105 - a name
# What a start checks in its data directory, besides the spool.
STATE_FILES: Final = (
    *("journal.db", "journal.db-wal", "journal.db-shm", "journal.db.lock", "journal.db.reserve"),
    *("letta.db", "letta.db-wal", "letta.db-shm"),
    *("control.json", "vapi-deliveries", _SECRET_FILE, LINK_TOKEN_FILE),
)
STATE_DIRECTORIES: Final = ("snapshots", "app-server")
STATE_NAMES: Final = frozenset({*STATE_FILES, *STATE_DIRECTORIES, "spool"})
"""All that a sidecar makes in its data directory."""
_TOKEN_CHARS = 16
_SECRET_BYTES = 16
_OTHERS = 0o077
# SQLite opens no path of more than 512 bytes, with what it adds to the name of a file.
_PATH_BYTES = 480
_NAME_ONE = "name a directory that this user may write"


def make_directory(path: Path) -> list[Path]:
    """Make a directory and its missing parents, each with mode 0700 whatever the umask.

    Existing directories keep their modes. Returns those that were made, outermost first.

    Raises:
        OSError: it can't be made, or is not a directory; those that were made are removed again.
    """
    missing: list[Path] = []
    there = path
    while not there.exists():
        missing.append(there)
        there = there.parent
    made: list[Path] = []
    try:
        for directory in reversed(missing):
            try:
                directory.mkdir(mode=0o700)
            except FileExistsError:  # another process was quicker
                continue
            made.append(directory)
            directory.chmod(0o700)  # a umask may have taken rights of ours
        path.mkdir(exist_ok=True)
    except BaseException:
        unmake(made)
        raise
    return made


def unmake(made: Sequence[Path]) -> None:
    """Remove directories that `make_directory` made, as far as they are still empty."""
    with contextlib.suppress(OSError):  # it is in use: it and its parents stay
        for directory in reversed(made):
            directory.rmdir()


def state_directories(data_dir: Path, spool: Path) -> list[Path]:
    """Make the directories that a sidecar keeps its state in; return those that were made.

    Raises:
        ConfigError: one can't be made or used, the data directory is another user's or open to
            others, or something of ours in it can't be used; those that were made are removed
            again.
    """
    made: list[Path] = []
    try:
        _refuse_long(data_dir)
        made += _state_directory(data_dir, "SIDECAR_DATA_DIR")
        refuse_shared(data_dir)
        made += _state_directory(spool, "SIDECAR_SPOOL_DIR")
        _refuse_unusable(data_dir)
    except BaseException:
        unmake(made)
        raise
    return made


def _refuse_unusable(data_dir: Path) -> None:
    """Refuse a data directory in which something of ours can't be used, as after one `sudo`."""
    user = os.geteuid()
    for name in (*STATE_FILES, *STATE_DIRECTORIES):
        path = data_dir / name
        of_kind = os.path.isfile if name in STATE_FILES else os.path.isdir
        wanted = os.R_OK | os.W_OK | (os.X_OK if name in STATE_DIRECTORIES else 0)
        if not os.path.exists(path):  # noqa: PTH110 - raises nothing
            continue
        if not of_kind(path):
            why, remedy = "is something else than the sidecar makes there", f"move {path} away"
        elif not os.access(path, wanted):
            why = f"can't be used by this user (uid {user})"
            remedy = f"chown -R {user} {data_dir} && chmod -R u+rwX {data_dir}"
        else:
            continue
        message = f"SIDECAR_DATA_DIR: {path} {why}; {remedy}"
        raise ConfigError(message, fields=(("SIDECAR_DATA_DIR", remedy),))


def _state_directory(path: Path, field: str) -> list[Path]:
    refuse_no_directory(path, field)
    try:
        return make_directory(path)
    except OSError as error:
        why = f"{path} can't be made: {error.strerror}"
        raise ConfigError(f"{field}: {why}; {_NAME_ONE}", fields=((field, _NAME_ONE),)) from None


def _refuse_long(data_dir: Path) -> None:
    try:
        length = len(os.fsencode(os.path.realpath(data_dir)))
    except OSError:  # the directory we are in was removed
        return
    if length > _PATH_BYTES:
        remedy = f"name a directory whose whole path has at most {_PATH_BYTES} bytes"
        raise ConfigError(
            f"SIDECAR_DATA_DIR: no database opens at a path of {length} bytes; {remedy}",
            fields=(("SIDECAR_DATA_DIR", remedy),),
        )


def refuse_no_directory(path: Path, field: str = "SIDECAR_DATA_DIR") -> None:
    """Refuse a path at which no directory of ours exists or can be made; makes nothing.

    Args:
        path: Of the directory.
        field: The setting that names it.

    Raises:
        ConfigError: it, or what it would be made in, is a file, a dangling link, or something
            that this user may not use.
    """
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    wanted = os.R_OK | os.W_OK | os.X_OK if there == path else os.W_OK | os.X_OK
    if not os.path.isdir(there):  # noqa: PTH112 - raises nothing
        why = f"{there} is no directory"
    elif not os.access(there, wanted):
        why = f"{there} can't be used by this user (uid {os.geteuid()})"
    else:
        return
    if there != path:
        why = f"{path} can't be made: {why}"
    raise ConfigError(f"{field}: {why}; {_NAME_ONE}", fields=((field, _NAME_ONE),))


def refuse_shared(directory: Path) -> None:
    """Refuse a data directory that is another user's, open to others, or holds another's file.

    A file put there while the directory was open would be used as ours: a token, a journal, a
    memory.

    Raises:
        ConfigError: it is such a directory, or can't be read.
    """
    try:
        state = directory.stat()
        owners = {
            entry.name: entry.stat(follow_symlinks=False).st_uid
            for entry in os.scandir(directory)
            if entry.name in STATE_NAMES
        }
    except OSError as error:
        raise ConfigError(
            f"the data directory can't be examined: {error.strerror}",
            fields=(("SIDECAR_DATA_DIR", _NAME_ONE),),
        ) from None
    if state.st_uid != os.geteuid():
        raise ConfigError(
            f"the data directory {directory} belongs to another user (uid {state.st_uid})",
            fields=(
                (
                    "SIDECAR_DATA_DIR",
                    f"name a directory of this user's, or: chown -R {os.geteuid()} {directory}",
                ),
            ),
        )
    mode = stat.S_IMODE(state.st_mode)
    if mode & _OTHERS:
        raise ConfigError(
            f"the data directory {directory} is open to other users (mode {mode:04o})",
            fields=(("SIDECAR_DATA_DIR", f"close it: chmod 700 {directory}"),),
        )
    for name, owner in sorted(owners.items()):
        if owner != os.geteuid():
            remedy = f"if you put it there: chown -R {os.geteuid()} {directory}; else remove it"
            raise ConfigError(
                f"{name} in the data directory {directory} belongs to another user (uid {owner})",
                fields=(("SIDECAR_DATA_DIR", remedy),),
            )


def installation_secret(directory: Path) -> bytes:
    """Return this installation's own secret, made on the first start; 32 bytes, file 0600."""
    return _read_or_make(
        directory / _SECRET_FILE,
        good=lambda found: len(found) >= _SECRET_BYTES,
        make=lambda: secrets.token_bytes(32),
    )


def has_secret(directory: Path) -> bool:
    """Whether a start has made a secret in this directory."""
    return (directory / _SECRET_FILE).is_file()


def is_installation_secret(directory: Path, secret: bytes) -> bool:
    """Whether a directory's own secret is this one; it is from here on if there was none."""
    kept = _read_or_make(
        directory / _SECRET_FILE,
        good=lambda found: len(found) >= _SECRET_BYTES,
        make=lambda: secret,
    )
    return kept == secret


def link_token(directory: Path) -> str:
    """Return the token of this data directory, made on the first start; file 0600.

    Only the sidecar calls this, while it owns the directory; others read it with `token_in`.
    """
    path = directory / LINK_TOKEN_FILE
    found = _read_or_make(
        path,
        good=lambda found: _is_token(found.decode("ascii", "replace").strip()),
        make=_new_token,
    )
    return found.decode("ascii").strip()


def token_in(path: Path) -> str:
    """Return the token that a sidecar of this user has left in a file.

    Raises:
        OSError: it can't be read.
        ValueError: it holds no token.
    """
    token = path.read_text(encoding="ascii", errors="replace").strip()
    if not _is_token(token):
        raise ValueError("it holds no token")
    return token


def _new_token() -> bytes:
    return f"{secrets.token_urlsafe(32)}\n".encode()


def _is_token(text: str) -> bool:
    return len(text) >= _TOKEN_CHARS and text.isascii() and text.isprintable() and " " not in text


def _read_or_make(path: Path, *, good: Callable[[bytes], bool], make: Callable[[], bytes]) -> bytes:
    """Return what a file holds; if that is not good, replace it, whole and synced, first."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        found = b""
    if good(found):
        return found
    made = make()
    write_whole(path, made)
    return made


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by a new one (0600), whole or not at all; it is on disk on return.

    Raises:
        OSError: it can't be written; the old file is unchanged.
    """
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
