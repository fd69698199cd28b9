"""What Letta's REST answers mean, as errors of ours. Pure.

Theory of operation. A post's outcome follows from how far it certainly got:

===================================  ==========================================
what was seen                        what it means
===================================  ==========================================
no connection was made               not accepted
401, 403                             denied
402, 409, 429 in Letta's own shape   not accepted
503 of a Letta without Redis         not accepted (background alone)
503 to a post that an otid protects  unknown, and over: a repeat joins the run, if any
an earlier turn waits for approval   the conversation takes nothing any more
404                                  agent or conversation gone: ask for the agent
404 of an unknown route              not accepted: this is no Letta server
413                                  too large
other 4xx in Letta's own shape       rejected
any other 4xx                        not accepted: this is no Letta server
5xx, 408; 402, 409, 429 of a proxy   unknown: behind the proxy, Letta may have taken it
200, then a stop reason of DONE      settled
200, then an error or another stop   unknown, and over
200, then a permanent error          rejected, or too large, once it is looked up
200, and no stream of events         unknown: this is no Letta server
200, then silence or a cut           unknown, and perhaps still at work
===================================  ==========================================

The text of an answer may quote the transcript (validation errors do), so it never goes into a
message: only a status and Letta's own short words for kinds of errors do.
"""

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final, cast

import aiohttp
import httpx
from letta_client import APIConnectionError, APIError, APIStatusError

from sidecar.errors import (
    ConversationGone,
    LettaDenied,
    LettaError,
    LettaUnavailable,
    NotAccepted,
    OutcomeUnknown,
    Rejected,
    TooLarge,
)
from sidecar.llm.failures import says_invalid, says_too_large

# Stop reasons that end a turn with the message stored (StopReasonType.run_status of letta 0.16.8).
DONE: Final = frozenset({"end_turn", "max_steps", "requires_approval", "tool_rule"})

# Run states in which the agent loop is at work.
ACTIVE: Final = frozenset({"created", "running"})

# Statuses that refuse the stream of an unknown otid: never sent, forgotten after 3 hours, or an id
# of another Letta.
NO_STREAM: Final = frozenset({404, 410, 422})

# What SDK and transport raise while a request or a stream is under way. The transport maps some
# errors of aiohttp to httpx and lets others through; a broken stream ends in ValueError.
WIRE_ERRORS: Final = (APIError, httpx.HTTPError, aiohttp.ClientError, OSError, ValueError)

_ACCEPTED = 200
_BAD_REQUEST = 400
_DENIED = frozenset({401, 403})
_NO_CREDITS = 402
_NOT_FOUND = 404
_TIMED_OUT = 408
_CONFLICT = 409
_UNPROCESSABLE = 422
_SERVER_ERRORS = 500
_TOO_LARGE = 413
_UNAVAILABLE = 503
_WAIT = frozenset({_NO_CREDITS, _CONFLICT, 429})

_NAMESPACE = uuid.UUID("6e1e5d1c-7f0f-4f0b-9a55-3d4b0b8a7f27")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")


def wire_otid(batch_id: str, number: int) -> str:
    """Return the otid of a batch's run `number`.

    The first is the batch id itself. A classic server keeps an otid for 3 hours and answers a
    second post of it from the first one's stream, even if that run has failed; so a batch
    whose run is known to be over without a trace goes out under the next otid.
    """
    return batch_id if number == 0 else str(uuid.uuid5(_NAMESPACE, f"{batch_id}/{number}"))


def never_connected(error: BaseException) -> bool:
    """Return whether the request certainly did not leave this machine.

    The transport (httpx-aiohttp 0.2) calls every lost connection a `ConnectTimeout`, even one that
    was cut after the request was sent, so only aiohttp's own error is reliable.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return True
        seen = seen.__cause__
    return False


def was_accepted(error: Exception) -> bool:
    """Return whether the post has started a run, so that its otid is in use."""
    return isinstance(error, APIStatusError) and error.status_code == _ACCEPTED


def wants_no_background(error: APIStatusError) -> bool:
    """Return whether this is a classic server without Redis refusing a background post."""
    return error.status_code == _UNAVAILABLE and "redis" in _detail(error).lower()


def is_missing(error: APIStatusError, *, parameter: str) -> bool:
    """Return whether what the path's `parameter` names does not exist.

    An id of another Letta does not have this server's form and gets 422 in place of 404. A 404
    without a reason comes from a server that lacks the route, and does not count.
    """
    if error.status_code == _NOT_FOUND:
        return _is_lettas(error) and _detail(error) != "Not Found"
    named = f"'path', '{parameter}'"
    return error.status_code == _UNPROCESSABLE and named in _detail(error)


def read_error(error: Exception, what: str) -> LettaError:
    """Return our error for a read that failed. `what` says what was read, without ids."""
    if isinstance(error, APIStatusError):
        if error.status_code in _DENIED:
            return denied(error)
        hint = _NO_SUCH_ROUTE if error.status_code == _NOT_FOUND else ""
        return LettaUnavailable(f"{what}: Letta answered {error.status_code}", hint=hint)
    if never_connected(error):
        return LettaUnavailable(
            f"{what}: no connection to Letta", hint="check LETTA_BASE_URL and that it runs"
        )
    return LettaUnavailable(f"{what}: the connection broke ({_cause_name(error)})")


def denied(error: APIStatusError) -> LettaDenied:
    """Return our error for a refused key."""
    return LettaDenied(
        f"Letta refused the key ({error.status_code})", hint="check LETTA_API_KEY and its project"
    )


def post_error(error: Exception, *, protected: bool) -> LettaError:
    """Return our error for a post that failed; for ConversationGone, the agent may be gone too.

    Args:
        error: As caught.
        protected: A post of the same otid joins the run of this one, if there is one.
    """
    if isinstance(error, APIStatusError):
        return _run_error(error) if was_accepted(error) else _status_error(error, protected)
    if never_connected(error):
        return NotAccepted(
            "no connection to Letta", hint="check LETTA_BASE_URL and that the server runs"
        )
    return OutcomeUnknown(f"the connection broke during the post ({_cause_name(error)})")


def stopped(reason: str) -> LettaError:
    """Return our error for a run that ended with a stop reason that is not in `DONE`."""
    if says_too_large(reason):
        return TooLarge(f"the agent's run stopped: {_kind(reason)}", hint=_LOOK)
    return OutcomeUnknown(f"the agent's run stopped: {_kind(reason)}", over=True, hint=_LOOK)


_NO_SUCH_ROUTE = "check LETTA_BASE_URL: what answers there is no Letta server with conversations"
NO_LETTA: Final = "check LETTA_BASE_URL and what stands between: what answers there is no Letta"
_LOOK = "look at the runs of this agent on the Letta server, and at its model"


def _run_error(error: APIStatusError) -> LettaError:
    if _wants_approval(error):
        return _approval()
    kind = _kind(_body(error).get("error_type"))
    words = f"{_body(error).get('error_type')} {_detail(error)}"
    if says_too_large(words):
        return TooLarge("the batch is too large for the context of the agent's model", hint=_LOOK)
    if says_invalid(words):
        return Rejected(f"the agent's model refuses the batch: {kind}", hint=_LOOK)
    return OutcomeUnknown(f"the agent's run ended in an error: {kind}", over=True, hint=_LOOK)


def _status_error(error: APIStatusError, protected: bool) -> LettaError:
    status = error.status_code
    if status in _DENIED:
        return denied(error)
    if is_missing(error, parameter="conversation_id"):
        return ConversationGone("the conversation does not exist")
    if status == _CONFLICT and _wants_approval(error):
        return _approval()
    if status in _WAIT and _is_lettas(error):
        return NotAccepted(
            f"Letta answered {status}",
            retry_after_s=_retry_after_s(error),
            busy=status == _CONFLICT,
            hint="Letta says there are no credits left" if status == _NO_CREDITS else "",
        )
    if status == _NOT_FOUND:
        return NotAccepted(f"Letta answered {status}", hint=_NO_SUCH_ROUTE)
    if status >= _SERVER_ERRORS or status == _TIMED_OUT or status in _WAIT:
        return OutcomeUnknown(
            f"Letta, or a proxy before it, answered {status}",
            over=protected and status == _UNAVAILABLE,
        )
    if status == _TOO_LARGE or (_is_lettas(error) and says_too_large(_detail(error))):
        return TooLarge(f"Letta answered {status}: the batch is too large")
    if not _is_lettas(error):
        return NotAccepted(f"{status}, and not from Letta", hint=NO_LETTA)
    return Rejected(f"Letta answered {status}", hint="`sidecar outbox` shows what was refused")


def _wants_approval(error: APIStatusError) -> bool:
    """Return whether a tool call of an earlier turn waits for an approval.

    The server checks this before a run: 0.16.8 says so inside the stream, others by 409.
    """
    return "waiting for approval" in _detail(error)


def _approval() -> ConversationGone:
    return ConversationGone(
        "the conversation waits for an approval and takes nothing more",
        hint="take approval rules off the tools of an agent that digests transcripts",
    )


def refused_spec(error: APIStatusError) -> Rejected:
    """Return our error for an agent that the server refuses to create.

    The answer is quoted: it is about the spec, which holds no caller's words.
    """
    return Rejected(
        f"Letta did not create the agent ({error.status_code}: {_detail(error)[:300]})",
        hint="LETTA_AGENT_MODEL and LETTA_AGENT_EMBEDDING set the models it uses",
    )


def blames(error: APIStatusError, field: str) -> bool:
    """Return whether a refused agent spec is refused for `field`."""
    return error.status_code in {_BAD_REQUEST, _UNPROCESSABLE} and field in _detail(error)


def _is_lettas(error: APIStatusError) -> bool:
    """Return whether a refusal has the shape that Letta gives its own: an object that says why."""
    return bool(_detail(error)) and bool(_body(error))


def _body(error: APIStatusError) -> Mapping[str, Any]:
    body = error.body
    return cast("Mapping[str, Any]", body) if isinstance(body, Mapping) else {}


def _detail(error: APIStatusError) -> str:
    detail = _body(error).get("detail")
    if detail is None:
        return error.body if isinstance(error.body, str) else ""
    return str(detail)


def _kind(word: object) -> str:
    """Return one of Letta's words for a kind of error, or `unnamed`; never a sentence."""
    return word if isinstance(word, str) and _KIND.match(word) else "unnamed"


def _retry_after_s(error: APIStatusError) -> float | None:
    given = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(given))
    except ValueError:
        return None  # a date: our own backoff will do


def _cause_name(error: BaseException) -> str:
    if isinstance(error, APIConnectionError) and error.__cause__ is not None:
        error = error.__cause__
    return type(error.__cause__ or error).__name__
