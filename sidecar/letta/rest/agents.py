"""Agents over REST: how one that digests transcripts is created, exported and imported."""

import json
from collections.abc import Sequence
from typing import Any, Final

from letta_client import APIStatusError, AsyncLetta

from sidecar.errors import Rejected
from sidecar.letta.port import AgentSpec
from sidecar.letta.rest.wire import blames, refused_spec
from sidecar.untrusted import MALFORMED

# An agent of this type edits its blocks with its own tools (memory_insert, memory_replace,
# memory_rethink) until it calls memory_finish_edits, and writes no answer.
_DIGESTING: Final = "sleeptime_agent"
# For a server that no longer has the type: the same tools on its plain type.
_PLAIN: Final = {
    "agent_type": "letta_v1_agent",
    "include_base_tools": False,
    "tools": ("memory_insert", "memory_replace", "memory_rethink"),
}

# Small, cheap and good at tool calls, best first; parts of a handle. Checked on 2026-11-22.
_PREFERRED: Final = (
    "gpt-5-mini",
    "gpt-4.1-mini",
    "claude-haiku-4-5",
    "gemini-2.5-flash",
    "gpt-4o-mini",
)
# A self-hosted server lists these although they run elsewhere: a transcript is not sent to a
# third party that its owner did not choose.
_HOSTED_BY_LETTA: Final = "letta/"


async def create(client: AsyncLetta, spec: AgentSpec, *, on_cloud: bool, timeout_s: float) -> str:
    """Create the agent and return its id.

    Args:
        client: Its errors are not caught.
        spec: What to make; an empty model is chosen from what the server lists, an empty
            embedding is left to the server, or chosen likewise if the server requires one.
        on_cloud: Models hosted by Letta may be chosen.
        timeout_s: Of the request that creates.

    Raises:
        Rejected: the server does not take the spec, or lists no model to choose.
    """
    payload = await _payload(client, spec, on_cloud=on_cloud)
    while True:
        try:
            created = await client.agents.create(**payload, timeout=timeout_s)
        except APIStatusError as error:
            if "embedding" not in payload and blames(error, "embedding"):
                payload["embedding"] = await _embedding(client, on_cloud=on_cloud)
            elif payload["agent_type"] == _DIGESTING and blames(error, "agent_type"):
                payload |= _PLAIN
            elif error.status_code in {400, 404, 422}:
                raise refused_spec(error) from error
            else:
                raise
        else:
            if (
                not isinstance(created.id, str)  # pyright: ignore[reportUnnecessaryIsInstance]
                or not created.id
            ):
                raise TypeError
            return created.id


async def _payload(client: AsyncLetta, spec: AgentSpec, *, on_cloud: bool) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "agent_type": _DIGESTING,
        "name": spec.name,
        "memory_blocks": [
            {
                "label": block.label,
                "value": block.value,
                "description": block.description,
                "read_only": block.read_only,
            }
            | ({} if block.limit_chars is None else {"limit": block.limit_chars})
            for block in spec.blocks
        ],
        "tags": list(spec.tags),
        "metadata": dict(spec.metadata),
        "model": spec.model or await _model(client, on_cloud=on_cloud),
    }
    if spec.system:
        payload["system"] = spec.system
    if spec.embedding:
        payload["embedding"] = spec.embedding
    return payload


async def _model(client: AsyncLetta, *, on_cloud: bool) -> str:
    listed = [model.handle for model in await client.models.list() if model.handle]
    usable = [handle for handle in listed if "embed" not in handle]
    return _chosen(usable, _PREFERRED, what="model", setting="LETTA_AGENT_MODEL", own=on_cloud)


async def _embedding(client: AsyncLetta, *, on_cloud: bool) -> str:
    listed = [model.handle for model in await client.models.embeddings.list() if model.handle]
    setting = "LETTA_AGENT_EMBEDDING"
    return _chosen(listed, ("3-small",), what="embedding model", setting=setting, own=on_cloud)


def _chosen(
    handles: Sequence[str], preferred: Sequence[str], *, what: str, setting: str, own: bool
) -> str:
    allowed = [handle for handle in handles if own or not handle.startswith(_HOSTED_BY_LETTA)]
    for part in preferred:
        for handle in allowed:
            if handle.endswith(part):
                return handle
    if not allowed:
        raise Rejected(
            f"the Letta server lists no {what} to choose",
            hint=f"give the server a provider's key, or name a {what} by {setting}",
        )
    return allowed[0]


async def export_file(client: AsyncLetta, agent_id: str, *, timeout_s: float) -> str:
    """Return an agent's file (.af, version 2). The client's errors are not caught."""
    # The SDK's own method takes the answer for a string; the classic server sends an object.
    answer = await client.agents.with_raw_response.export_file(agent_id, timeout=timeout_s)
    return (await answer.read()).decode()


async def import_file(
    client: AsyncLetta, file: str, *, tags: Sequence[str], timeout_s: float
) -> str:
    """Create an agent from a file, with these tags, and return its id.

    Raises:
        Rejected: it is not the file of one agent, or the server does not take it.
    """
    try:
        parsed = json.loads(file)
        (agent,) = parsed["agents"]
        agent["tags"] = list(tags)
    except (*MALFORMED, KeyError, TypeError) as error:
        raise Rejected("this is not the file of one agent") from error
    try:
        made = await client.agents.import_file(
            file=("agent.af", json.dumps(parsed).encode()),
            append_copy_suffix=False,
            timeout=timeout_s,
        )
    except APIStatusError as error:
        if error.status_code in {400, 404, 409, 422}:
            # What the server says may quote the file, which holds what callers said.
            raise Rejected(f"Letta did not take the agent's file ({error.status_code})") from error
        raise
    return made.agent_ids[0]
