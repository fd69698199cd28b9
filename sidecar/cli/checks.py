"""What `sidecar check` and `sidecar doctor` look at, and in which order."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from sidecar import environment
from sidecar.cli import database, machine, servers
from sidecar.cli.finding import Finding
from sidecar.cli.undelivered import lanes
from sidecar.config.agent_map import read_agent_map
from sidecar.config.settings import Settings
from sidecar.environment import default_data_dir
from sidecar.errors import ConfigError
from sidecar.otel_environment import exporter_of
from sidecar.privacy import redaction
from sidecar.private import state_directories, unmake
from sidecar.telemetry import Telemetry

_NONE_RUNS = "not running on this data directory"


def usable(settings: Settings) -> None:
    """Load the files and callables that the settings name, which a start would find missing.

    It leaves nothing behind that was not there before.

    Raises:
        ConfigError: one of them can't be used.
    """
    from sidecar.app.local_letta import why_embedded  # noqa: PLC0415 - slow to load
    from sidecar.app.vapi import transient_assistant  # noqa: PLC0415 - slow to load

    redaction(settings.redact)
    # Only making a directory shows whether it can be made: in /proc, on a full or foreign disk.
    unmake(state_directories(settings.data_dir.expanduser(), settings.spool.expanduser()))
    transient_assistant(settings)
    if settings.letta_generation == "local":
        why_embedded(settings, settings.data_dir.expanduser())
    if settings.agent_map is not None:
        read_agent_map(settings.agent_map, settings.tenant_names)
    if settings.letta_generation == "rest":
        from sidecar.letta.rest.client import CLOUD_URL, open_client  # noqa: PLC0415 - slow to load

        open_client(settings.letta_base_url or CLOUD_URL, None, timeout_s=1.0, limit=1)
    if exporter_of(os.environ)[0] != "none":
        from sidecar.otel import tracer_of  # noqa: PLC0415 - only when asked for

        tracer_of(os.environ, service="check", text=False, emit=Telemetry().emit)


def binds(settings: Settings) -> None:
    """Check that the address is one of this machine; our own sidecar may have taken the port.

    Raises:
        ConfigError: it is not.
    """
    from sidecar.http.server import listen  # noqa: PLC0415

    listen(settings.host, 0).close()


def of_traces() -> dict[str, str]:
    """Return what OpenTelemetry's variables amount to, to be shown with our own settings."""
    exporter, protocol = exporter_of(os.environ)
    return {"OTEL_TRACES_EXPORTER": exporter if exporter == "none" else f"{exporter} ({protocol})"}


def run(settings: Settings) -> Iterator[Finding]:
    """Run all checks, the quick ones first. Blocking; no check takes over 20 s."""
    directory = settings.data_dir.expanduser()
    yield machine.sqlite_version()
    yield machine.permissions(directory)
    yield from machine.on_disk(directory)
    yield machine.clock()
    if settings.journal_url is not None:
        yield from database.findings(settings)
    sidecar = running(directory)
    is_running = sidecar.found != _NONE_RUNS
    yield (
        machine.binding(settings)
        if is_running
        else machine.free_port(settings) or machine.binding(settings)
    )
    yield from anyio.run(servers.letta_answers, settings)
    yield anyio.run(servers.model_answers, settings)
    yield anyio.run(servers.livekit_answers, settings)
    yield servers.collector_answers()
    yield sidecar
    yield lanes(settings, running=is_running, now_s=time.time())


def run_without_settings(error: ConfigError) -> Iterator[Finding]:
    """Report the wrong settings, and run the checks that need no settings.

    A public bind without a secret is one of the wrong settings.
    """
    for field, remedy in error.fields:
        yield Finding("settings", "bad", f"{field} is wrong", f"{field}: {remedy}")
    yield machine.sqlite_version()
    with contextlib.suppress(ConfigError):  # named above
        named = environment.read(os.environ, "SIDECAR_DATA_DIR", environment.path)
        directory = named or default_data_dir()
        yield machine.permissions(directory)
        yield from machine.on_disk(directory)
    yield machine.clock()


def running(directory: Path) -> Finding:
    """Check whether a sidecar runs on this data directory, and in which state."""
    from sidecar.cli.reach import CommandRefused, ask_readiness  # noqa: PLC0415

    try:
        state = ask_readiness(directory)
    except CommandRefused:
        return Finding("sidecar", "ok", _NONE_RUNS)
    if not state.get("ready"):
        return Finding(
            "sidecar", "bad", f"running, not ready: journal {state.get('journal')}", "see its log"
        )
    if state.get("dead_batches"):
        return Finding(
            "sidecar",
            "warning",
            f"running, {state['dead_batches']} dead letters",
            "sidecar outbox list, then sidecar outbox replay --all",
        )
    waiting = f"{state.get('undelivered_turns')} turns undelivered"
    return Finding("sidecar", "ok", f"running, {state.get('live_calls')} live calls, {waiting}")
