"""Settings: read once from the environment, frozen, checked together, printable without secrets.

Every wrong field is named, with its remedy, in one `ConfigError`.
"""

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from sidecar import environment
from sidecar.config.json_once import NamedTwice, named_once
from sidecar.config.kinds import (
    Allowed,
    DatabaseUrl,
    Flag,
    HeaderValues,
    Host,
    HttpUrl,
    InstallationSecret,
    LettaPassword,
    LiveKitUrl,
    OneOrTwoSecrets,
    OptionalId,
    OptionalSecret,
    OptionalText,
    Region,
    SocketUrl,
    StatePath,
    TenantToken,
    Text,
    values_of,
)
from sidecar.environment import (
    HTTP_SCHEMES,
    MAKE_ONE,
    SECRET_CHARS,
    WS_SCHEMES,
    default_data_dir,
)
from sidecar.errors import ConfigError
from sidecar.privacy import names_in
from sidecar.untrusted import MALFORMED

DEFAULT_PORT = 8377
DEFAULT_TENANT = "default"
OPENAI_URL = "https://api.openai.com/v1"
_DAY_S = 86_400.0
_YEAR_S = 366 * _DAY_S
_NO_MORE_TOKENS = 10**12


class VapiCredential(BaseModel):
    """One tenant's key of the model endpoint and secret of the server URL.

    Each may be two values with a comma between them while one replaces the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: HeaderValues
    secret: HeaderValues


class Settings(BaseSettings):
    """All settings of the sidecar process. Each field's environment variable is its alias."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=False, allow_inf_nan=False
    )

    # Where it listens
    host: Host = Field("127.0.0.1", alias="SIDECAR_HOST")
    port: int = Field(DEFAULT_PORT, alias="SIDECAR_PORT", ge=0, le=65535)
    link_token: OptionalSecret = Field(None, alias="SIDECAR_LINK_TOKEN")
    tenants: dict[str, TenantToken] = Field(default_factory=dict, alias="SIDECAR_TENANTS")
    console: Flag = Field(True, alias="SIDECAR_CONSOLE")

    # Where it keeps things
    data_dir: StatePath = Field(default_factory=default_data_dir, alias="SIDECAR_DATA_DIR")
    journal_url: DatabaseUrl = Field(None, alias="SIDECAR_JOURNAL_URL")
    secret: InstallationSecret = Field(None, alias="SIDECAR_SECRET")
    spool_dir: StatePath | None = Field(None, alias="SIDECAR_SPOOL_DIR")
    retention_days: float = Field(30, alias="SIDECAR_RETENTION_DAYS", gt=0, le=36_500)

    # What it keeps of a call
    redact: Text = Field("", alias="SIDECAR_REDACT")
    consent: Literal["assumed", "required"] = Field("assumed", alias="SIDECAR_CONSENT")

    # Letta
    letta_api_key: LettaPassword = Field(None, alias="LETTA_API_KEY")
    letta_base_url: HttpUrl = Field(None, alias="LETTA_BASE_URL")
    letta_app_server_url: SocketUrl = Field(None, alias="LETTA_APP_SERVER_URL")
    letta_app_server_token: LettaPassword = Field(None, alias="LETTA_APP_SERVER_TOKEN")
    letta_agent_model: Text = Field("", alias="LETTA_AGENT_MODEL")
    letta_agent_embedding: Text = Field("", alias="LETTA_AGENT_EMBEDDING")

    reflect: Flag = Field(False, alias="SIDECAR_REFLECT")

    # Where no Letta is configured above: the Letta of this machine
    letta: Literal["auto", "app-server", "embedded"] = Field("auto", alias="SIDECAR_LETTA")
    app_server_program: StatePath = Field(
        Path(".app-server-venv/bin/letta"),
        alias="SIDECAR_APP_SERVER_PROGRAM",
        validate_default=True,
    )

    # Whose memory
    agent_id: OptionalId = Field(
        None, validation_alias=AliasChoices("SIDECAR_AGENT_ID", "LETTA_AGENT_ID")
    )
    agent_map: StatePath | None = Field(None, alias="SIDECAR_AGENT_MAP")
    create_agents: Flag = Field(True, alias="SIDECAR_CREATE_AGENTS")
    default_region: Region = Field(None, alias="SIDECAR_DEFAULT_REGION")

    # The language model of the console, of VAPI's replies and of this machine's Letta
    llm_base_url: HttpUrl = Field(None, alias="LLM_BASE_URL")
    llm_api_key: OptionalSecret = Field(
        None, validation_alias=AliasChoices("LLM_API_KEY", "OPENAI_API_KEY")
    )
    llm_model: Text = Field("gpt-4o-mini", alias="LLM_MODEL")

    # LiveKit
    livekit_url: LiveKitUrl = Field(None, alias="LIVEKIT_URL")
    livekit_api_key: OptionalSecret = Field(None, alias="LIVEKIT_API_KEY")
    livekit_api_secret: OptionalSecret = Field(None, alias="LIVEKIT_API_SECRET")

    # VAPI: the model endpoint and the server URL
    vapi_key: OneOrTwoSecrets = Field(None, alias="SIDECAR_VAPI_KEY")
    vapi_secret: OneOrTwoSecrets = Field(None, alias="SIDECAR_VAPI_SECRET")
    vapi_tenants: dict[str, VapiCredential] = Field(
        default_factory=dict, alias="SIDECAR_VAPI_TENANTS"
    )
    vapi_models: Text = Field("", alias="SIDECAR_VAPI_MODELS")
    vapi_allow: Allowed = Field("", alias="SIDECAR_VAPI_ALLOW")
    vapi_max_tokens: int = Field(1_024, alias="SIDECAR_VAPI_MAX_TOKENS", ge=1, le=1_000_000)
    vapi_call_tokens: int = Field(
        500_000, alias="SIDECAR_VAPI_CALL_TOKENS", ge=0, le=_NO_MORE_TOKENS
    )
    vapi_day_tokens: int = Field(
        20_000_000, alias="SIDECAR_VAPI_DAY_TOKENS", ge=0, le=_NO_MORE_TOKENS
    )
    vapi_rate_per_s: float = Field(200.0, alias="SIDECAR_VAPI_RATE_PER_S", gt=0, le=1_000_000)
    vapi_fallback_s: float = Field(8.0, alias="SIDECAR_VAPI_FALLBACK_S", gt=0, le=15)
    vapi_fallback_text: OptionalText = Field(None, alias="SIDECAR_VAPI_FALLBACK_TEXT")
    vapi_assistant_id: OptionalId = Field(None, alias="SIDECAR_VAPI_ASSISTANT_ID")
    vapi_assistant: StatePath | None = Field(None, alias="SIDECAR_VAPI_ASSISTANT")
    vapi_trust_web: Flag = Field(False, alias="SIDECAR_VAPI_TRUST_WEB")
    vapi_report_s: float = Field(30.0, alias="SIDECAR_VAPI_REPORT_S", gt=0, le=_DAY_S)
    vapi_idle_s: float = Field(300.0, alias="SIDECAR_VAPI_IDLE_S", gt=0, le=_DAY_S)

    # Before the prompt
    memory_wait_s: float = Field(0.15, alias="SIDECAR_MEMORY_WAIT_S", ge=0, le=5)
    cold_start_s: float = Field(0.8, alias="SIDECAR_COLD_START_S", ge=0, le=10)
    fresh_s: float = Field(5.0, alias="SIDECAR_FRESH_S", ge=0, le=_DAY_S)
    poll_s: float = Field(10.0, alias="SIDECAR_POLL_S", gt=0, le=_DAY_S)
    read_timeout_s: float = Field(5.0, alias="SIDECAR_READ_TIMEOUT_S", gt=0, le=_DAY_S)
    # The maximum ensures that any memory fits into one frame of the link.
    memory_chars: int = Field(12_000, alias="SIDECAR_MEMORY_CHARS", ge=0, le=50_000)
    block_chars: int = Field(4_000, alias="SIDECAR_BLOCK_CHARS", ge=0, le=50_000)
    recent_chars: int = Field(4_000, alias="SIDECAR_RECENT_CHARS", ge=0, le=50_000)

    # After the reply
    post_max_turns: int = Field(20, alias="SIDECAR_POST_MAX_TURNS", ge=1, le=200)
    post_max_age_s: float = Field(60.0, alias="SIDECAR_POST_MAX_AGE_S", ge=0, le=_DAY_S)
    post_timeout_s: float = Field(60.0, alias="SIDECAR_POST_TIMEOUT_S", gt=0, le=_DAY_S)
    post_concurrency: int = Field(64, alias="SIDECAR_POST_CONCURRENCY", ge=1, le=1024)
    give_up_s: float = Field(7 * _DAY_S, alias="SIDECAR_GIVE_UP_S", gt=0, le=10 * _YEAR_S)
    orphan_s: float = Field(30.0, alias="SIDECAR_ORPHAN_S", gt=0, le=_DAY_S)

    # Going away
    drain_calls_s: float = Field(600.0, alias="SIDECAR_DRAIN_CALLS_S", ge=0, le=_DAY_S)
    drain_flush_s: float = Field(20.0, alias="SIDECAR_DRAIN_FLUSH_S", ge=0, le=_DAY_S)

    # Logs and traces
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="SIDECAR_LOG_LEVEL"
    )
    log_json: Flag = Field(False, alias="SIDECAR_LOG_JSON")
    log_text: Flag = Field(False, alias="SIDECAR_LOG_TEXT")
    trace_text: Flag = Field(False, alias="SIDECAR_TRACE_TEXT")

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the values that `load` passes in; it reads the environment."""
        return (init_settings,)

    @field_validator("tenants", "vapi_tenants", mode="before")
    @classmethod
    def _tenants_from_json(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            environment.lines(value)
            try:
                return json.loads(value, object_pairs_hook=named_once)
            except NamedTwice:
                raise ValueError("name each tenant once") from None
            except MALFORMED:
                shape = '"token"' if info.field_name == "tenants" else '{"key": "…", "secret": "…"}'
                raise ValueError(f'write it as JSON: {{"tenant": {shape}}}') from None
        return value

    @field_validator("tenants", "vapi_tenants")
    @classmethod
    def _tenant_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not name or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError("a tenant's name is letters, digits, - and _")
        return value

    @field_validator("agent_map", "vapi_assistant")
    @classmethod
    def _map_is_there(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not os.path.isfile(value):  # noqa: PTH113 - raises nothing
            what = "of caller to agent id" if info.field_name == "agent_map" else "of an assistant"
            raise ValueError(f"name a JSON file {what}")
        return value

    @field_validator("app_server_program")
    @classmethod
    def _from_here(cls, value: Path) -> Path:
        try:
            return value.absolute()
        except OSError:  # the working directory was removed, so no relative path can be found
            return value

    @field_validator("redact")
    @classmethod
    def _redactions(cls, value: str) -> str:
        if value and not names_in(value):
            raise ValueError("list what to redact, such as cards,emails; or unset it")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.loopback and not self.tokens:
            raise ValueError(
                "SIDECAR_HOST: bound beyond this machine without a secret: set SIDECAR_LINK_TOKEN"
            )
        parts = (self.livekit_url, self.livekit_api_key, self.livekit_api_secret)
        if any(parts) and not all(parts):
            raise ValueError(
                "LIVEKIT_URL: set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET together"
            )
        for variable, url, key_variable, key in (
            ("LLM_BASE_URL", self.llm_base_url, "LLM_API_KEY and OPENAI_API_KEY", self.llm_api_key),
            ("LETTA_BASE_URL", self.letta_base_url, "LETTA_API_KEY", self.letta_api_key),
            (
                "LETTA_APP_SERVER_URL",
                self.letta_app_server_url,
                "LETTA_APP_SERVER_TOKEN",
                self.letta_app_server_token,
            ),
        ):
            if url is not None and key is not None and environment.has_user(url):
                raise ValueError(
                    f"{variable}: remove the user and password from it, or unset {key_variable}:"
                    " a request has one of them"
                )
        if bool(self.vapi_key) != bool(self.vapi_secret):
            missing = "SIDECAR_VAPI_SECRET" if self.vapi_key else "SIDECAR_VAPI_KEY"
            raise ValueError(
                f"{missing}: set SIDECAR_VAPI_KEY (the model endpoint) and SIDECAR_VAPI_SECRET"
                " (the server URL) together"
            )
        if self.livekit_url is not None and not self.makes_token and not self.tokens:
            raise ValueError(
                "SIDECAR_LINK_TOKEN: with SIDECAR_VAPI_TENANTS, voice workers need a token of their"
                f" tenant: set SIDECAR_TENANTS, or {MAKE_ONE}"
            )
        if self.agent_id is not None and len(self.tenant_names) > 1:
            raise ValueError(
                "SIDECAR_AGENT_ID: several tenants would share one memory: name agents by"
                " SIDECAR_AGENT_MAP, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _secrets_differ_and_are_long(self) -> Self:
        for variable, tokens in self._link_values():
            if any(len(token) < SECRET_CHARS for token in tokens):
                raise ValueError(f"{variable}: at least {SECRET_CHARS} characters; {MAKE_ONE}")
        for variable, by_tenant in self._vapi_values():
            values = [value for of_tenant in by_tenant for value in of_tenant]
            if any(not 1 <= len(of_tenant) <= 2 for of_tenant in by_tenant):  # noqa: PLR2004
                raise ValueError(f"{variable}: one value, or two with a comma between them")
            if any(len(value) < SECRET_CHARS for value in values):
                raise ValueError(f"{variable}: at least {SECRET_CHARS} characters; {MAKE_ONE}")
            if len(set(values)) != len(values):
                raise ValueError(f"{variable}: two tenants share one: give each its own")
        if len(set(self.tokens)) != len(self.tenants) + bool(self.link_token):
            raise ValueError("SIDECAR_TENANTS: two tenants share one token: give each its own")
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the sidecar."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def makes_token(self) -> bool:
        """Whether the sidecar makes the token itself, in its data directory, because none is set.

        It does not where VAPI's secrets name tenants: it could not know whose workers connect.
        """
        return not self.tokens and set(self.tenant_names) == {DEFAULT_TENANT}

    @property
    def tokens(self) -> Mapping[str, str]:
        """Tenant by bearer token, as set. Empty: see `makes_token`."""
        by_token = {token.get_secret_value(): name for name, token in self.tenants.items()}
        if self.link_token is not None:
            by_token[self.link_token.get_secret_value()] = DEFAULT_TENANT
        return by_token

    @property
    def vapi_credentials(self) -> Mapping[str, VapiCredential]:
        """The credentials of each tenant's VAPI account, as set. Empty: see `makes_token`."""
        credentials = dict(self.vapi_tenants)
        if self.vapi_key is not None and self.vapi_secret is not None:
            credentials[DEFAULT_TENANT] = VapiCredential(key=self.vapi_key, secret=self.vapi_secret)
        return credentials

    def _link_values(self) -> list[tuple[str, list[str]]]:
        link = [self.link_token] if self.link_token is not None else []
        return [
            ("SIDECAR_LINK_TOKEN", [token.get_secret_value() for token in link]),
            ("SIDECAR_TENANTS", [one.get_secret_value() for one in self.tenants.values()]),
        ]

    def _vapi_values(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        credentials = self.vapi_credentials.values()
        return [
            ("SIDECAR_VAPI_KEY", [values_of(one.key) for one in credentials]),
            ("SIDECAR_VAPI_SECRET", [values_of(one.secret) for one in credentials]),
        ]

    @property
    def tenant_names(self) -> frozenset[str]:
        """The names of all tenants; the default one if none is named."""
        return frozenset({*self.tokens.values(), *self.vapi_credentials}) or frozenset(
            {DEFAULT_TENANT}
        )

    @property
    def spool(self) -> Path:
        """The directory in which workers leave turns that were not acked."""
        return self.spool_dir or self.data_dir / "spool"

    @property
    def letta_generation(self) -> Literal["app-server", "rest", "local"]:
        """Which Letta is configured; `local`: none, so the Letta of this machine is used."""
        if self.letta_app_server_url:
            return "app-server"
        return "rest" if self.letta_api_key or self.letta_base_url else "local"

    def at(self, place: str) -> Self:
        """Return these settings with another Letta; its key or token is the one set here.

        Args:
            place: `embedded` or `app-server` (of this machine), `cloud`, or a URL: `ws://…` of an
                App Server, `http://…` or `https://…` of a server with the REST interface.

        Raises:
            ConfigError: it is none of these, or it is Letta Cloud and no key is set.
        """
        change: dict[str, object] = {"letta_app_server_url": None, "letta_base_url": None}
        if place in {"embedded", "app-server"}:
            change |= {"letta_api_key": None, "letta": place}
        elif place.startswith(("ws://", "wss://")):
            change |= {"letta_app_server_url": _url_of_place(place, WS_SCHEMES)}
        elif place.startswith(("http://", "https://")):
            change |= {"letta_base_url": _url_of_place(place, HTTP_SCHEMES)}
        elif place != "cloud":
            remedy = "write embedded, app-server, cloud, or a URL (ws://, http://, https://)"
            raise ConfigError(f"{place[:100]}: no such Letta: {remedy}", fields=(("", remedy),))
        elif self.letta_api_key is None:
            remedy = "set it to a key of Letta Cloud"
            raise ConfigError(f"LETTA_API_KEY: {remedy}", fields=(("LETTA_API_KEY", remedy),))
        return self.model_copy(update=change)

    @property
    def llm_is_real(self) -> bool:
        """Whether a language model is configured; otherwise the demo model answers."""
        return bool(self.llm_base_url or self.llm_api_key)

    @override
    def __repr__(self) -> str:
        return f"Settings({self.redacted()})"

    __str__ = __repr__

    def redacted(self) -> dict[str, str]:
        """Return every setting as text by its variable, secrets as `***`."""
        shown: dict[str, str] = {}
        for name, variable in environment_names().items():
            value: Any = getattr(self, name)
            if isinstance(value, SecretStr):
                shown[variable[0]] = "***"
            elif name in {"tenants", "vapi_tenants"}:
                shown[variable[0]] = ", ".join(f"{tenant}=***" for tenant in value)
            elif value is not None:
                shown[variable[0]] = _without_userinfo(str(value))
        return shown


def _url_of_place(place: str, schemes: tuple[str, ...]) -> str:
    try:
        return environment.base_url(place, schemes)
    except ValueError as error:
        raise ConfigError(f"no such Letta: {error}", fields=(("", str(error)),)) from None


def _without_userinfo(text: str) -> str:
    """Replace user and password with `***` if a text is a URL."""
    return re.sub(r"^([a-z]+://)[^/@\s]*@", r"\1***@", text)


def environment_names() -> dict[str, tuple[str, ...]]:
    """Environment variables of each field, the preferred one first."""
    variables: dict[str, tuple[str, ...]] = {}
    for name, info in Settings.model_fields.items():
        alias = info.validation_alias
        if isinstance(alias, AliasChoices):
            variables[name] = tuple(str(choice) for choice in alias.choices)
        else:
            variables[name] = (str(alias or info.alias),)
    return variables
