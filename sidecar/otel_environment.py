"""What OpenTelemetry's standard variables ask for, and which of their values its SDK can use.

The SDK fails with a traceback on some wrong values, and ignores others: traces are then lost
without a message. Only values that are used are checked, so none if no traces are asked for.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias
from urllib.parse import unquote

from sidecar import environment
from sidecar.environment import HTTP_SCHEMES, said
from sidecar.errors import ConfigError

_Check: TypeAlias = Callable[[str], bool]

_EXPORTERS: Final = ("otlp", "console", "none")
_PROTOCOLS: Final = ("http/protobuf", "grpc")
_NUMBER = re.compile(r"[0-9]{1,10}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PRINTABLE = re.compile(r"[ -~]*")
_PEM = b"-----BEGIN "
_PEM_LIMIT_BYTES: Final = 1 << 20
_QUEUE_SPANS: Final = "2048"
_BATCH_SPANS: Final = "512"


def exporter_of(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return which exporter of spans the variables ask for, and its protocol.

    `OTEL_TRACES_EXPORTER` names the exporter; if unset, it is `otlp` with an endpoint set, and
    `none` without. `OTEL_SDK_DISABLED=true` is `none`.

    Raises:
        ConfigError: the exporter or the protocol is not supported; `fields` names it.
    """
    endpoint = said(environ, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter = _one_of(_EXPORTERS, environ, "OTEL_TRACES_EXPORTER")
    of_traces, of_all = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = _one_of(_PROTOCOLS, environ, of_traces, of_all) or _PROTOCOLS[0]
    if (said(environ, "OTEL_SDK_DISABLED") or "").lower() == "true":
        return "none", protocol
    return exporter or ("otlp" if endpoint else "none"), protocol


def _one_of(known: Sequence[str], environ: Mapping[str, str], *names: str) -> str | None:
    """Return the value of the first of these variables that is set; it has to be a known one."""

    def check(text: str) -> str:
        if text not in known:
            raise ValueError(f"one of {', '.join(known)}")
        return text

    name = next((name for name in names if said(environ, name)), names[0])
    return environment.read(environ, name, check)


def wrong_variables(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return each variable that OpenTelemetry can't use as it is, with its remedy.

    No remedy repeats a value: a header holds a key.
    """
    try:
        exporter, protocol = exporter_of(environ)
    except ConfigError as error:
        return list(error.fields)
    if exporter == "none":
        return []
    checks = {**_of_sdk(), **(_of_exporter(protocol) if exporter == "otlp" else {})}
    found = [
        (name, remedy)
        for name, (check, remedy) in checks.items()
        if (value := said(environ, name)) is not None and not check(value)
    ]
    return found or _queue(environ)


def _of_sdk() -> Mapping[str, tuple[_Check, str]]:
    number = (_positive, "write a number above 0")
    limit = (_limit, "write a whole number of 0 or more")
    share = (_share, "write a share of 0 to 1, as in 0.1")
    batches = ("SCHEDULE_DELAY", "EXPORT_TIMEOUT", "MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE")
    limits = (
        *("ATTRIBUTE_COUNT", "ATTRIBUTE_VALUE_LENGTH", "EVENT_ATTRIBUTE_COUNT"),
        *("LINK_ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_VALUE_LENGTH"),
        *("SPAN_EVENT_COUNT", "SPAN_LINK_COUNT"),
    )
    return (
        {f"OTEL_BSP_{name}": number for name in batches}
        | {f"OTEL_{name}_LIMIT": limit for name in limits}
        | {"OTEL_TRACES_SAMPLER_ARG": share}
    )


def _of_exporter(protocol: str) -> Mapping[str, tuple[_Check, str]]:
    over_grpc = protocol == "grpc"
    compressions = {"gzip"} if over_grpc else {"none", "deflate", "gzip"}
    pem = (_pem, "name a file of PEM that this user may read")
    checks: dict[str, tuple[_Check, str]] = {
        "ENDPOINT": (
            lambda value: _endpoint(value, scheme_free=over_grpc),
            "write it as http://HOST:PORT or https://HOST:PORT",
        ),
        "HEADERS": (_headers, "write it as NAME=VALUE, with commas between, in printable ASCII"),
        "CERTIFICATE": pem,
        "CLIENT_KEY": pem,
        "CLIENT_CERTIFICATE": pem,
        "COMPRESSION": (
            lambda value: value.lower() in compressions,
            f"one of {', '.join(sorted(compressions))}",
        ),
        "INSECURE": (lambda value: value.lower() in {"true", "false"}, "write true or false"),
        "TIMEOUT": (
            lambda value: _positive(value.replace(".", "", 1)),
            "write a number above 0",
        ),
    }
    return {
        f"OTEL_EXPORTER_OTLP_{of_traces}{name}": check
        for name, check in checks.items()
        for of_traces in ("", "TRACES_")
    }


def _queue(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    name = "OTEL_BSP_MAX_QUEUE_SIZE"
    batch = said(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE") or _BATCH_SPANS
    if int(batch) > int(said(environ, name) or _QUEUE_SPANS):
        return [(name, f"at least OTEL_BSP_MAX_EXPORT_BATCH_SIZE, which is {int(batch)} here")]
    return []


def _positive(value: str) -> bool:
    return _NUMBER.fullmatch(value) is not None and int(value) > 0


def _limit(value: str) -> bool:
    return _NUMBER.fullmatch(value) is not None or value.lower() == "unset"


def _share(value: str) -> bool:
    try:
        return value.isascii() and 0 <= float(value) <= 1
    except ValueError:
        return False


def _endpoint(value: str, *, scheme_free: bool) -> bool:
    try:
        environment.url(
            f"http://{value}" if scheme_free and "//" not in value else value, HTTP_SCHEMES
        )
    except ValueError:
        return False
    return True


def _headers(value: str) -> bool:
    for part in value.split(","):
        name, equals, written = part.strip().partition("=")
        if not part.strip():
            continue
        if not (
            equals and _HEADER.fullmatch(name.strip()) and _PRINTABLE.fullmatch(unquote(written))
        ):
            return False
    return True


def _pem(value: str) -> bool:
    try:
        if not os.path.isfile(value):  # noqa: PTH113 - raises nothing; a pipe would block
            return False
        with open(value, "rb") as file:  # noqa: PTH123 - a path as the SDK takes it
            return _PEM in file.read(_PEM_LIMIT_BYTES)
    except OSError:
        return False
