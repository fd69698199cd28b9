"""Decides what happens next to a batch: one function takes each step from the state table.

Theory of operation: a try is recorded with its horizon before its first byte is sent, so a batch
in state `sending` may have landed, even after a crash. Three rules keep a batch from being lost or
delivered twice:

* A batch in doubt is looked up before it is sent again, and only a look-up removes the doubt. A
  refused try says nothing about an earlier one: the server may be busy with exactly that one.
* A look-up's `absent` is final only past the horizon of the last try: until then it may still land.
* A batch is given up (`dead`) only after one of its tries has failed, never for its age alone. It
  stays stored: an operator can replay it.

Everything here is pure: time and dice are arguments. The relay calls `decide` at each step and
carries out the answer; the table is in `sidecar/journal/states.py`.
"""

from dataclasses import dataclass
from typing import TypeAlias

from sidecar.breaker import backoff_s
from sidecar.journal.states import BatchEvent, State, after


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """Deadlines, waits and limits of delivery.

    Attributes:
        post_timeout_s: Longest one post may take.
        grace_s: Added to `post_timeout_s` for the horizon: how long a server may go on after the
            client has left. More than `guard_s`, or a try could outlive its own horizon.
        guard_s: A try recorded longer ago than this is recorded again before it is sent.
        lookup_timeout_s: Longest one look-up may take. Finding the agent and opening the
            conversation may together take four times as long.
        retry_base_s: First wait after a post that was not taken; doubles.
        retry_cap_s: No wait is longer, except one that Letta asked for.
        busy_base_s: First wait after a 409; doubles.
        busy_cap_s: No wait after a 409 is longer.
        retry_after_cap_s: A longer `Retry-After` is shortened to this.
        rejections_limit: After this many definite rejections a batch is a dead letter.
        give_up_s: Once this long has passed since a batch was sealed or replayed, it is given up
            when a try fails.
    """

    post_timeout_s: float = 120.0
    grace_s: float = 5.0
    guard_s: float = 2.0
    lookup_timeout_s: float = 30.0
    retry_base_s: float = 0.5
    retry_cap_s: float = 60.0
    busy_base_s: float = 0.5
    busy_cap_s: float = 5.0
    retry_after_cap_s: float = 300.0
    rejections_limit: int = 3
    give_up_s: float = 7 * 86_400.0

    @property
    def horizon_s(self) -> float:
        """Seconds after a try was recorded during which it may still land."""
        return self.post_timeout_s + self.grace_s

    @property
    def longest_wait_s(self) -> float:
        """No due time that `decide` sets is further ahead than this."""
        return max(self.retry_cap_s, self.busy_cap_s, self.retry_after_cap_s, _POLL_CAP_S)


@dataclass(frozen=True, slots=True)
class Facts:
    """What `decide` knows of a batch.

    Attributes:
        attempt: Tries recorded before this claim.
        in_doubt: An earlier try may have landed, or may yet.
        horizon_s: Unix time until which a recorded try may still land.
        tried_since_s: Unix time from which `DeliveryPolicy.give_up_s` counts.
        rejections: Definite rejections so far.
        turns: How many turns it holds.
    """

    attempt: int
    in_doubt: bool
    horizon_s: float
    tried_since_s: float
    rejections: int = 0
    turns: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What just happened to a batch.

    Attributes:
        event: What happened.
        error: For people, without a caller's words; empty when it went well.
        retry_after_s: Seconds Letta asked to wait, or None.
    """

    event: BatchEvent
    error: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask Letta whether it has the batch."""


@dataclass(frozen=True, slots=True)
class Send:
    """Post the batch. `record_anew`: another try has to be recorded durably first."""

    record_anew: bool


@dataclass(frozen=True, slots=True)
class Settle:
    """Settle the batch: Letta has digested it, and nothing of it is at work any more."""


@dataclass(frozen=True, slots=True)
class Release:
    """Give the batch back until `due_s`; `unknown` and `over` as in `Outbox.release`."""

    due_s: float
    unknown: bool
    over: bool


@dataclass(frozen=True, slots=True)
class Retire:
    """Make the batch a dead letter; its lane sends nothing before `hold_until_s` (Unix time, or 0).

    A try that was never answered may still be at work until then.
    """

    hold_until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Split:
    """Replace the batch by two of half its turns: Letta holds none of it, and it is too large."""


Step: TypeAlias = LookUp | Send | Settle | Release | Retire | Split


def decide(
    facts: Facts, outcome: Outcome, *, now_s: float, dice: float, policy: DeliveryPolicy
) -> Step:
    """Return what to do with a claimed batch after `outcome`.

    Args:
        facts: Of the batch as claimed, or as recorded again.
        outcome: What just happened; `CLAIMED` at the first step.
        now_s: Unix time.
        dice: In [0, 1), for the jitter.
        policy: Deadlines, waits and limits.

    Raises:
        ValueError: the event cannot happen to a batch in this state.
    """
    event = _qualified(facts, outcome.event, now_s=now_s, policy=policy)
    state = State.UNKNOWN if facts.in_doubt else State.SENDING
    match after(state, event):
        case State.SENDING:
            return Send(record_anew=False)
        case State.SEALED:
            return Send(record_anew=True)
        case State.UNKNOWN if event is BatchEvent.CLAIMED:
            return LookUp()
        case State.SETTLED:
            return Settle()
        case State.DEAD:
            return Retire()
        case State.PENDING:
            return Split()
        case State.RETRY | State.UNKNOWN as waiting:
            if now_s - facts.tried_since_s > policy.give_up_s:
                after(waiting, BatchEvent.EXPIRED)
                silent = waiting is State.UNKNOWN and event not in _ANSWERED
                return Retire(facts.horizon_s if silent and facts.horizon_s > now_s else 0.0)
            wait_s = _wait_s(facts, outcome, now_s=now_s, dice=dice, policy=policy)
            return Release(
                now_s + wait_s, unknown=waiting is State.UNKNOWN, over=event in _ANSWERED
            )
        case impossible:
            msg = f"a claimed batch cannot become {impossible.value}"
            raise ValueError(msg)


def _qualified(
    facts: Facts, event: BatchEvent, *, now_s: float, policy: DeliveryPolicy
) -> BatchEvent:
    """Refine an event whose consequence depends on times and counts."""
    if event is BatchEvent.ABSENT and now_s >= facts.horizon_s:
        return BatchEvent.ABSENT_FOR_GOOD
    if event is BatchEvent.TOO_LARGE:
        return BatchEvent.SPLIT if facts.turns > 1 else BatchEvent.REJECTED_FOR_GOOD
    if event is BatchEvent.REJECTED and facts.rejections + 1 >= policy.rejections_limit:
        return BatchEvent.REJECTED_FOR_GOOD
    return event


# Each of these answers the try it ends, so that try can no longer land; and a batch in doubt is
# sent again only past the horizon of its earlier tries. So nothing of the batch is on its way.
_ANSWERED = frozenset(
    {
        BatchEvent.FAILED,
        BatchEvent.REFUSED,
        BatchEvent.BUSY,
        BatchEvent.REJECTED,
        BatchEvent.CONVERSATION_GONE,
    }
)

_POLL_FIRST_S = 0.25
_POLL_CAP_S = 10.0
_SOON_S = 0.05


def _wait_s(
    facts: Facts, outcome: Outcome, *, now_s: float, dice: float, policy: DeliveryPolicy
) -> float:
    attempt = facts.attempt + 1
    jitter = 0.5 + dice / 2
    wait_s = backoff_s(attempt, base_s=policy.retry_base_s, cap_s=policy.retry_cap_s, dice=dice)
    match outcome.event:
        case BatchEvent.FAILED | BatchEvent.CONVERSATION_GONE:
            wait_s = _SOON_S if attempt <= 1 else wait_s
        case BatchEvent.LOST | BatchEvent.CRASHED:
            wait_s = _POLL_FIRST_S
        case BatchEvent.RUNNING | BatchEvent.ABSENT | BatchEvent.UNANSWERED:
            # The wait grows with the time since the try, and one poll falls on the horizon.
            since_s = now_s - (facts.horizon_s - policy.horizon_s)
            wait_s = min(max(_POLL_FIRST_S, since_s / 2), _POLL_CAP_S) * jitter
            left_s = facts.horizon_s - now_s
            if 0 < left_s < wait_s:
                wait_s = left_s + 0.01
        case BatchEvent.BUSY:
            wait_s = backoff_s(
                attempt, base_s=policy.busy_base_s, cap_s=policy.busy_cap_s, dice=dice
            )
        case BatchEvent.DENIED | BatchEvent.NO_AGENT | BatchEvent.AGENT_GONE:
            # Only an operator can fix these; slow retries from the start keep the log short.
            wait_s = backoff_s(
                attempt, base_s=policy.retry_cap_s / 8, cap_s=policy.retry_cap_s, dice=dice
            )
        case _:
            pass
    if outcome.retry_after_s is not None:
        wait_s = max(wait_s, min(outcome.retry_after_s, policy.retry_after_cap_s))
    return wait_s
