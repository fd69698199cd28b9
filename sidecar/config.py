"""Settings: read once from the environment, frozen, checked whole, printable without secrets.

Every wrong field is named, with its remedy, in one `ConfigError`.
"""

import difflib
import ipaddress
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from sidecar.errors import ConfigError
from sidecar.privacy import names_in
from sidecar.tracing import exporter_of

DEFAULT_PORT = 8377
DEFAULT_TENANT = "default"
OPENAI_URL = "https://api.openai.com/v1"
_SECRET_CHARS = 16
_MAKE_ONE = "make one with: openssl rand -hex 16"
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
# Read by the worker's end (sidecar/channels), not by the sidecar itself.
_WORKER_NAMES = frozenset({"SIDECAR_LINK_URL"})


def default_data_dir() -> Path:
    """Where state lives when nothing else is said: the XDG state directory of this user."""
    root = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(root) / "letta-sidecar"


def _blank_is_unset(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


OptionalStr = Annotated[str | None, BeforeValidator(_blank_is_unset)]
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(_blank_is_unset)]


class VapiCredential(BaseModel):
    """One tenant's key of the model endpoint and secret of the server URL.

    Each may be two values with a comma between them while one replaces the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: SecretStr
    secret: SecretStr


class Settings(BaseSettings):
    """All settings of the sidecar process. Each field's environment variable is its alias."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=False)

    # Where it listens
    host: str = Field("127.0.0.1", alias="SIDECAR_HOST")
    port: int = Field(DEFAULT_PORT, alias="SIDECAR_PORT", ge=0, le=65535)
    link_token: OptionalSecret = Field(None, alias="SIDECAR_LINK_TOKEN")
    tenants: dict[str, SecretStr] = Field(default_factory=dict, alias="SIDECAR_TENANTS")
    console: bool = Field(True, alias="SIDECAR_CONSOLE")

    # Where it keeps things
    data_dir: Path = Field(default_factory=default_data_dir, alias="SIDECAR_DATA_DIR")
    spool_dir: Path | None = Field(None, alias="SIDECAR_SPOOL_DIR")
    retention_days: float = Field(30, alias="SIDECAR_RETENTION_DAYS", gt=0)

    # What it keeps of a call
    redact: str = Field("", alias="SIDECAR_REDACT")
    consent: Literal["assumed", "required"] = Field("assumed", alias="SIDECAR_CONSENT")

    # Letta
    letta_api_key: OptionalSecret = Field(None, alias="LETTA_API_KEY")
    letta_base_url: OptionalStr = Field(None, alias="LETTA_BASE_URL")
    letta_app_server_url: OptionalStr = Field(None, alias="LETTA_APP_SERVER_URL")
    letta_app_server_token: OptionalSecret = Field(None, alias="LETTA_APP_SERVER_TOKEN")
    letta_agent_model: str = Field("", alias="LETTA_AGENT_MODEL")
    letta_agent_embedding: str = Field("", alias="LETTA_AGENT_EMBEDDING")

    reflect: bool = Field(False, alias="SIDECAR_REFLECT")

    # Where none of these is set: the Letta of this machine
    letta: Literal["auto", "app-server", "embedded"] = Field("auto", alias="SIDECAR_LETTA")
    app_server_program: Path = Field(
        Path(".app-server-venv/bin/letta"),
        alias="SIDECAR_APP_SERVER_PROGRAM",
        validate_default=True,
    )

    # Whose memory
    agent_id: OptionalStr = Field(
        None, validation_alias=AliasChoices("SIDECAR_AGENT_ID", "LETTA_AGENT_ID")
    )
    agent_map: Path | None = Field(None, alias="SIDECAR_AGENT_MAP")
    create_agents: bool = Field(True, alias="SIDECAR_CREATE_AGENTS")
    default_region: OptionalStr = Field(None, alias="SIDECAR_DEFAULT_REGION")

    # The language model of the console and of the embedded Letta
    llm_base_url: OptionalStr = Field(None, alias="LLM_BASE_URL")
    llm_api_key: OptionalSecret = Field(
        None, validation_alias=AliasChoices("LLM_API_KEY", "OPENAI_API_KEY")
    )
    llm_model: str = Field("gpt-4o-mini", alias="LLM_MODEL", min_length=1)

    # LiveKit
    livekit_url: OptionalStr = Field(None, alias="LIVEKIT_URL")
    livekit_api_key: OptionalSecret = Field(None, alias="LIVEKIT_API_KEY")
    livekit_api_secret: OptionalSecret = Field(None, alias="LIVEKIT_API_SECRET")

    # VAPI: the model endpoint and the server URL
    vapi_key: OptionalSecret = Field(None, alias="SIDECAR_VAPI_KEY")
    vapi_secret: OptionalSecret = Field(None, alias="SIDECAR_VAPI_SECRET")
    vapi_tenants: dict[str, VapiCredential] = Field(
        default_factory=dict, alias="SIDECAR_VAPI_TENANTS"
    )
    vapi_models: str = Field("", alias="SIDECAR_VAPI_MODELS")
    vapi_max_tokens: int = Field(1_024, alias="SIDECAR_VAPI_MAX_TOKENS", ge=1)
    vapi_call_tokens: int = Field(500_000, alias="SIDECAR_VAPI_CALL_TOKENS", ge=0)
    vapi_day_tokens: int = Field(20_000_000, alias="SIDECAR_VAPI_DAY_TOKENS", ge=0)
    vapi_rate_per_s: float = Field(200.0, alias="SIDECAR_VAPI_RATE_PER_S", gt=0)
    vapi_fallback_s: float = Field(8.0, alias="SIDECAR_VAPI_FALLBACK_S", gt=0, le=15)
    vapi_fallback_text: OptionalStr = Field(None, alias="SIDECAR_VAPI_FALLBACK_TEXT")
    vapi_assistant_id: OptionalStr = Field(None, alias="SIDECAR_VAPI_ASSISTANT_ID")
    vapi_assistant: Path | None = Field(None, alias="SIDECAR_VAPI_ASSISTANT")
    vapi_trust_web: bool = Field(False, alias="SIDECAR_VAPI_TRUST_WEB")
    vapi_report_s: float = Field(30.0, alias="SIDECAR_VAPI_REPORT_S", gt=0)
    vapi_idle_s: float = Field(300.0, alias="SIDECAR_VAPI_IDLE_S", gt=0)

    # Before the prompt
    memory_wait_s: float = Field(0.15, alias="SIDECAR_MEMORY_WAIT_S", ge=0, le=5)
    cold_start_s: float = Field(0.8, alias="SIDECAR_COLD_START_S", ge=0, le=10)
    fresh_s: float = Field(5.0, alias="SIDECAR_FRESH_S", ge=0)
    poll_s: float = Field(10.0, alias="SIDECAR_POLL_S", gt=0)
    read_timeout_s: float = Field(5.0, alias="SIDECAR_READ_TIMEOUT_S", gt=0)
    # At most so much that a memory fits into one frame of the link, whatever is in it.
    memory_chars: int = Field(12_000, alias="SIDECAR_MEMORY_CHARS", ge=0, le=50_000)
    block_chars: int = Field(4_000, alias="SIDECAR_BLOCK_CHARS", ge=0, le=50_000)
    recent_chars: int = Field(4_000, alias="SIDECAR_RECENT_CHARS", ge=0, le=50_000)

    # After the reply
    post_max_turns: int = Field(20, alias="SIDECAR_POST_MAX_TURNS", ge=1, le=200)
    post_max_age_s: float = Field(60.0, alias="SIDECAR_POST_MAX_AGE_S", ge=0)
    post_timeout_s: float = Field(60.0, alias="SIDECAR_POST_TIMEOUT_S", gt=0)
    post_concurrency: int = Field(64, alias="SIDECAR_POST_CONCURRENCY", ge=1, le=1024)
    give_up_s: float = Field(7 * 86_400.0, alias="SIDECAR_GIVE_UP_S", gt=0)
    orphan_s: float = Field(30.0, alias="SIDECAR_ORPHAN_S", gt=0)

    # Going away
    drain_calls_s: float = Field(600.0, alias="SIDECAR_DRAIN_CALLS_S", ge=0)
    drain_flush_s: float = Field(20.0, alias="SIDECAR_DRAIN_FLUSH_S", ge=0)

    # What it says of itself
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", alias="SIDECAR_LOG_LEVEL"
    )
    log_json: bool = Field(False, alias="SIDECAR_LOG_JSON")
    log_text: bool = Field(False, alias="SIDECAR_LOG_TEXT")
    trace_text: bool = Field(False, alias="SIDECAR_TRACE_TEXT")

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
        """The environment reaches this class through `load` alone."""
        return (init_settings,)

    @field_validator("tenants", "vapi_tenants", mode="before")
    @classmethod
    def _tenants_from_json(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            if not value.strip():
                return {}
            try:
                return json.loads(value)
            except ValueError:
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

    @field_validator("letta_app_server_url")
    @classmethod
    def _socket_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("ws://", "wss://")):
            raise ValueError("start it with ws:// or wss://")
        return value.rstrip("/") if value else value

    @field_validator("letta_base_url", "llm_base_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("start it with http:// or https://")
        return value.rstrip("/") if value else value

    @field_validator("livekit_url")
    @classmethod
    def _ws_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("ws://", "wss://", "http://", "https://")):
            raise ValueError("start it with wss:// (or ws:// on this machine)")
        return value

    @field_validator("agent_map", "vapi_assistant")
    @classmethod
    def _map_is_there(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not value.is_file():
            what = "of caller to agent id" if info.field_name == "agent_map" else "of an assistant"
            raise ValueError(f"name a JSON file {what}")
        return value

    @field_validator("app_server_program")
    @classmethod
    def _from_here(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("redact")
    @classmethod
    def _redactions(cls, value: str) -> str:
        names_in(value)
        return value

    @field_validator("default_region")
    @classmethod
    def _region(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 2 or not value.isalpha()):  # noqa: PLR2004
            raise ValueError("name a country by two letters, as in US or FR")
        return value.upper() if value else value

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
        if bool(self.vapi_key) != bool(self.vapi_secret):
            missing = "SIDECAR_VAPI_SECRET" if self.vapi_key else "SIDECAR_VAPI_KEY"
            raise ValueError(
                f"{missing}: set SIDECAR_VAPI_KEY (the model endpoint) and SIDECAR_VAPI_SECRET"
                " (the server URL) together"
            )
        if self.livekit_url is not None and not self.makes_token and not self.tokens:
            raise ValueError(
                "SIDECAR_LINK_TOKEN: with SIDECAR_VAPI_TENANTS, voice workers need a token of their"
                f" tenant: set SIDECAR_TENANTS, or {_MAKE_ONE}"
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
            if any(len(token) < _SECRET_CHARS for token in tokens):
                raise ValueError(f"{variable}: at least {_SECRET_CHARS} characters; {_MAKE_ONE}")
        for variable, by_tenant in self._vapi_values():
            values = [value for of_tenant in by_tenant for value in of_tenant]
            if any(not 1 <= len(of_tenant) <= 2 for of_tenant in by_tenant):  # noqa: PLR2004
                raise ValueError(f"{variable}: one value, or two with a comma between them")
            if any(len(value) < _SECRET_CHARS for value in values):
                raise ValueError(f"{variable}: at least {_SECRET_CHARS} characters; {_MAKE_ONE}")
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
        """Whether the sidecar makes the token itself, in its data directory: none is set.

        Not where VAPI's secrets name tenants: it could not say whose workers those are.
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
        """What each tenant's VAPI account shows, as set. Empty: see `makes_token`."""
        credentials = dict(self.vapi_tenants)
        if self.vapi_key is not None and self.vapi_secret is not None:
            credentials[DEFAULT_TENANT] = VapiCredential(key=self.vapi_key, secret=self.vapi_secret)
        return credentials

    def _link_values(self) -> list[tuple[str, list[str]]]:
        link = [self.link_token] if self.link_token is not None else []
        return [
            ("SIDECAR_LINK_TOKEN", [token.get_secret_value().strip() for token in link]),
            ("SIDECAR_TENANTS", [one.get_secret_value().strip() for one in self.tenants.values()]),
        ]

    def _vapi_values(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        credentials = self.vapi_credentials.values()
        return [
            ("SIDECAR_VAPI_KEY", [values_of(one.key) for one in credentials]),
            ("SIDECAR_VAPI_SECRET", [values_of(one.secret) for one in credentials]),
        ]

    @property
    def tenant_names(self) -> frozenset[str]:
        """Every tenant there is; one when none is named."""
        return frozenset({*self.tokens.values(), *self.vapi_credentials}) or frozenset(
            {DEFAULT_TENANT}
        )

    @property
    def spool(self) -> Path:
        """Where workers leave what they could not hand over."""
        return self.spool_dir or self.data_dir / "spool"

    @property
    def letta_generation(self) -> Literal["app-server", "rest", "local"]:
        """Which Letta the configuration asks for; `local`: none, so that of this machine."""
        if self.letta_app_server_url:
            return "app-server"
        return "rest" if self.letta_api_key or self.letta_base_url else "local"

    def at(self, place: str) -> Self:
        """Return these settings with another Letta; its key or token is the one set here.

        Args:
            place: `embedded` or `app-server` (of this machine), `cloud`, or a URL: `ws://…` of an
                App Server, `http://…` or `https://…` of a server with the REST interface.

        Raises:
            ConfigError: it is none of these, or Letta Cloud without a key.
        """
        change: dict[str, object] = {"letta_app_server_url": None, "letta_base_url": None}
        if place in {"embedded", "app-server"}:
            change |= {"letta_api_key": None, "letta": place}
        elif place.startswith(("ws://", "wss://")):
            change |= {"letta_app_server_url": place.rstrip("/")}
        elif place.startswith(("http://", "https://")):
            change |= {"letta_base_url": place.rstrip("/")}
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
        """Return every setting as text under its variable, secrets as `***`."""
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


def _without_userinfo(text: str) -> str:
    """Take a user and password out of what is a URL."""
    return re.sub(r"^([a-z]+://)[^/@\s]*@", r"\1***@", text)


def values_of(secret: SecretStr) -> tuple[str, ...]:
    """Return the values of a secret that may be two, with a comma between them."""
    return tuple(part for raw in secret.get_secret_value().split(",") if (part := raw.strip()))


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


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment.

    Args:
        environ: In place of the process's own environment.

    Raises:
        ConfigError: one or more fields are wrong; `fields` names every one with its remedy.
    """
    environ = os.environ if environ is None else environ
    known = [variable for names in environment_names().values() for variable in names]
    fields: list[tuple[str, str]] = []
    for name in environ:
        if name.startswith("SIDECAR_") and name not in known and name not in _WORKER_NAMES:
            near = difflib.get_close_matches(name, known, n=1)
            fields.append(
                (
                    name,
                    f"no such setting; did you mean {near[0]}?"
                    if near
                    else "no such setting; remove it",
                )
            )
    values = {name: environ[name] for name in known if name in environ}
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_input=False, include_context=False):
            field = str(item["loc"][0]) if item["loc"] else ""
            message = item["msg"].removeprefix("Value error, ")
            if not field:
                field, _, message = message.partition(": ")
            fields.append((field, message))
    try:
        exporter_of(environ)
    except ConfigError as error:
        fields.extend(error.fields)
    if fields or settings is None:
        lines = [f"  {field}: {remedy}" for field, remedy in fields]
        raise ConfigError("wrong settings:\n" + "\n".join(lines), fields=tuple(fields))
    return settings


def read_agent_map(path: Path, tenants: Collection[str]) -> dict[str, str]:
    """Read the map file: a JSON object of caller (number, identity or id) to agent id.

    Args:
        path: The file.
        tenants: All there are; with several, each caller stands behind `TENANT/`.

    Raises:
        ConfigError: it is no such file, or an entry would never be found.
    """
    several = len(tenants) > 1
    remedy = f'write it as JSON: {{"{"TENANT/" if several else ""}+12025550100": "agent-…"}}'
    try:
        raw: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"SIDECAR_AGENT_MAP can't be read: {type(error).__name__}",
            fields=(("SIDECAR_AGENT_MAP", remedy),),
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(
            "SIDECAR_AGENT_MAP is no JSON object", fields=(("SIDECAR_AGENT_MAP", remedy),)
        )
    entries = cast("dict[str, object]", raw)
    if not all(isinstance(agent, str) and agent for agent in entries.values()):
        raise ConfigError(
            "SIDECAR_AGENT_MAP: every value is an agent id", fields=(("SIDECAR_AGENT_MAP", remedy),)
        )
    for entry in entries:
        tenant, _, caller = entry.partition("/") if several else ("", "", entry)
        if several and tenant not in tenants:
            raise ConfigError(
                "SIDECAR_AGENT_MAP: an entry names no tenant",
                fields=(("SIDECAR_AGENT_MAP", remedy),),
            )
        if caller.startswith("+") and not _E164.fullmatch(caller):
            raise ConfigError(
                "SIDECAR_AGENT_MAP: a number is not written in E.164",
                fields=(("SIDECAR_AGENT_MAP", remedy),),
            )
    return cast("dict[str, str]", entries)
