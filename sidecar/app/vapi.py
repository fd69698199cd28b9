"""The VAPI channel from the settings."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from sidecar.access.deliveries import Deliveries
from sidecar.access.door import REPLAY_WINDOW_S, Credential, Door
from sidecar.calls import Calls
from sidecar.channels.vapi.bodies import Object
from sidecar.channels.vapi.calls import Ends, VapiCalls
from sidecar.channels.vapi.completions import FALLBACK_TEXT, Completions, Policy
from sidecar.channels.vapi.control import Control
from sidecar.channels.vapi.limits import Budget, RateCap, Spent
from sidecar.channels.vapi.routes import Vapi
from sidecar.channels.vapi.shared_limits import SharedLimits
from sidecar.channels.vapi.upstream import HttpUpstream, LlmUpstream, Upstream
from sidecar.channels.vapi.webhook import Assistant, Webhook
from sidecar.config.kinds import names_of, values_of
from sidecar.config.settings import DEFAULT_TENANT, OPENAI_URL, Settings
from sidecar.errors import ConfigError
from sidecar.journal.port import Journal
from sidecar.llm.port import Llm
from sidecar.memory.archive import Archive
from sidecar.privacy import Redact
from sidecar.prompt_wait import Waits
from sidecar.telemetry import Emit
from sidecar.tools.recall import Recall
from sidecar.tracing import NO_TRACES, Tracer
from sidecar.untrusted import MALFORMED

BURST_S = 3.0


def build_vapi(
    settings: Settings,
    calls: Calls,
    journal: Journal,
    llm: Llm,
    archive: Archive,
    *,
    made_token: str = "",
    directory: Path | None = None,
    redact: Redact | None,
    emit: Emit,
    clock: Callable[[], float],
    wall: Callable[[], float] = time.time,
    tracer: Tracer = NO_TRACES,
) -> Vapi | None:
    """Return the channel; None where no credential could admit a request to its routes.

    Where no secret of VAPI's is set, `made_token` opens both routes. If that is empty too, the
    operator set the workers' token, and it does not open VAPI's routes. Without a `directory`, no
    delivery is remembered over a restart. `wall` is Unix time as the machine has it now, `clock`
    never jumps.

    Raises:
        ConfigError: the file of `SIDECAR_VAPI_ASSISTANT` holds no JSON object.
    """
    credentials = [
        Credential(
            tenant,
            tuple(value.encode() for value in values_of(one.key)),
            tuple(value.encode() for value in values_of(one.secret)),
        )
        for tenant, one in settings.vapi_credentials.items()
    ]
    if not credentials and made_token:
        opens = (made_token.encode(),)
        credentials = [Credential(DEFAULT_TENANT, opens, opens)]
    if not credentials:
        return None

    async def is_first(name: str, until_s: float) -> bool:
        return await journal.first(name, until_s=until_s) is None

    deliveries = Deliveries(
        window_s=REPLAY_WINDOW_S,
        wall=wall,
        clock=clock,
        path=directory / "vapi-deliveries" if directory else None,
        is_first=is_first if settings.journal_url else None,
        emit=emit,
    )
    door = Door(credentials, wall=wall, deliveries=deliveries)
    vapi_calls = VapiCalls(
        calls,
        journal,
        Control(emit=emit),
        waits=Waits(settings.memory_wait_s, settings.cold_start_s),
        ends=Ends(settings.vapi_report_s, settings.vapi_idle_s),
        redact=redact,
        emit=emit,
        clock=clock,
        replicas=lambda: limits.replicas,
    )
    upstream = _upstream(settings, llm)
    of_model, of_messages = _rate(settings), _rate(settings)
    budget = Budget(settings.vapi_day_tokens)
    limits = SharedLimits(
        journal,
        rates=(of_model, of_messages),
        budget=budget,
        of_calls=vapi_calls.spent if settings.vapi_call_tokens else dict[str, Spent],
        wall=wall,
    )
    completions = Completions(
        vapi_calls,
        upstream,
        door,
        policy=_policy(settings),
        rate=of_model,
        budget=budget,
        emit=emit,
        clock=clock,
        wall=wall,
        tracer=tracer,
    )
    recall = Recall(archive)
    webhook = Webhook(
        vapi_calls,
        door,
        assistant=Assistant(
            settings.vapi_assistant_id or "", transient_assistant(settings), settings.vapi_trust_web
        ),
        tools=(recall.tool,),
        recall=recall,
        rate=of_messages,
        emit=emit,
        clock=clock,
    )
    return Vapi(vapi_calls, completions, webhook, upstream, limits)


def _upstream(settings: Settings, llm: Llm) -> Upstream:
    if not settings.llm_is_real:
        return LlmUpstream(llm)
    key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else ""
    return HttpUpstream(settings.llm_base_url or OPENAI_URL, key)


def _policy(settings: Settings) -> Policy:
    return Policy(
        model=settings.llm_model,
        models=names_of(settings.vapi_models),
        max_tokens=settings.vapi_max_tokens,
        fallback_s=settings.vapi_fallback_s,
        fallback_text=settings.vapi_fallback_text or FALLBACK_TEXT,
        call_tokens=settings.vapi_call_tokens,
        allow=names_of(settings.vapi_allow),
        trust_web=settings.vapi_trust_web,
        provider=_provider(settings),
    )


def _provider(settings: Settings) -> str:
    """Return who provides the model: OpenTelemetry's name for OpenAI, else the server's host."""
    if not settings.llm_is_real:
        return "demo"
    host = urlsplit(settings.llm_base_url or OPENAI_URL).hostname or ""
    return "openai" if host == urlsplit(OPENAI_URL).hostname else host


def _rate(settings: Settings) -> RateCap:
    return RateCap(settings.vapi_rate_per_s, BURST_S * settings.vapi_rate_per_s)


def transient_assistant(settings: Settings) -> Object | None:
    """Return the assistant that VAPI is given for a call, or None where none is set.

    Raises:
        ConfigError: its file is not a JSON object.
    """
    if settings.vapi_assistant is None:
        return None
    try:
        parsed: object = json.loads(settings.vapi_assistant.read_text(encoding="utf-8-sig"))
    except (OSError, *MALFORMED):
        parsed = None
    if not isinstance(parsed, dict):
        raise ConfigError(
            "SIDECAR_VAPI_ASSISTANT: its file is not a JSON object",
            fields=(("SIDECAR_VAPI_ASSISTANT", "name a JSON file of an assistant"),),
        )
    return cast("Object", parsed)
