"""The map of callers to agents: `SIDECAR_AGENT_MAP`, a JSON file."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import cast

from sidecar import environment
from sidecar.config.json_once import NamedTwice, named_once
from sidecar.errors import ConfigError
from sidecar.untrusted import MALFORMED


def read_agent_map(path: Path, tenants: Collection[str]) -> dict[str, str]:
    """Read the map file: a JSON object of caller (number, identity or id) to agent id.

    Args:
        path: The file.
        tenants: All tenants; with several, each caller has `TENANT/` before it.

    Raises:
        ConfigError: it is not such a file, or an entry would never be found.
    """
    several = len(tenants) > 1
    remedy = f'write it as JSON: {{"{"TENANT/" if several else ""}+12025550100": "agent-…"}}'
    try:
        # `utf-8-sig`: editors on Windows may put a byte order mark at the beginning.
        text = path.read_text(encoding="utf-8-sig")
        raw: object = json.loads(text, object_pairs_hook=named_once)
    except NamedTwice:
        raise ConfigError(
            "SIDECAR_AGENT_MAP names a caller twice",
            fields=(("SIDECAR_AGENT_MAP", "name each caller once"),),
        ) from None
    except (OSError, *MALFORMED) as error:
        raise ConfigError(
            f"SIDECAR_AGENT_MAP can't be read: {type(error).__name__}",
            fields=(("SIDECAR_AGENT_MAP", remedy),),
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(
            "SIDECAR_AGENT_MAP is not a JSON object", fields=(("SIDECAR_AGENT_MAP", remedy),)
        )
    entries = cast("dict[str, object]", raw)
    if not all(isinstance(agent, str) and _is_id(agent) for agent in entries.values()):
        raise ConfigError(
            "SIDECAR_AGENT_MAP: every value is an agent id", fields=(("SIDECAR_AGENT_MAP", remedy),)
        )
    for place, entry in enumerate(entries, 1):
        tenant, _, caller = entry.partition("/") if several else ("", "", entry)
        if several and tenant not in tenants:
            raise ConfigError(
                "SIDECAR_AGENT_MAP: an entry names no tenant",
                fields=(("SIDECAR_AGENT_MAP", remedy),),
            )
        wrong = _never_found(caller)
        if wrong:
            raise ConfigError(
                f"SIDECAR_AGENT_MAP: entry {place} {wrong}: it would never be found",
                fields=(("SIDECAR_AGENT_MAP", f"take entry {place} out, or {remedy}"),),
            )
    return cast("dict[str, str]", entries)


def _is_id(agent: str) -> bool:
    try:
        return bool(environment.word(agent))
    except ValueError:
        return False


def _never_found(caller: str) -> str:
    """Return why no call could ever have this caller, or the empty string."""
    from sidecar.access import phone  # noqa: PLC0415 - 70 ms, where there is a map

    if phone.stands_for_nobody(caller):
        return "is what is said in place of a caller"
    if phone.reads_like_number(caller) and not phone.is_e164(caller):
        return "reads like a number, and is no valid one as E.164 writes it"
    return ""
