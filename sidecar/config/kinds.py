"""The kinds of settings: each is a type that checks and strips its text."""

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import (
    BeforeValidator,
    SecretStr,
)

from sidecar import environment
from sidecar.environment import HTTP_SCHEMES, WS_SCHEMES

_ALLOWED = re.compile(r"[a-z][a-z0-9_.:-]{0,63}")
# Codes that people write by mistake for a country whose code is another.
_NOT_ITS_REGION = {"UK": "Great Britain is GB", "EL": "Greece is GR", "EN": "Great Britain is GB"}


def _unless_set(check: Any) -> Any:
    """Check a value that comes as text; a default is used as it is."""
    return BeforeValidator(lambda value: check(value) if isinstance(value, str) else value)


def _values_for_headers(text: str) -> str:
    """Check each of the values that commas separate."""
    for part in text.split(","):
        if part.strip():
            environment.header_value(part.strip())
    return text


def _token_or_blank(text: str) -> str:
    """Check a token; a blank one passes here, and is refused later for its length."""
    return environment.header_value(text.strip()) if text.strip() else ""


def _region(text: str) -> str:
    from phonenumbers import SUPPORTED_REGIONS  # noqa: PLC0415 - 70 ms, where a region is set

    name = text.upper() if text.isascii() else text
    if name in _NOT_ITS_REGION:
        raise ValueError(f"{name} is not a region; {_NOT_ITS_REGION[name]}")
    if name not in SUPPORTED_REGIONS:
        raise ValueError("give a country's two-letter ISO 3166 code, such as US or GB")
    return name


def _allowed(text: str) -> str:
    environment.plain(text)
    if not all(_ALLOWED.fullmatch(name) for name in names_of(text)):
        raise ValueError(
            "list reasoning_effort or tool types, separated by commas, such as web_search"
        )
    return text


Flag: TypeAlias = Annotated[bool, _unless_set(environment.flag)]
Text: TypeAlias = Annotated[str, _unless_set(environment.plain)]
OptionalText: TypeAlias = Annotated[str | None, _unless_set(environment.plain)]
OptionalId: TypeAlias = Annotated[str | None, _unless_set(environment.word)]
OptionalSecret: TypeAlias = Annotated[SecretStr | None, _unless_set(environment.header_value)]
LettaPassword: TypeAlias = Annotated[SecretStr | None, _unless_set(environment.password)]
InstallationSecret: TypeAlias = Annotated[SecretStr | None, _unless_set(environment.link_token)]
DatabaseUrl: TypeAlias = Annotated[SecretStr | None, _unless_set(environment.database_url)]
TenantToken: TypeAlias = Annotated[SecretStr, _unless_set(_token_or_blank)]
OneOrTwoSecrets: TypeAlias = Annotated[SecretStr | None, _unless_set(_values_for_headers)]
StatePath: TypeAlias = Annotated[Path, _unless_set(environment.path)]
HttpUrl: TypeAlias = Annotated[
    str | None, _unless_set(partial(environment.base_url, schemes=HTTP_SCHEMES))
]
SocketUrl: TypeAlias = Annotated[
    str | None, _unless_set(partial(environment.base_url, schemes=WS_SCHEMES))
]
LiveKitUrl: TypeAlias = Annotated[
    str | None, _unless_set(partial(environment.url_alone, schemes=(*WS_SCHEMES, *HTTP_SCHEMES)))
]


def values_of(secret: SecretStr) -> tuple[str, ...]:
    """Return the values of a secret that may hold two, with a comma between them."""
    return tuple(part for raw in secret.get_secret_value().split(",") if (part := raw.strip()))


def names_of(text: str) -> frozenset[str]:
    """Return the names in a setting that commas separate."""
    return frozenset(name.strip() for name in text.split(",") if name.strip())


Host: TypeAlias = Annotated[str, _unless_set(environment.host)]
Region: TypeAlias = Annotated[str | None, _unless_set(_region)]
Allowed: TypeAlias = Annotated[str, _unless_set(_allowed)]
HeaderValues: TypeAlias = Annotated[SecretStr, _unless_set(_values_for_headers)]
