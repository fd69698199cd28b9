"""One turn of an agent on the App Server: a batch goes in, the agent's edits are made, it ends.

Theory of operation. The turn runs on the server while a socket is subscribed to it: when the last
one closes, the server cancels the turn and its conversation takes nothing more, ever. So two
sockets are subscribed. Tool calls come over the first; when that breaks, the second keeps the turn
going, its tool calls fail, and the history shows that the batch has to be digested once more.

If a batch is stored and undigested, and its turn is known to have ended, the agent is asked to
digest it in place. If the turn was cut off (both sockets broke, or the server was killed), its
conversation is left alone: once subscribed to, the server would store the message again and run it
without our tools.

`input_accepted` says only that the server has received the input. A turn that shows no sign of life
was dropped as a repetition; the input is sent once more under a new id. What counts is
`turn_finished` with `end_turn`, of a run that names our id; if no run named it, the history
decides.

When the model fails, the server begins the turn again three times, and stores the message again
each time. So the turn is aborted at the first failure of a whole run that the server reports (by
then it has tried the model four times).
"""

import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, TypeAlias, cast

import anyio

from sidecar.errors import (
    ConversationGone,
    LettaError,
    LettaUnavailable,
    NotAccepted,
    OutcomeUnknown,
    Rejected,
    TooLarge,
)
from sidecar.letta.app_server.conversation import (
    ALLOWED,
    is_idle,
    look,
    show_memory,
    status_of,
    subscribe,
)
from sidecar.letta.app_server.history import Trace
from sidecar.letta.app_server.socket import (
    SOCKET_ERRORS,
    AppServerSocket,
    Frame,
    Sockets,
)
from sidecar.letta.port import Post
from sidecar.llm.failures import says_invalid, says_too_large
from sidecar.llm.port import ToolCall

Ended: TypeAlias = Literal["idle", "cut"]
"""How a turn of ours ended undigested: its conversation can be used again (`idle`), or not."""

Edit: TypeAlias = Callable[[str, str, ToolCall], Awaitable[tuple[str, bool]]]
"""(agent id, batch id, call) -> the tool's answer, and whether it is an error."""

DIGEST_AGAIN: Final = (
    "The last part of the transcript above has not been digested yet. Digest it now: bring your "
    "memory up to date with your tools."
)
"""Sent in place of a batch whose message is stored already, so that its words are stored once."""

_WEDGED: Final = "already has an active run"
_SIGN_OF_LIFE_S: Final = 5.0
_QUEUE_SHOWN_S: Final = 2.0
_ABORT_S: Final = 3.0


class AgentTurn:
    """Lets an agent digest one batch; used once.

    Args:
        sockets: To the server.
        post: The batch.
        edit: Makes an edit of the agent's memory.
        timeout_s: Deadline of each step before the input is sent.
        before: How an earlier turn of the same batch ended, as far as is known.
        is_young: Whether a message stored at a Unix time may still be at work for another process.

    Attributes:
        ended: How this turn ended, if it was begun and the batch is not digested.
    """

    def __init__(
        self,
        sockets: Sockets,
        post: Post,
        edit: Edit,
        *,
        timeout_s: float,
        before: Ended | None,
        is_young: Callable[[float], bool],
    ) -> None:
        self.ended: Ended | None = None
        self._before: Ended | None = before
        self._is_young = is_young
        self._sockets = sockets
        self._post = post
        self._edit = edit
        self._timeout_s = timeout_s
        self._runtime = {"agent_id": post.agent_id, "conversation_id": post.conversation_id}
        self._sent = False
        self._heard_of: set[str] = set()
        self._failure = ""

    async def digest(self) -> None:
        """Return when the batch is digested; a turn that is given up is aborted.

        Raises:
            LettaError: as `Letta.post`.
        """
        first = await self._opened()
        try:
            second = await self._opened()
            try:
                await self._digest_over(first, second)
            finally:
                second.close()
        finally:
            first.close()

    async def _opened(self) -> AppServerSocket:
        try:
            return await self._sockets.open()
        except LettaUnavailable as error:
            raise NotAccepted(error.message, hint=error.hint) from error

    async def _digest_over(self, first: AppServerSocket, second: AppServerSocket) -> None:
        trace = await self._prepared(first, second)
        if trace is None:
            return
        text = DIGEST_AGAIN if trace.stored else self._post.text
        message_id = str(uuid.uuid4()) if trace.stored else self._post.batch_id
        try:
            for _ in range(2):
                if await self._send(first, text, message_id):
                    await self._follow(first, message_id)
                    return
                message_id = str(uuid.uuid4())
            raise OutcomeUnknown("the App Server accepted the post and did not run it", over=True)
        except SOCKET_ERRORS as error:
            await self._follow_by(second)
            if not await self._is_digested():
                raise OutcomeUnknown("the socket broke during the post", over=True) from error
        finally:
            if self._sent and self.ended is None:
                await self._abort(first, second)

    async def _prepared(self, first: AppServerSocket, second: AppServerSocket) -> Trace | None:
        """Subscribe both sockets; return the trace of the batch, None when it is digested."""
        try:
            with anyio.fail_after(4 * self._timeout_s):
                return await self._prepare(first, second)
        except TimeoutError as error:
            raise NotAccepted("the App Server was too slow to take the post") from error
        except SOCKET_ERRORS as error:
            raise NotAccepted("the socket broke before the post") from error
        except LettaUnavailable as error:
            raise NotAccepted(error.message, hint=error.hint) from error

    async def _prepare(self, first: AppServerSocket, second: AppServerSocket) -> Trace | None:
        trace = await look(first, self._post)
        if trace is None:
            raise ConversationGone("the conversation does not exist")
        if trace.digested:
            return None
        if trace.stored and self._before != "idle":
            if self._before is None and self._is_young(trace.stored_at_s):
                raise NotAccepted("another process may be running the batch", busy=True)
            raise ConversationGone("a turn was cut off in the conversation")
        if trace.stored and not trace.last:
            raise ConversationGone("a later batch stands after this one")
        status = await subscribe(first, self._post)
        await subscribe(second, self._post)
        if not is_idle(status):
            raise NotAccepted("the conversation is busy", busy=True)
        await show_memory(first, self._post)
        return trace

    async def _send(self, socket: AppServerSocket, text: str, message_id: str) -> bool:
        """Send the input; return whether its turn has begun.

        Raises:
            NotAccepted: the server has not taken it.
            OSError, WebSocketException: the socket broke.
        """
        socket.unread.clear()
        self._sent = True
        answer = await socket.ask(
            "input",
            runtime=self._runtime,
            payload={
                "kind": "create_message",
                "messages": [{"role": "user", "content": text, "client_message_id": message_id}],
                "client_tool_allowlist": ALLOWED,
                "exclude_interactive_tools": True,
            },
        )
        if not answer.get("accepted"):
            self._sent = False
            raise NotAccepted("the App Server did not accept the post")
        if answer.get("disposition") == "queued":
            await self._take_back(socket, message_id)
        return await self._shows_life(socket)

    async def _take_back(self, socket: AppServerSocket, message_id: str) -> None:
        """Take back an input that waits behind another turn: the server joins queued inputs.

        An input whose turn has begun meanwhile stays, and is followed like any other.
        """
        frames: list[Frame] = []
        item_id: object = None
        with anyio.move_on_after(_QUEUE_SHOWN_S):
            while item_id is None:
                frame = await socket.next_event()
                frames.append(frame)
                item_id = _queued(frame, message_id)
        socket.unread[:0] = frames
        if item_id is None:
            return
        removed = await socket.ask("remove_queue_item", runtime=self._runtime, item_id=item_id)
        if removed.get("success"):
            self._sent = False
            raise NotAccepted("the conversation is busy", busy=True)

    async def _shows_life(self, socket: AppServerSocket) -> bool:
        frames: list[Frame] = []
        with anyio.move_on_after(_SIGN_OF_LIFE_S):
            while True:
                frame = await socket.next_event()
                frames.append(frame)
                if frame.get("type") == "turn_finished" or not is_idle(status_of(frame)):
                    socket.unread[:0] = frames
                    return True
        return False

    async def _follow(self, socket: AppServerSocket, message_id: str) -> None:
        """Serve the turn's tool calls until it has ended well.

        Raises:
            ConversationGone: the conversation takes nothing more.
            Rejected: the model will never take the batch as it is.
            OutcomeUnknown: it ended otherwise.
            OSError, WebSocketException: the socket broke.
        """
        while True:
            frame = await socket.next_event()
            kind = frame.get("type")
            if kind == "external_tool_call_request":
                await self._serve(socket, frame)
            elif kind == "update_loop_status":
                self._note_runs(frame)
            elif kind == "stream_delta" and _is_failed_run(frame):
                self._failure = json.dumps(frame.get("delta"))
                await self._abort(socket)
            elif kind == "turn_finished" and self._is_ours(frame):
                break
        self.ended = "idle"
        require_end(frame, self._failure)
        if message_id not in self._heard_of and not await self._is_digested():
            raise OutcomeUnknown("the turn that ended was another's", over=True)

    async def _follow_by(self, socket: AppServerSocket) -> None:
        """Wait on the second socket until the conversation is idle; tools can't be served."""
        try:
            status = await subscribe(socket, self._post)
            while not is_idle(status):
                frame = await socket.next_event()
                if frame.get("type") == "turn_finished" and self._is_ours(frame):
                    break
            self.ended = "idle"
        except SOCKET_ERRORS as error:
            raise OutcomeUnknown("both sockets broke during the post") from error
        except LettaUnavailable as error:
            raise OutcomeUnknown(error.message) from error

    async def _serve(self, socket: AppServerSocket, frame: Frame) -> None:
        """Carry out one tool call and answer it."""
        if not self._is_ours(frame):
            return
        call = ToolCall(
            str(frame.get("tool_call_id", "")),
            str(frame.get("tool_name", "")),
            _as_json(frame.get("input")),
        )
        try:
            answer, failed = await self._edit(self._post.agent_id, self._post.batch_id, call)
        except LettaError as error:
            answer, failed = f"Error: {error.message}", True
        await socket.tell(
            "external_tool_call_response",
            request_id=frame.get("request_id"),
            result={"content": [{"type": "text", "text": answer}], "is_error": failed},
        )

    async def _is_digested(self) -> bool:
        """Ask the history, over another socket."""
        try:
            with anyio.fail_after(2 * self._timeout_s):
                async with self._sockets.lend() as socket:
                    trace = await look(socket, self._post)
        except (TimeoutError, LettaUnavailable, *SOCKET_ERRORS) as error:
            raise OutcomeUnknown("the turn's end could not be looked up") from error
        return trace is not None and trace.digested

    async def _abort(self, *sockets: AppServerSocket) -> None:
        """Abort the turn over the first socket that works; it is cut off if none does."""
        aborted: Ended = "cut"
        with anyio.move_on_after(_ABORT_S, shield=True):
            for socket in sockets:
                try:
                    answer = await socket.ask("abort_message", runtime=self._runtime)
                except SOCKET_ERRORS:
                    continue
                aborted = "idle" if answer.get("success") else "cut"
                break
        self.ended = aborted

    def _note_runs(self, frame: Frame) -> None:
        state = cast("Mapping[str, Any]", frame.get("loop_status") or {})
        runs = cast("Mapping[str, list[str]]", state.get("client_message_ids_by_run_id") or {})
        for message_ids in runs.values():
            self._heard_of.update(message_ids)

    def _is_ours(self, frame: Frame) -> bool:
        runtime = cast("Mapping[str, Any]", frame.get("runtime") or {})
        return runtime.get("conversation_id") == self._post.conversation_id


def _queued(frame: Frame, message_id: str) -> object:
    """Return the id of our item in a queue that a frame shows."""
    items = cast("list[Mapping[str, Any]]", frame.get("queue") or [])
    return next((i.get("id") for i in items if i.get("client_message_id") == message_id), None)


def _is_failed_run(frame: Frame) -> bool:
    """Return whether a run has failed and the server is about to begin the turn again."""
    delta = cast("Mapping[str, Any]", frame.get("delta") or {})
    return delta.get("message_type") in {"retry", "loop_error"} and not delta.get("is_terminal")


def require_end(frame: Frame, failure: str) -> None:
    """Raise unless a turn ended well.

    Args:
        frame: Its `turn_finished`.
        failure: What the server said of the failed run that the turn was aborted for, if any.

    Raises:
        ConversationGone: the conversation takes nothing more.
        Rejected: the model will never take the batch as it is.
        OutcomeUnknown: it ended otherwise.
    """
    reason = frame.get("stop_reason")
    if reason == "end_turn":
        return
    if _WEDGED in str(frame.get("error") or ""):
        raise ConversationGone("the conversation lost its sockets mid-turn and takes nothing more")
    hint = "look at the App Server's log, and at the agent's model"
    words = f"{failure} {frame.get('error') or ''} {reason}"
    if says_too_large(words):
        raise TooLarge("the batch is too large for the context of the agent's model", hint=hint)
    if says_invalid(words):
        raise Rejected("the agent's model refuses the batch", hint=hint)
    shown = reason if isinstance(reason, str) and reason.replace("_", "").isalpha() else "unnamed"
    raise OutcomeUnknown(
        f"the agent's turn stopped: {shown}",
        over=True,
        hint=hint,
    )


def _as_json(given: object) -> str:
    return json.dumps(given if isinstance(given, dict) else {})
