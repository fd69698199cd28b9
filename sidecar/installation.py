"""This installation's own secret: it keys what must not be guessed by who knows its input."""

import os
import secrets
from pathlib import Path

_LEAST_BYTES = 16


def installation_secret(directory: Path) -> bytes:
    """Return the secret of a data directory, made on the first start; 32 bytes, file 0600."""
    path = directory / "secret"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        kept = path.read_bytes()
        if len(kept) >= _LEAST_BYTES:
            return kept
        path.unlink()
        return installation_secret(directory)
    made = secrets.token_bytes(32)
    with os.fdopen(descriptor, "wb") as file:
        file.write(made)
    return made
