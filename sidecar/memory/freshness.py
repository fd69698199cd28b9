"""How fresh a snapshot is, in the words of HTTP caching. Pure.

Theory of operation: a *fresh* snapshot is as good as a read. A *stale* one is served at once
while a read goes on behind it (stale-while-revalidate), also when that read fails
(stale-if-error). One that was read before a known change is *outdated*, and stale however young it
is. An *expired* one is so old that a call's first prompt waits for a read, within the cold-start
budget, before it is served anyway: old memory is better than none.
*Absent*: there is nothing to serve.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Freshness: TypeAlias = Literal["fresh", "stale", "expired", "absent"]


@dataclass(frozen=True, slots=True)
class FreshnessPolicy:
    """Ages in seconds at which a snapshot turns stale, and expires."""

    fresh_s: float = 5.0
    expired_s: float = 7 * 86_400.0


def age_s(read_at_s: float, *, now_s: float) -> float:
    """Return the age of a read in seconds; 0 when the clock was set back behind it."""
    return max(0.0, now_s - read_at_s)


def judge(
    read_at_s: float | None, *, now_s: float, policy: FreshnessPolicy, outdated: bool = False
) -> Freshness:
    """Return how fresh a snapshot is.

    Args:
        read_at_s: Unix time at which its read began; None stands for no snapshot.
        now_s: Unix time.
        policy: Ages.
        outdated: The agent's memory is known to have changed since that read began.
    """
    if read_at_s is None:
        return "absent"
    age = age_s(read_at_s, now_s=now_s)
    if age <= policy.fresh_s and not outdated:
        return "fresh"
    return "stale" if age <= policy.expired_s else "expired"
