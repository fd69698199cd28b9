"""Builds parts from the settings: the model, Letta, the rules, the traces."""

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from sidecar import telemetry
from sidecar.access.callers import IdentityRules
from sidecar.app.local_letta import OpenLetta, opened_locally
from sidecar.config.agent_map import read_agent_map
from sidecar.config.settings import DEFAULT_TENANT, OPENAI_URL, Settings
from sidecar.jobs.forget import Copies, Forgetting
from sidecar.journal.erasure import Erasure
from sidecar.letta.port import Letta
from sidecar.llm.port import Llm
from sidecar.otel_environment import exporter_of
from sidecar.privacy import redaction
from sidecar.private import state_directories
from sidecar.tracing import NO_TRACES, Tracer

FLUSH_TRACES_S = 2.0


def prepare_data_dir(settings: Settings) -> Path:
    """Make the data directory, 0700, and return it.

    Raises:
        ConfigError: it can't be made or written, or it is open to other users.
    """
    directory = settings.data_dir.expanduser()
    state_directories(directory, settings.spool.expanduser())
    return directory


def build_llm(settings: Settings) -> Llm:
    """Return the language model the settings ask for: a real one, or the demo model."""
    if not settings.llm_is_real:
        from sidecar.demo.model import DemoModel  # noqa: PLC0415

        return DemoModel()
    from sidecar.llm.openai import OpenAiLlm  # noqa: PLC0415

    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else ""
    base_url = settings.llm_base_url or OPENAI_URL
    return OpenAiLlm(base_url, key, settings.llm_model)


@asynccontextmanager
async def opened_letta(
    settings: Settings,
    directory: Path,
    *,
    llm: Llm,
    patient: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> AsyncGenerator[OpenLetta]:
    """Open the Letta the settings ask for: by a URL or a key, else the one of this machine.

    Args:
        settings: As loaded.
        directory: The data directory.
        llm: The model for the agents of this machine's Letta.
        patient: As for `opened_locally`.
        say: Called with a text about what it waits for.

    Raises:
        ConfigError, LettaError: as `opened_locally`.
    """
    if settings.letta_generation == "local":
        async with opened_locally(settings, directory, llm=llm, patient=patient, say=say) as ours:
            yield ours
        return
    letta = configured_letta(settings)
    try:
        yield OpenLetta(letta)
    finally:
        await letta.aclose()


def configured_letta(settings: Settings) -> Letta:
    """Return the Letta that a URL or a key in the settings names."""
    if settings.letta_app_server_url:
        from sidecar.letta.app_server.letta import AppServerLetta  # noqa: PLC0415

        token = settings.letta_app_server_token
        return AppServerLetta(
            settings.letta_app_server_url,
            token.get_secret_value() if token else None,
            read_timeout_s=settings.read_timeout_s,
            post_timeout_s=settings.post_timeout_s,
            reflect=settings.reflect,
        )
    from sidecar.letta.rest.letta import RestLetta  # noqa: PLC0415 - the SDK costs 60 MB

    key = settings.letta_api_key.get_secret_value() if settings.letta_api_key else None
    return RestLetta(
        settings.letta_base_url,
        key,
        read_timeout_s=settings.read_timeout_s,
        post_timeout_s=settings.post_timeout_s,
    )


def identity_rules(settings: Settings) -> IdentityRules:
    """Return how callers become agents."""
    tenants = settings.tenant_names
    return IdentityRules(
        agent_id=settings.agent_id,
        agent_map=read_agent_map(settings.agent_map, tenants) if settings.agent_map else {},
        create_agents=settings.create_agents,
        default_region=settings.default_region,
        one_tenant=len(tenants) == 1,
        model=settings.letta_agent_model,
        embedding=settings.letta_agent_embedding,
    )


def spool_tenant(settings: Settings) -> str | None:
    """Return the tenant whose workers write to the spool; None where several could."""
    tenants = set(settings.tokens.values()) or {DEFAULT_TENANT}
    return tenants.pop() if len(tenants) == 1 else None


def build_forgetting(
    settings: Settings,
    directory: Path,
    journal: Erasure,
    letta: Letta,
    copies: Copies,
    *,
    rules: IdentityRules,
    on_the_line: Callable[[str], bool],
    emit: telemetry.Emit,
    clock: Callable[[], float],
) -> Forgetting:
    """Return the object that forgets callers, for a running sidecar or without one.

    Args:
        settings: As loaded.
        directory: The data directory.
        journal: Of this sidecar.
        letta: Where agents live.
        copies: Last good copies of their memory.
        rules: As from `identity_rules`.
        on_the_line: Whether a caller, by its key, is in a live call of this process.
        emit: Where events go.
        clock: Unix time in seconds.
    """
    return Forgetting(
        journal,
        letta,
        copies,
        rules=rules,
        directory=directory,
        spool=settings.spool.expanduser(),
        spool_tenant=spool_tenant(settings),
        on_the_line=on_the_line,
        emit=emit,
        clock=clock,
    )


@asynccontextmanager
async def traced(settings: Settings, emit: telemetry.Emit) -> AsyncGenerator[Tracer]:
    """Make spans as the OTEL_* variables say; at the end, flush them for at most `FLUSH_TRACES_S`.

    Raises:
        ConfigError: a variable is wrong.
    """
    if exporter_of(os.environ)[0] == "none":
        yield NO_TRACES
        return
    from sidecar.otel import tracer_of  # noqa: PLC0415 - only when asked for

    tracer = tracer_of(
        os.environ,
        service="letta-voice-sidecar",
        text=settings.trace_text,
        emit=emit,
        redact=redaction(settings.redact),
    )
    assert tracer is not None
    try:
        yield tracer
    finally:
        with anyio.CancelScope(shield=True):
            await tracer.flush(FLUSH_TRACES_S, last=True)
