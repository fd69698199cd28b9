"""The states of a batch, and what can happen to it: one table. Pure; the journal stores the words.

::

    pending ─cut→ sealed ─sent→ sending ─digested──────────────→ settled
                    ↑              │ ├──refused, busy, denied …─→ retry ─sent→ sending
                    │              │ ├──rejected, for good──────→ dead
                    │              │ ├──too large, for good─────→ two halves of it, sealed
                    │              ↓ lost, failed, crashed
                    │           unknown ─found─────────────────→ settled
                    │              │ ↺ running, absent, unanswered: look again later
                    └──absent for good
    retry, unknown ─expired→ dead ─replayed→ unknown
                             dead ─dropped→ dropped

`sealed`: the id and turns of a batch never change again. `sending`: a try was recorded before a
byte went out, so that after any crash it means: a try may have landed.
"""

from enum import StrEnum


class State(StrEnum):
    """The state of a batch. The journal stores these words."""

    PENDING = "pending"
    SEALED = "sealed"
    SENDING = "sending"
    UNKNOWN = "unknown"
    RETRY = "retry"
    SETTLED = "settled"
    DEAD = "dead"
    DROPPED = "dropped"


OPEN_STATES = (State.SEALED, State.SENDING, State.UNKNOWN, State.RETRY)
"""States of a batch that is on its way."""


class BatchEvent(StrEnum):
    """What can happen to a batch."""

    CUT = "cut"
    SENT = "sent"
    CLAIMED = "claimed"
    # Ends of a try
    DIGESTED = "digested"
    REFUSED = "refused"
    BUSY = "busy"
    DENIED = "denied"
    UNADDRESSED = "unaddressed"
    NO_AGENT = "no_agent"
    AGENT_GONE = "agent_gone"
    CONVERSATION_GONE = "conversation_gone"
    REJECTED = "rejected"
    TOO_LARGE = "too_large"
    SPLIT = "split"
    REJECTED_FOR_GOOD = "rejected_for_good"
    LOST = "lost"
    FAILED = "failed"
    CRASHED = "crashed"
    # Ends of a look-up
    FOUND = "found"
    RUNNING = "running"
    ABSENT = "absent"
    ABSENT_FOR_GOOD = "absent_for_good"
    UNANSWERED = "unanswered"
    # Time and people
    EXPIRED = "expired"
    REPLAYED = "replayed"
    DROPPED = "dropped"


_NOT_TAKEN = (
    BatchEvent.REFUSED,
    BatchEvent.BUSY,
    BatchEvent.DENIED,
    BatchEvent.UNADDRESSED,
    BatchEvent.NO_AGENT,
    BatchEvent.AGENT_GONE,
    BatchEvent.CONVERSATION_GONE,
    BatchEvent.REJECTED,
)
_NOTHING_LEARNT = (
    *_NOT_TAKEN,
    BatchEvent.LOST,
    BatchEvent.FAILED,
    BatchEvent.RUNNING,
    BatchEvent.ABSENT,
    BatchEvent.UNANSWERED,
    BatchEvent.CRASHED,
)

TRANSITIONS: dict[tuple[State, BatchEvent], State] = {
    (State.PENDING, BatchEvent.CUT): State.SEALED,
    (State.SEALED, BatchEvent.SENT): State.SENDING,
    (State.RETRY, BatchEvent.SENT): State.SENDING,
    (State.SENDING, BatchEvent.CLAIMED): State.SENDING,
    (State.SENDING, BatchEvent.DIGESTED): State.SETTLED,
    **{(State.SENDING, event): State.RETRY for event in _NOT_TAKEN},
    (State.SENDING, BatchEvent.REJECTED_FOR_GOOD): State.DEAD,
    (State.SENDING, BatchEvent.SPLIT): State.PENDING,
    (State.SENDING, BatchEvent.LOST): State.UNKNOWN,
    (State.SENDING, BatchEvent.FAILED): State.UNKNOWN,
    (State.SENDING, BatchEvent.CRASHED): State.UNKNOWN,
    (State.UNKNOWN, BatchEvent.CLAIMED): State.UNKNOWN,
    **{(State.UNKNOWN, event): State.UNKNOWN for event in _NOTHING_LEARNT},
    (State.UNKNOWN, BatchEvent.DIGESTED): State.SETTLED,
    (State.UNKNOWN, BatchEvent.FOUND): State.SETTLED,
    (State.UNKNOWN, BatchEvent.ABSENT_FOR_GOOD): State.SEALED,
    (State.UNKNOWN, BatchEvent.REJECTED_FOR_GOOD): State.DEAD,
    (State.UNKNOWN, BatchEvent.SPLIT): State.PENDING,
    (State.RETRY, BatchEvent.EXPIRED): State.DEAD,
    (State.UNKNOWN, BatchEvent.EXPIRED): State.DEAD,
    (State.DEAD, BatchEvent.REPLAYED): State.UNKNOWN,
    (State.DEAD, BatchEvent.DROPPED): State.DROPPED,
}


def after(state: State, event: BatchEvent) -> State:
    """Return the state after `event`.

    Raises:
        ValueError: the event cannot happen in this state.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        msg = f"{event.value} cannot happen to a batch that is {state.value}"
        raise ValueError(msg) from None
