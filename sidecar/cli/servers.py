"""What `sidecar doctor` checks of the servers that the settings name: whether each answers."""

import json
import os
import socket
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from sidecar import environment
from sidecar.cli.finding import Finding
from sidecar.config.settings import Settings
from sidecar.errors import AgentNotFound, ConfigError, LettaError, SidecarError
from sidecar.otel_environment import exporter_of
from sidecar.untrusted import MALFORMED

_CLOCK_WRONG_S = 5.0
_CONNECT_S = 3.0
_ANSWER_S = 15.0
_LATE = "no answer in time"


async def letta_answers(settings: Settings) -> list[Finding]:
    """Ask the Letta of the settings for an agent; with a classic one, compare the clocks too."""
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
        said, hint = _why(error)
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


async def model_answers(settings: Settings) -> Finding:
    """Ask the model server for a first word."""
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
        said, hint = _why(error)
        fix = hint or "check LLM_BASE_URL, LLM_API_KEY and LLM_MODEL"
        return Finding("language model", "bad", f"{llm.name}: {said}", fix)
    finally:
        await llm.aclose()
    return Finding(
        "language model", "ok", f"{llm.name}, first word in {time.perf_counter() - began_s:.2f} s"
    )


async def livekit_answers(settings: Settings) -> Finding:
    """Connect to the LiveKit server of the settings; the key is not tried."""
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


def collector_answers() -> Finding:
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


def _why(error: SidecarError | TimeoutError) -> tuple[str, str]:
    """Return what went wrong, and the remedy if it is known."""
    return (error.message, error.hint) if isinstance(error, SidecarError) else (_LATE, "")


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return True
    except (OSError, UnicodeError):  # no such host, or not a valid name
        return False
