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
    """Where a batch stands. The journal stores these words."""

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


class Event(StrEnum):
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
    Event.REFUSED,
    Event.BUSY,
    Event.DENIED,
    Event.UNADDRESSED,
    Event.NO_AGENT,
    Event.AGENT_GONE,
    Event.CONVERSATION_GONE,
    Event.REJECTED,
)
_NOTHING_LEARNT = (
    *_NOT_TAKEN,
    Event.LOST,
    Event.FAILED,
    Event.RUNNING,
    Event.ABSENT,
    Event.UNANSWERED,
    Event.CRASHED,
)

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.PENDING, Event.CUT): State.SEALED,
    (State.SEALED, Event.SENT): State.SENDING,
    (State.RETRY, Event.SENT): State.SENDING,
    (State.SENDING, Event.CLAIMED): State.SENDING,
    (State.SENDING, Event.DIGESTED): State.SETTLED,
    **{(State.SENDING, event): State.RETRY for event in _NOT_TAKEN},
    (State.SENDING, Event.REJECTED_FOR_GOOD): State.DEAD,
    (State.SENDING, Event.SPLIT): State.PENDING,
    (State.SENDING, Event.LOST): State.UNKNOWN,
    (State.SENDING, Event.FAILED): State.UNKNOWN,
    (State.SENDING, Event.CRASHED): State.UNKNOWN,
    (State.UNKNOWN, Event.CLAIMED): State.UNKNOWN,
    **{(State.UNKNOWN, event): State.UNKNOWN for event in _NOTHING_LEARNT},
    (State.UNKNOWN, Event.DIGESTED): State.SETTLED,
    (State.UNKNOWN, Event.FOUND): State.SETTLED,
    (State.UNKNOWN, Event.ABSENT_FOR_GOOD): State.SEALED,
    (State.UNKNOWN, Event.REJECTED_FOR_GOOD): State.DEAD,
    (State.UNKNOWN, Event.SPLIT): State.PENDING,
    (State.RETRY, Event.EXPIRED): State.DEAD,
    (State.UNKNOWN, Event.EXPIRED): State.DEAD,
    (State.DEAD, Event.REPLAYED): State.UNKNOWN,
    (State.DEAD, Event.DROPPED): State.DROPPED,
}


def after(state: State, event: Event) -> State:
    """Return the state after `event`.

    Raises:
        ValueError: the event cannot happen in this state.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        msg = f"{event.value} cannot happen to a batch that is {state.value}"
        raise ValueError(msg) from None
