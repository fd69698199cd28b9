"""What `sidecar doctor` checks: each finding says what was found and, if wrong, the remedy."""

import contextlib
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from sidecar import environment
from sidecar.config.agent_map import read_agent_map
from sidecar.config.settings import Settings
from sidecar.environment import default_data_dir
from sidecar.errors import AgentNotFound, ConfigError, LettaError, SidecarError
from sidecar.otel_environment import exporter_of
from sidecar.privacy import redaction
from sidecar.private import (
    LINK_TOKEN_FILE,
    refuse_no_directory,
    refuse_shared,
    state_directories,
    unmake,
)
from sidecar.telemetry import Telemetry
from sidecar.untrusted import MALFORMED

Verdict: TypeAlias = Literal["ok", "warning", "bad"]

_SQLITE_MIN = (3, 51, 3)
"""First version without the WAL-reset bug of 3.7.0 to 3.51.2 (sqlite.org/wal.html, 11)."""
_FSYNC_SLOW_S = 0.05
_FSYNC_BAD_S = 0.5
_FSYNC_TRIES = 9
_DISK_LOW_BYTES = 1 << 30
_DISK_BAD_BYTES = 100 << 20
_CLOCK_WRONG_S = 5.0
_CONNECT_S = 3.0
_NONE_RUNS = "not running on this data directory"
_ANSWER_S = 15.0
_BUILT_S = 1_735_689_600.0  # 2025-01-01: a clock that shows an earlier time was never set


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        what: Name of the check, short and stable: programs may look for it.
        verdict: `bad` stops the sidecar or loses words; `warning` is worth a look.
        found: What was found.
        fix: One line, empty when nothing is to be done.
    """

    what: str
    verdict: Verdict
    found: str
    fix: str = ""


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
    from sidecar.cli.undelivered import lanes  # noqa: PLC0415 - it knows a Finding

    directory = settings.data_dir.expanduser()
    yield sqlite_version()
    yield permissions(directory)
    yield from on_disk(directory)
    yield clock()
    sidecar = running(directory)
    is_running = sidecar.found != _NONE_RUNS
    yield binding(settings) if is_running else free_port(settings) or binding(settings)
    yield from anyio.run(_letta, settings)
    yield anyio.run(_llm, settings)
    yield anyio.run(_livekit, settings)
    yield traces()
    yield sidecar
    yield lanes(settings, directory, running=is_running, now_s=time.time())


def run_without_settings(error: ConfigError) -> Iterator[Finding]:
    """Report the wrong settings, and run the checks that need no settings.

    A public bind without a secret is one of the wrong settings.
    """
    for field, remedy in error.fields:
        yield Finding("settings", "bad", f"{field} is wrong", f"{field}: {remedy}")
    yield sqlite_version()
    with contextlib.suppress(ConfigError):  # named above
        named = environment.read(os.environ, "SIDECAR_DATA_DIR", environment.path)
        directory = named or default_data_dir()
        yield permissions(directory)
        yield from on_disk(directory)
    yield clock()


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


async def _letta(settings: Settings) -> list[Finding]:
    from sidecar.app.from_settings import configured_letta  # noqa: PLC0415

    if settings.letta_generation == "local":
        return [await anyio.to_thread.run_sync(_local_letta, settings)]
    letta = configured_letta(settings)
    began_s = time.perf_counter()
    try:
        with anyio.fail_after(_ANSWER_S):
            if settings.agent_id:
                await letta.read_blocks(settings.agent_id)
            else:
                await letta.find_agents(("voice-sidecar",))
    except AgentNotFound:
        return [
            Finding(
                "letta",
                "bad",
                f"{letta.name} has no agent {settings.agent_id}",
                "set SIDECAR_AGENT_ID to one of `sidecar agents list`, or unset it",
            )
        ]
    except (LettaError, TimeoutError) as error:
        said = error.message if isinstance(error, LettaError) else "no answer in time"
        hint = error.hint if isinstance(error, LettaError) else ""
        app_server = settings.letta_generation == "app-server"
        named = "LETTA_APP_SERVER_URL" if app_server else "LETTA_BASE_URL and LETTA_API_KEY"
        fix = hint or f"check {named}"
        return [Finding("letta", "bad", f"{letta.name}: {said}", fix)]
    finally:
        await letta.aclose()
    took_s = time.perf_counter() - began_s
    if settings.letta_generation == "app-server":
        return [Finding("letta", "ok", f"{letta.name} (App Server), {took_s * 1e3:.0f} ms")]
    url = settings.letta_base_url or "https://api.letta.com"
    version, skew_s = await anyio.to_thread.run_sync(_version_and_skew, url)
    generation = f"classic server {version}" if version else "REST"
    found = [Finding("letta", "ok", f"{letta.name} ({generation}), {took_s * 1e3:.0f} ms")]
    if skew_s is not None and abs(skew_s) > _CLOCK_WRONG_S:
        found.append(
            Finding(
                "clock skew",
                "warning",
                f"this clock differs from Letta's by {skew_s:+.0f} s",
                "set both clocks by NTP: ages and look-ups compare them",
            )
        )
    return found


def _local_letta(settings: Settings) -> Finding:
    """Check which Letta of this machine would be used; nothing is started."""
    from sidecar.app.local_letta import why_away, why_embedded  # noqa: PLC0415
    from sidecar.letta.embedded.store import why_unreadable  # noqa: PLC0415

    fix = "set LETTA_API_KEY (Letta Cloud) or LETTA_BASE_URL (your server)"
    directory = settings.data_dir.expanduser()
    try:
        why = why_embedded(settings, directory)
    except ConfigError as error:
        return Finding("letta", "bad", error.message, error.fields[0][1])
    if why and (unreadable := why_unreadable(directory / "letta.db")):
        found = f"the embedded Letta's file can't be read: {unreadable}"
        return Finding("letta", "bad", found, f"repair {directory / 'letta.db'}, or move it away")
    if why:
        return Finding(
            "letta", "warning", f"none set, so the embedded demo Letta is used: {why}", fix
        )
    if away := why_away(settings):
        return Finding("letta", "bad", f"the App Server of this machine: {away}", "fix that")
    return Finding("letta", "ok", "the App Server of this machine, started with the sidecar")


def _version_and_skew(url: str) -> tuple[str, float | None]:
    """Return the version at a classic server's health route, and how far our clock is ahead."""
    import http.client  # noqa: PLC0415
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    try:
        health = f"{url}/v1/health/"
        with urllib.request.urlopen(health, timeout=_CONNECT_S) as answer:  # noqa: S310
            date = answer.headers.get("date")
            version = str(json.loads(answer.read(4096)).get("version", ""))[:32]
    except urllib.error.HTTPError as error:
        with error:
            date, version = error.headers.get("date"), ""
    except (OSError, http.client.HTTPException, AttributeError, *MALFORMED):
        return "", None
    try:
        return version, time.time() - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):  # no date, or not a valid one
        return version, None


async def _llm(settings: Settings) -> Finding:
    if not settings.llm_is_real:
        return Finding(
            "language model",
            "warning",
            "none set, so the demo model answers",
            "set OPENAI_API_KEY, or LLM_BASE_URL and LLM_MODEL",
        )
    from sidecar.app.from_settings import build_llm  # noqa: PLC0415

    llm = build_llm(settings)
    began_s = time.perf_counter()
    try:
        with anyio.fail_after(_ANSWER_S):
            async for _ in llm.stream([{"role": "user", "content": "Say: ok"}]):
                break
    except (SidecarError, TimeoutError) as error:
        said = error.message if isinstance(error, SidecarError) else "no answer in time"
        hint = error.hint if isinstance(error, SidecarError) else ""
        fix = hint or "check LLM_BASE_URL, LLM_API_KEY and LLM_MODEL"
        return Finding("language model", "bad", f"{llm.name}: {said}", fix)
    finally:
        await llm.aclose()
    return Finding(
        "language model", "ok", f"{llm.name}, first word in {time.perf_counter() - began_s:.2f} s"
    )


async def _livekit(settings: Settings) -> Finding:
    if settings.livekit_url is None:
        return Finding(
            "livekit",
            "warning",
            "not set: no phone line",
            "set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET",
        )
    parts = urlsplit(settings.livekit_url)
    port = parts.port or (443 if parts.scheme in {"wss", "https"} else 80)
    where = f"{parts.hostname}:{port}"
    reached = await anyio.to_thread.run_sync(_connects, parts.hostname or "", port)
    if not reached:
        return Finding("livekit", "bad", f"{where} does not answer", "check LIVEKIT_URL")
    return Finding("livekit", "ok", f"{where} answers (the key was not checked)")


def traces() -> Finding:
    """Look at the collector that OpenTelemetry's variables name."""
    exporter, protocol = exporter_of(os.environ)
    if exporter != "otlp":
        return Finding("traces", "ok", "off" if exporter == "none" else f"to the {exporter}")
    default = "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318"
    named = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    url = environment.said(os.environ, *named) or default
    parts = urlsplit(url if "//" in url else f"//{url}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    where = f"{parts.hostname}:{port}"
    if not parts.hostname or not _connects(parts.hostname, port):
        fix = "start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT: calls go on without it"
        return Finding("traces", "warning", f"{where} does not answer", fix)
    return Finding("traces", "ok", f"{where} answers ({protocol})")


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return True
    except (OSError, UnicodeError):  # no such host, or not a valid name
        return False


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
