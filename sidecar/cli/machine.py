"""What `sidecar doctor` checks on this machine: files, disk, clock, port."""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sidecar.cli.finding import Finding, Verdict
from sidecar.config.settings import Settings
from sidecar.errors import ConfigError
from sidecar.private import LINK_TOKEN_FILE, refuse_no_directory, refuse_shared

_SQLITE_MIN = (3, 51, 3)
"""First version without the WAL-reset bug of 3.7.0 to 3.51.2 (sqlite.org/wal.html, 11)."""
_FSYNC_SLOW_S = 0.05
_FSYNC_BAD_S = 0.5
_FSYNC_TRIES = 9
_DISK_LOW_BYTES = 1 << 30
_DISK_BAD_BYTES = 100 << 20
_BUILT_S = 1_735_689_600.0  # 2025-01-01: a clock that shows an earlier time was never set


def sqlite_version() -> Finding:
    """Look at the SQLite that the journal uses."""
    import apsw  # noqa: PLC0415

    version = apsw.sqlite_lib_version()
    if tuple(int(part) for part in version.split(".")) < _SQLITE_MIN:
        return Finding(
            "sqlite", "bad", f"{version} may lose a write-ahead log", "install apsw 3.54 or later"
        )
    return Finding("sqlite", "ok", version)


def permissions(directory: Path) -> Finding:
    """Look at who may read the data directory."""
    try:
        refuse_no_directory(directory)
        if not directory.exists():
            return Finding("permissions", "ok", f"{directory} is created at the first start")
        # A file in a closed directory is closed, whatever its own mode says.
        refuse_shared(directory)
    except ConfigError as error:
        return Finding("permissions", "bad", error.message, error.fields[0][1])
    return Finding("permissions", "ok", f"only this user can read {directory}")


def on_disk(directory: Path) -> Iterator[Finding]:
    """Look at the space and at how long an fsync takes."""
    there = next(p for p in (directory, *directory.parents) if os.path.exists(p))  # noqa: PTH110
    free = shutil.disk_usage(there).free
    verdict: Verdict = (
        "bad" if free < _DISK_BAD_BYTES else "warning" if free < _DISK_LOW_BYTES else "ok"
    )
    yield Finding(
        "disk",
        verdict,
        f"{free / (1 << 30):.1f} GiB free",
        "" if verdict == "ok" else f"free space on the disk that holds {directory}",
    )
    if there != directory:
        return
    try:
        median_s = _fsync_s(directory)
    except OSError as error:
        yield Finding(
            "fsync", "bad", f"a file can't be written: {error.strerror}", "see disk, permissions"
        )
        return
    slow: Verdict = (
        "bad" if median_s > _FSYNC_BAD_S else "warning" if median_s > _FSYNC_SLOW_S else "ok"
    )
    yield Finding(
        "fsync",
        slow,
        f"{median_s * 1e3:.1f} ms (median of {_FSYNC_TRIES})",
        ""
        if slow == "ok"
        else "put SIDECAR_DATA_DIR on a local SSD: each stored turn waits this long",
    )


def _fsync_s(directory: Path) -> float:
    taken: list[float] = []
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".doctor-") as file:
        for _ in range(_FSYNC_TRIES):
            file.write(b"x" * 4096)
            file.flush()
            began_s = time.perf_counter()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - began_s)
    return statistics.median(taken)


def clock() -> Finding:
    """Check that this machine's clock was ever set; a classic Letta's is compared with it later."""
    if time.time() < _BUILT_S:
        return Finding(
            "clock", "bad", "it shows a time before 2025", "set it: timedatectl set-ntp true"
        )
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def binding(settings: Settings) -> Finding:
    """Report who can reach the sidecar; a public bind without a long secret was refused before."""
    where = f"{settings.host}:{settings.port}"
    if settings.loopback:
        opened = "with a token"
        if not settings.tokens:
            made = f"with the token in {LINK_TOKEN_FILE} of the data directory"
            opened = made if settings.makes_token else "closed to voice workers"
        return Finding("bind", "ok", f"{where}, this machine only, {opened}")
    return Finding("bind", "ok", f"{where}, open to the network, with a token")


def free_port(settings: Settings) -> Finding | None:
    """Check whether a sidecar could listen; None: it could. For when none of ours is running."""
    from sidecar.http.server import listen  # noqa: PLC0415

    try:
        listen(settings.host, settings.port).close()
    except ConfigError as error:
        field, remedy = error.fields[0]
        later = remedy.startswith("another program")  # it may be free by then
        verdict: Verdict = "warning" if later else "bad"
        return Finding("bind", verdict, error.message, f"{field}: {remedy}")
    return None
