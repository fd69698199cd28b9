"""One conversation on the App Server: what it is doing, what it holds, what its agent may call."""

from collections.abc import Mapping
from typing import Any, Final, cast

from sidecar.errors import ConversationGone, LettaUnavailable
from sidecar.letta.app_server.history import Trace, trace_of
from sidecar.letta.app_server.socket import AppServerSocket, Frame, is_missing, require
from sidecar.letta.memory_tools import TOOL_SCHEMAS
from sidecar.letta.port import Post

_IDLE: Final = "WAITING_ON_INPUT"
_PAGE: Final = 100
_PAGES: Final = 20
_TOOL_TIMEOUT_MS: Final = 60_000

_TOOLS: Final[list[dict[str, object]]] = [
    {
        "name": schema["function"]["name"],
        "label": schema["function"]["name"],
        "description": schema["function"]["description"],
        "parameters": schema["function"]["parameters"],
        "timeout_ms": _TOOL_TIMEOUT_MS,
        # Otherwise a slow edit would be answered before it is made.
        "auto_background": False,
    }
    for schema in TOOL_SCHEMAS
]
# Without this list the agent has a shell, and a transcript is what strangers said.
ALLOWED: Final = [str(tool["name"]) for tool in _TOOLS]


async def subscribe(socket: AppServerSocket, post: Post) -> str:
    """Subscribe a socket to a post's conversation and return what its loop is doing.

    Raises:
        AgentNotFound, ConversationGone: there is no such agent, or no such conversation of it.
        LettaUnavailable: it failed otherwise.
        OSError, WebSocketException: the socket broke.
    """
    # The tools come first: as soon as a socket is subscribed, the server resumes an input that a
    # kill interrupted, with the tools that are registered by then.
    runtime = {"agent_id": post.agent_id, "conversation_id": post.conversation_id}
    tools = [{"tools": _TOOLS}]
    update: dict[str, object] = {"runtimes": [runtime], "external_tools": tools}
    await socket.ask("runtime_external_tools_update", updates=[update])
    answer = await socket.ask(
        "runtime_start",
        agent_id=post.agent_id,
        conversation_id=post.conversation_id,
        external_tools=tools,
        skill_sources=[],
        wait_for_replay=True,
        recover_approvals=False,
        client_info={"name": "letta-voice-sidecar"},
    )
    if is_missing(answer, "Conversation"):
        raise ConversationGone("the conversation does not exist")
    require(answer, "the conversation")
    started = cast("Mapping[str, Any]", answer.get("runtime") or {})
    if started.get("agent_id") != post.agent_id:
        raise ConversationGone("the conversation is another agent's")
    states = [status_of(f) for f in socket.unread if f.get("type") == "update_loop_status"]
    return states[-1] if states else _IDLE


def is_idle(status: str) -> bool:
    """Return whether a loop in this status takes input at once."""
    return status == _IDLE


def status_of(frame: Frame) -> str:
    """Return the loop's status that a frame names; idle for a frame that names none."""
    state = cast("Mapping[str, Any]", frame.get("loop_status") or {})
    return str(state.get("status", _IDLE))


async def show_memory(socket: AppServerSocket, post: Post) -> None:
    """Have the agent's prompt rebuilt from its memory as it is now; the server builds it only once.

    Raises:
        LettaUnavailable, AgentNotFound: it failed.
        OSError, WebSocketException: the socket broke.
    """
    answer = await socket.ask(
        "conversation_recompile",
        conversation_id=post.conversation_id,
        body={"agent_id": post.agent_id},
    )
    require(answer, "the agent's prompt")


async def look(socket: AppServerSocket, post: Post) -> Trace | None:
    """Return what the conversation shows of a post; None when the conversation is gone.

    Raises:
        LettaUnavailable: it failed otherwise.
        OSError, WebSocketException: the socket broke.
    """
    newest_first: list[Mapping[str, Any]] = []
    query: dict[str, object] = {"agent_id": post.agent_id, "limit": _PAGE}
    for _ in range(_PAGES):
        answer = await socket.ask(
            "conversation_messages_list", conversation_id=post.conversation_id, query=query
        )
        if is_missing(answer, "Conversation"):
            return None
        page = cast("list[Mapping[str, Any]]", require(answer, "stored messages")["messages"])
        newest_first += page
        trace = trace_of(post, reversed(newest_first))
        if trace.stored or not answer.get("has_more"):
            return trace
        query["before"] = answer.get("next_before")
    raise LettaUnavailable("stored messages: too many since the post to look through")
