"""Every error the sidecar raises on purpose, in one tree.

::

    SidecarError(message, hint)
    ├── ConfigError                 a setting is missing or wrong; names the field; exit code 2
    ├── LettaError
    │   ├── LettaUnavailable        a read failed; the last good copy serves; read again later
    │   │   └── NotLetta            what answered is something else: a login page, another API
    │   ├── LettaDenied             401, 403: the key is wrong; no retry helps
    │   ├── AgentNotFound           the agent is gone or never existed
    │   ├── NotOffered              this generation of Letta has no such thing; no retry helps
    │   ├── ConversationGone        the call's conversation was deleted: open another, post again
    │   └── PostError               the outcome of a post, and who must act
    │       ├── NotAccepted         certainly not taken by Letta: send again, after `retry_after_s`
    │       ├── OutcomeUnknown      Letta may have taken it: look it up before sending again
    │       └── Rejected            Letta will never take it: dead letter
    │           └── TooLarge        too long for its model: shorten it, or try a new conversation
    ├── JournalError
    │   ├── JournalFull             no room to make a turn durable; nothing was stored
    │   ├── JournalLocked           another process owns the file
    │   ├── JournalCorrupt          the file is not a journal or is damaged
    │   ├── HeardElsewhere          another replica has the call that this one would go on with
    │   ├── CallerBusy              a caller to be forgotten has a live call, or a batch under way
    │   └── CallError               the call is unknown or another's, or a turn cannot be stored
    ├── LinkError                   a frame that breaks the link protocol; names the field
    └── LlmError                    the language model failed before or while it spoke
        └── PromptTooLong           it takes no request of this length: shorten it

Each says two things: whether the same step may be repeated (`retryable`), and what an operator
can do (`hint`). Errors of libraries become one of these where they are caught, with
``raise … from``. No message carries a caller's words, a number or a key.
"""

from typing import ClassVar

from typing_extensions import override


class SidecarError(Exception):
    """Base of the tree.

    Args:
        message: What happened, without a caller's words, number or key.
        hint: What the operator can do about it, as one sentence; empty when nothing.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @override
    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(SidecarError):
    """One or more settings are wrong. `fields` pairs each field with its remedy."""

    def __init__(self, message: str, *, fields: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.fields = fields


class LettaError(SidecarError):
    """Letta did not do what was asked."""


class LettaUnavailable(LettaError):
    """A read failed or was too slow. Reading again later may succeed."""

    retryable = True


class NotLetta(LettaUnavailable):
    """The answer does not have the form of a Letta's: it is a proxy's page, or of another API."""


class LettaDenied(LettaError):
    """Letta refused the key (401 or 403)."""


class AgentNotFound(LettaError):
    """No agent has this id on this Letta."""


class NotOffered(LettaError):
    """This generation of Letta does not have what was asked for."""


class ConversationGone(LettaError):
    """The conversation of a post is gone, or takes no more; the post was certainly not taken."""

    retryable = True


class PostError(LettaError):
    """A post did not settle its batch."""


class NotAccepted(PostError):
    """Letta certainly did not take the post: refused connection, 409 busy, 429, a 503 for Redis.

    Args:
        message: As for `SidecarError`.
        retry_after_s: Seconds Letta asked to wait, or None when it named none.
        busy: The agent is at work on another post (409); the endpoint is not at fault.
        hint: As for `SidecarError`.
    """

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        busy: bool = False,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        self.busy = busy


class OutcomeUnknown(PostError):
    """The post was sent and its outcome is not known: time-out, cut connection, 5xx.

    Args:
        message: As for `SidecarError`.
        over: Letta has answered, so it is no longer at work on this try; a look-up that finds
            nothing is then final at once. False: the try may still land until its horizon.
        hint: As for `SidecarError`.
    """

    def __init__(self, message: str, *, over: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.over = over


class Rejected(PostError):
    """Letta will not take this post, now or later: a 4xx, or a run that fails at it each time.

    Nothing of it is stored.
    """


class TooLarge(Rejected):
    """The post and what its conversation holds do not fit into the model's context together."""


class JournalError(SidecarError):
    """The journal failed."""


class JournalFull(JournalError):
    """The disk has no room. Nothing of the failed append was stored."""

    retryable = True


class NoJournal(JournalError):
    """No sidecar has made a journal there yet."""


class JournalLocked(JournalError):
    """Another process writes to the journal."""


class JournalAway(JournalError):
    """The journal's database does not answer. Nothing of the failed operation was stored."""

    retryable = True


class JournalRefused(JournalError):
    """The journal's database can't be used as it is, until someone changes it or its setting."""


class LeaseLost(JournalError):
    """This sidecar was taken for gone, and others write. The failed operation may be repeated."""


class TakenOver(SidecarError):
    """Another replica has this lane or call now. Nothing was stored; that replica goes on with it.

    No `JournalError`: trying again would change nothing.
    """


class HeardElsewhere(JournalError):
    """Another replica has the call of this room and caller, for another job: nothing was stored.

    Args:
        key: Of that call.
        by: The key by which that job names it.
        since_s: Unix time at which that job began to hear it.
    """

    retryable = True

    def __init__(self, key: str, *, by: str, since_s: float) -> None:
        super().__init__("another sidecar has the call of this room and caller")
        self.key = key
        self.by = by
        self.since_s = since_s


class JournalCorrupt(JournalError):
    """The journal file is damaged or is not a journal."""


class CallerBusy(JournalError):
    """A caller can't be forgotten just now: a call of theirs is live, or a batch is on its way."""

    retryable = True


class CallError(JournalError):
    """A turn or a claim names a call that is unknown or another's, or cannot be stored.

    Args:
        code: `unknown_call`, `call_claimed`, `bad_value`, `draining`, `too_many`, `erased` or
            `refused`; the first four go over the link.
        message: As for `SidecarError`.
        hint: As for `SidecarError`.
    """

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class LinkError(SidecarError):
    """A frame broke the link protocol (docs/link-protocol.md).

    Args:
        code: The stable word that goes into the `error` frame.
        message: As for `SidecarError`.
        field: The field at fault, as a dotted path; empty when it is the whole frame.
        hint: The remedy.
        call: The call the frame names; empty when it names none, or can't be read.
        item: The turn it names, likewise.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str = "",
        hint: str = "",
        call: str = "",
        item: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.field = field
        self.call = call
        self.item = item


class LlmError(SidecarError):
    """The language model refused, failed or fell silent."""


class PromptTooLong(LlmError):
    """The language model takes no request of this length, however often it is asked."""


class SeveralCalls(SidecarError):
    """A name fits several calls; the hint names them."""
