"""Reads the environment once into settings; names every wrong field with its remedy."""

import difflib
import os
from collections.abc import Collection, Mapping
from functools import partial

from pydantic import (
    ValidationError,
)

from sidecar import environment
from sidecar.config.settings import Settings, environment_names
from sidecar.environment import WS_SCHEMES
from sidecar.errors import ConfigError
from sidecar.otel_environment import wrong_variables

# Read by the worker's end of the link, not by the sidecar itself.
_WORKER_NAMES = {"SIDECAR_LINK_URL": partial(environment.url_alone, schemes=WS_SCHEMES)}


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment.

    Args:
        environ: Used in place of the process's own environment.

    Raises:
        ConfigError: one or more fields are wrong; `fields` names every one with its remedy.
    """
    environ = os.environ if environ is None else environ
    names = environment_names()
    known = [*(variable for variables in names.values() for variable in variables), *_WORKER_NAMES]
    fields = [
        (name, _no_such_setting(name, known))
        for name in environ
        if name.startswith("SIDECAR_") and name not in known
    ]
    used = {
        variables[0]: variable
        for variables in names.values()
        for variable in variables[::-1]
        if environment.said(environ, variable) is not None
    }
    values = {first: environment.said(environ, variable) for first, variable in used.items()}
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_input=False, include_context=False):
            field = str(item["loc"][0]) if item["loc"] else ""
            message = item["msg"].removeprefix("Value error, ")
            if not field:
                field, _, message = message.partition(": ")
            fields.append((used.get(field, field), message))
    for name, check in _WORKER_NAMES.items():
        try:
            environment.read(environ, name, check)
        except ConfigError as error:
            fields.extend(error.fields)
    fields.extend(wrong_variables(environ))
    if fields or settings is None:
        raise environment.wrong(fields)
    return settings


def _no_such_setting(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"no such setting; did you mean {near[0]}?" if near else "no such setting; remove it"


def for_a_worker(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a voice worker, in which each setting is as the sidecar reads it.

    Variables that LiveKit reads itself are cleaned, too, because LiveKit strips nothing.
    """
    known = {variable for variables in environment_names().values() for variable in variables}
    cleaned = {name: environment.said(environ, name) for name in {*known, *_WORKER_NAMES}}
    others = {name: value for name, value in environ.items() if name not in cleaned}
    return others | {name: value for name, value in cleaned.items() if value is not None}
