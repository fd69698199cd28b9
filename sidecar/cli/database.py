"""What `sidecar doctor` says of the journal's PostgreSQL database."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sidecar.cli.finding import Finding
from sidecar.config.settings import Settings
from sidecar.errors import JournalError

if TYPE_CHECKING:
    from sidecar.app.journal import DatabaseStatus

_SERVER_MIN = 140_000
"""The oldest PostgreSQL that its project maintains (postgresql.org/support/versioning)."""
_ROUND_TRIP_SLOW_S = 0.005
_CLOCK_AHEAD_S = 5.0

_POOLERS = {
    "none": "none: replicas are notified at once",
    "session": "one session for each connection: replicas are notified at once",
    "transaction": "one session for each transaction: replicas look once a second",
}


def findings(settings: Settings) -> Iterator[Finding]:
    """Look at the database of the journal. Blocking."""
    from sidecar.app.journal import database_status, place_of  # noqa: PLC0415 - slow to load

    try:
        found = database_status(place_of(settings, settings.data_dir))
    except JournalError as error:
        yield Finding("database", "bad", error.message, error.hint)
        return
    yield _version(found)
    yield _takes_writes(found)
    yield _durable(found)
    yield Finding("compiler", "ok", f"jit {'on' if found.jit else 'off'}; off for writes")
    yield Finding("pooler", "ok", _POOLERS[found.pooling])
    yield _near(found)
    yield _clock(found)


def _version(found: "DatabaseStatus") -> Finding:
    version = f"PostgreSQL {found.server // 10_000}.{found.server % 10_000}"
    if found.server < _SERVER_MIN:
        return Finding("database", "bad", version, "use PostgreSQL 14 or later")
    schema = f"schema {found.schema}" if found.schema else "no journal yet"
    if 0 < found.schema < found.newest:
        return Finding(
            "database",
            "warning",
            f"{version}, {schema}, this version makes {found.newest}",
            "sidecar journal migrate, or start this version",
        )
    return Finding("database", "ok", f"{version}, {schema}")


def _takes_writes(found: "DatabaseStatus") -> Finding:
    if found.read_only:
        return Finding(
            "writes",
            "bad",
            "the database is read-only",
            "name the primary in SIDECAR_JOURNAL_URL, with target_session_attrs=read-write",
        )
    if not found.may_write:
        return Finding(
            "writes",
            "bad",
            "this role may not write to the journal's tables",
            "let the role of SIDECAR_JOURNAL_URL own them",
        )
    return Finding("writes", "ok", f"written by {', '.join(found.writers) or 'nobody now'}")


def _durable(found: "DatabaseStatus") -> Finding:
    if not found.fsync:
        return Finding(
            "durability",
            "bad",
            "fsync is off: a power cut loses turns that were acked",
            "set fsync = on in postgresql.conf",
        )
    return Finding(
        "durability",
        "ok",
        f"fsync on; synchronous_commit {found.synchronous_commit}, on for writes",
    )


def _near(found: "DatabaseStatus") -> Finding:
    shown = f"{found.round_trip_s * 1e3:.1f} ms a statement"
    if found.round_trip_s > _ROUND_TRIP_SLOW_S:
        return Finding(
            "distance", "warning", shown, "put the database nearer: a stored turn waits for several"
        )
    return Finding("distance", "ok", shown)


def _clock(found: "DatabaseStatus") -> Finding:
    ahead_s = found.clock_ahead_s
    shown = f"the database's is {abs(ahead_s):.1f} s {'ahead' if ahead_s >= 0 else 'behind'}"
    if abs(ahead_s) > _CLOCK_AHEAD_S:
        return Finding("clocks", "warning", shown, "set both: timedatectl set-ntp true")
    return Finding("clocks", "ok", shown)
