"""`sidecar run`: configures logs, prints a banner, and runs the sidecar until a signal."""

import sys
from pathlib import Path

from sidecar.app.local_letta import OpenLetta
from sidecar.app.loop import collect_rarely
from sidecar.app.sidecar import opened
from sidecar.app.voice_worker import Restarting, worker_part
from sidecar.config.settings import Settings
from sidecar.http.server import lift_file_limit
from sidecar.log import configure_logging
from sidecar.privacy import redaction
from sidecar.private import LINK_TOKEN_FILE
from sidecar.telemetry import Telemetry


async def serve(settings: Settings, worker: Path | None, parent: Restarting | None = None) -> None:
    """Serve until a signal (`sidecar run`).

    Args:
        settings: As loaded.
        worker: The voice worker to start where LiveKit is configured; None: there is none.
        parent: The parent that starts this process again, if there is one.
    """
    configure_logging(level=settings.log_level, json=settings.log_json)
    lift_file_limit()
    events = Telemetry(log_text=settings.log_text, redact=redaction(settings.redact))
    page_token = parent.page_token if parent else ""
    async with opened(settings, events, page_token=page_token, say=say_waiting) as sidecar:
        starting = worker if settings.livekit_url is not None else None

        def banner(url: str) -> None:
            token = sidecar.console.token if sidecar.console else ""
            sys.stdout.write(
                _banner(
                    settings,
                    url,
                    token=token,
                    found=sidecar.found,
                    llm=sidecar.llm.name,
                    worker=starting,
                )
            )
            sys.stdout.flush()
            collect_rarely()
            if parent:
                parent.came_up()

        await sidecar.run(
            on_started=banner, extra=worker_part(starting, settings, parent) if starting else None
        )


def _banner(
    settings: Settings, url: str, *, token: str, found: OpenLetta, llm: str, worker: Path | None
) -> str:
    access = "closed: set SIDECAR_LINK_TOKEN or SIDECAR_TENANTS"
    if settings.tokens:
        access = "voice workers connect here, with its token"
    elif settings.makes_token:
        access = f"voice workers of this user connect here; token in {LINK_TOKEN_FILE} of"
        access += " the data directory"
    lines = [
        "",
        "  The voice sidecar for Letta is up.",
        "",
        f"  page      {url}/#{token}" if token else "  page      off",
        f"  link      {url.replace('http', 'ws', 1)}/link   {access}",
        f"  memory    {'DEMO' if found.demo else 'real'}: {found.letta.name}",
        *([f"            {found.note}"] if found.note else []),
        f"  replies   {'real' if settings.llm_is_real else 'DEMO'}: {llm}",
        f"  LiveKit   {f'real: {worker}' if worker else 'not started'}",
        f"  data      {settings.data_dir.expanduser()}",
        "",
    ]
    wishes = [
        (
            settings.letta_generation == "local",
            "a Letta of your own:   set LETTA_API_KEY or LETTA_BASE_URL",
        ),
        (not settings.llm_is_real, "a real language model: set OPENAI_API_KEY, or LLM_BASE_URL"),
        (
            worker is None,
            "a real phone line:     set LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET",
        ),
    ]
    lines += [f"  for {text}" for wished, text in wishes if wished]
    return "\n".join([*lines, "", ""])


def say_waiting(text: str) -> None:
    """Tell the person at the terminal what the start waits for."""
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()
