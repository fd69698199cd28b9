"""What workers said and what was acked, held against what Letta has. Pure.

A worker writes one line per fact, in order, and may be cut off in the last one::

    said CALL N      the turn was recorded
    acked CALL N     the sidecar says it is on disk
    ended            the worker ended of itself: all it said was handed over or spooled

The kill loop adds a line where it killed the worker when the sidecar was dead already::

    alone            all it said was spooled, but for the newest, which were still on their way
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TypeAlias

Spoken: TypeAlias = tuple[str, int]
_TURN = re.compile(r"\[([\w-]+)/(\d+)\]")
NEWEST = 12
"""Turns a lone worker may have said and not spooled yet: a third of a second of talk."""
_LESSON = re.compile(r"taught by ([\w-]+);")


def text_of(call: str, n: int) -> str:
    """Return what is said in turn `n` of a call; `turns_in` finds it again."""
    return f"[{call}/{n}] and so on, for as long as people talk"


def lesson_of(call: str) -> str:
    """Return what has the demo model write a line of its memory; `lessons_in` finds it again."""
    return f"[[remember calls: taught by {call};]]"


def lessons_in(value: str) -> list[str]:
    """Return the calls that an agent's memory says it was taught by."""
    return _LESSON.findall(value)


def turns_in(text: str) -> list[Spoken]:
    """Return the turns a message holds, in order."""
    return [(call, int(n)) for call, n in _TURN.findall(text)]


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is known of all workers: `said`, and of it what `must_arrive`."""

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
    """What became of the turns.

    Attributes:
        turns: That had to arrive.
        lost: Of these, that did not.
        doubled: Arrivals of a turn beyond its first.
        misordered: Places where a call goes backwards.
        mixed: Conversations that hold turns of more than one call, and turns nobody said.
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
        """Return what the last printed line holds."""
        counts = {name: value for name, value in asdict(self).items() if name != "mixed"}
        return {"kills": kills, **counts}


def judge(
    ledger: Ledger, messages: Sequence[tuple[str, str]], lessons: Sequence[str] | None = None
) -> Verdict:
    """Hold the ledger against Letta's messages: (conversation, text), in the order they landed.

    Args:
        ledger: Of the workers.
        messages: What Letta was given.
        lessons: Calls that stand in Letta's memory, where the workers taught it: a call whose
            first turn had to arrive and that is not there is lost, one that is there twice doubled.
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
