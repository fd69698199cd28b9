"""Compares what workers said and what was acked with what Letta has. Pure.

A worker writes one line per fact, in order, and may be cut off in the last one::

    said CALL N      the turn was recorded
    acked CALL N     the sidecar says it is on disk
    ended            the worker ended by itself: all it said was sent or spooled

The kill loop adds a line if it killed the worker while the sidecar was dead::

    alone            all it said was spooled, except for the newest turns
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TypeAlias

Spoken: TypeAlias = tuple[str, int]
_TURN = re.compile(r"\[([\w-]+)/(\d+)\]")
NEWEST = 36
"""Turns that a worker on its own may not have spooled yet: a second of talk.

On two cores with three times the work that they can do, 22 were not (2026-12-01).
"""
_LESSON = re.compile(r"taught by ([\w-]+);")


def text_of(call: str, n: int) -> str:
    """Return the words of turn `n` of a call; `turns_in` finds the turn in them."""
    return f"[{call}/{n}] and so on, for as long as people talk"


def lesson_of(call: str) -> str:
    """Return words that make the demo model remember a line; `lessons_in` finds the line."""
    return f"[[remember calls: taught by {call};]]"


def lessons_in(value: str) -> list[str]:
    """Return the calls whose lessons are in an agent's memory."""
    return _LESSON.findall(value)


def turns_in(text: str) -> list[Spoken]:
    """Return the turns a message holds, in order."""
    return [(call, int(n)) for call, n in _TURN.findall(text)]


@dataclass(frozen=True, slots=True)
class Ledger:
    """All turns that workers `said`, and those of them that `must_arrive`."""

    said: frozenset[Spoken]
    must_arrive: frozenset[Spoken]


def read_ledgers(ledgers: Iterable[bytes]) -> Ledger:
    """Read one ledger per worker process."""
    said: set[Spoken] = set()
    must_arrive: set[Spoken] = set()
    for raw in ledgers:
        of_worker: dict[Spoken, None] = {}
        for line in raw.decode().splitlines(keepends=True):
            match line.split() if line.endswith("\n") else []:
                case ["said", call, n]:
                    of_worker[call, int(n)] = None
                case ["acked", call, n]:
                    must_arrive.add((call, int(n)))
                case ["ended"]:
                    must_arrive |= of_worker.keys()
                case ["alone"]:
                    must_arrive |= set(list(of_worker)[:-NEWEST])
                case _:
                    pass
        said |= of_worker.keys()
    return Ledger(frozenset(said), frozenset(must_arrive))


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many turns arrived as they should.

    Attributes:
        turns: Turns that had to arrive.
        lost: Those of them that did not.
        doubled: Arrivals of a turn beyond its first.
        misordered: Places where a turn is followed by an earlier one of its call.
        mixed: Conversations that hold turns of more than one call, and turns that nobody said.
    """

    turns: int
    lost: int
    doubled: int
    misordered: int
    mixed: int

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.doubled or self.misordered or self.mixed)

    def summary(self, kills: int) -> Mapping[str, int]:
        """Return the figures of the last printed line."""
        counts = {name: value for name, value in asdict(self).items() if name != "mixed"}
        return {"kills": kills, **counts}


def judge(
    ledger: Ledger, messages: Sequence[tuple[str, str]], lessons: Sequence[str] | None = None
) -> Verdict:
    """Compare the ledger with Letta's messages.

    Args:
        ledger: Of the workers.
        messages: What Letta got: (conversation, text), in the order they landed.
        lessons: Calls whose lessons are in Letta's memory, if the workers taught it. A call whose
            first turn had to arrive counts as lost without its lesson, and as doubled with two.
    """
    arrived: Counter[Spoken] = Counter()
    order: dict[str, list[int]] = {}
    calls_of: dict[str, set[str]] = {}
    for conversation, text in messages:
        for call, n in turns_in(text):
            arrived[call, n] += 1
            order.setdefault(call, []).append(n)
            calls_of.setdefault(conversation, set()).add(call)
    learned = Counter(lessons or ())
    taught: set[str] = set()
    if lessons is not None:
        taught = {call for call, n in ledger.must_arrive if n == 0}
    return Verdict(
        turns=len(ledger.must_arrive),
        lost=len(ledger.must_arrive - arrived.keys()) + len(taught - learned.keys()),
        doubled=arrived.total() - len(arrived) + learned.total() - len(learned),
        misordered=sum(b < a for numbers in order.values() for a, b in pairwise(numbers)),
        mixed=sum(len(calls) > 1 for calls in calls_of.values())
        + len(arrived.keys() - ledger.said),
    )
