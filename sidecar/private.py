"""What is this user's alone: directories (0700), and the secrets that are kept in them (0600).

All functions block: call them off the loop, or before it runs.
"""

import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from sidecar.errors import ConfigError

LINK_TOKEN_FILE = "link-token"  # noqa: S105 - a name
"""In the data directory: what opens the sidecar where no token is set."""
_SECRET_FILE = "secret"  # noqa: S105 - a name
_TOKEN_CHARS = 16
_SECRET_BYTES = 16
_OTHERS = 0o077
OPENED = (
    "app-server",
    "control.json",
    "journal.db",
    "letta.db",
    LINK_TOKEN_FILE,
    _SECRET_FILE,
    "snapshots",
    "spool",
    "vapi-deliveries",
)
"""How the names begin of what a sidecar opens in its data directory; the rest is its owner's affair."""


def make_directory(path: Path) -> None:
    """Make a directory and each parent that is missing, every one 0700 whatever the umask.

    What is there keeps its mode.

    Raises:
        OSError: it can't be made, or is no directory.
    """
    missing: list[Path] = []
    there = path
    while not there.exists():
        missing.append(there)
        there = there.parent
    for directory in reversed(missing):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:  # another process was quicker
            continue
        directory.chmod(0o700)  # a umask may have taken rights of ours
    path.mkdir(exist_ok=True)


def refuse_no_directory(path: Path, field: str = "SIDECAR_DATA_DIR") -> None:
    """Refuse a path where no directory of ours is or can be made; nothing is made.

    Args:
        path: Of the directory.
        field: The setting that names it.

    Raises:
        ConfigError: it, or what it would be made in, is a file, a link that leads nowhere, or
            nothing that this user may use.
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
    remedy = "name a directory that this user may write"
    raise ConfigError(f"{field}: {why}; {remedy}", fields=((field, remedy),))


def refuse_shared(directory: Path) -> None:
    """Refuse a data directory that another user owns, may look into, or has left a file of ours in.

    What was put there while it was open would be opened as ours: a token, a journal, a memory.

    Raises:
        ConfigError: it is one, or can't be looked at.
    """
    try:
        state = directory.stat()
        owners = {
            entry.name: entry.stat(follow_symlinks=False).st_uid
            for entry in os.scandir(directory)
            if entry.name.startswith(OPENED)
        }
    except OSError as error:
        raise ConfigError(
            f"the data directory can't be looked at: {error.strerror}",
            fields=(("SIDECAR_DATA_DIR", "name a directory that this user may write"),),
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
    return _kept(
        directory / _SECRET_FILE,
        good=lambda kept: len(kept) >= _SECRET_BYTES,
        make=lambda: secrets.token_bytes(32),
    )


def link_token(directory: Path) -> str:
    """Return the token of this data directory, made on the first start; file 0600.

    The sidecar alone calls this, while it owns the directory; others read it by `token_in`.
    """
    path = directory / LINK_TOKEN_FILE
    kept = _kept(
        path,
        good=lambda kept: _is_token(kept.decode("ascii", "replace").strip()),
        make=_new_token,
    )
    return kept.decode("ascii").strip()


def token_in(path: Path) -> str:
    """Return the token that a sidecar of this user has left in a file.

    Raises:
        OSError: it can't be read.
        ValueError: it holds no token.
    """
    token = path.read_text(encoding="ascii", errors="replace").strip()
    if not _is_token(token):
        raise ValueError("no token is in it")
    return token


def _new_token() -> bytes:
    return f"{secrets.token_urlsafe(32)}\n".encode()


def _is_token(text: str) -> bool:
    return len(text) >= _TOKEN_CHARS and text.isascii() and text.isprintable() and " " not in text


def _kept(path: Path, *, good: Callable[[bytes], bool], make: Callable[[], bytes]) -> bytes:
    """Return what a file holds; where that is no good, what is put there, whole and synced."""
    try:
        kept = path.read_bytes()
    except FileNotFoundError:
        kept = b""
    if good(kept):
        return kept
    made = make()
    write_whole(path, made)
    return made


def write_whole(path: Path, content: bytes) -> None:
    """Put a file (0600) in the place of another, whole or not at all; on disk on return.

    Raises:
        OSError: it can't be written; what was there is there still.
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
