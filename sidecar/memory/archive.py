"""Searches in Letta's archival memory while somebody waits for the answer.

Theory of operation: blocks are read ahead and held, but a question to archival memory is not known
before it is asked. So each search runs in a separate task, and `search` waits for it no longer
than its budget. An answer that comes later is kept for the next time the same question is asked:
VAPI asks several times in one turn. A breaker refuses searches while they fail, and only a few run
at once, so that a Letta that hangs costs neither waits nor the connections that read blocks.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import anyio
from anyio.abc import TaskGroup, TaskStatus

from sidecar import telemetry
from sidecar.breaker import Breaker
from sidecar.errors import LettaError, NotOffered
from sidecar.model import Passage
from sidecar.telemetry import Emit

CACHED_S = 60.0
FOUND_LIMIT = 4
QUESTION_CHARS = 500
_SEARCHES_LIMIT = 500
_AT_ONCE = 16


class PassageSource(Protocol):
    """What is searched: `sidecar.letta.port.Letta` is one."""

    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        """Return what fits a question, best first, or raise a `LettaError`."""
        ...


@dataclass(slots=True)
class _Search:
    began_s: float
    found: tuple[Passage, ...] = ()
    good: bool = False
    done: anyio.Event = field(default_factory=anyio.Event)


class Archive:
    """Searches in the archival memory of any agent.

    Args:
        source: What is searched; it ends each search by its own deadline.
        emit: Where events go.
        clock: Unix time in seconds.
        breaker: Refuses searches while they fail.
    """

    def __init__(
        self,
        source: PassageSource,
        *,
        emit: Emit,
        clock: Callable[[], float],
        breaker: Breaker | None = None,
    ) -> None:
        self._source = source
        self._emit = emit
        self._clock = clock
        self._breaker = breaker or Breaker(failure_limit=3)
        self._searches: OrderedDict[tuple[str, str], _Search] = OrderedDict()
        self._at_work = 0
        self._offered = True
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve searches until cancelled; before this has started, nothing is found."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            await anyio.sleep_forever()

    async def search(self, agent_id: str, question: str, *, budget_s: float) -> tuple[Passage, ...]:
        """Return what the agent's archival memory holds on a question, best first.

        Promises: never raises, never waits for longer than `budget_s`; at most `FOUND_LIMIT`
        passages, of this agent alone. A question answered within the last `CACHED_S` is answered
        at once. A search that finds nothing and one that is too slow return the same.
        """
        question = " ".join(question.split())[:QUESTION_CHARS]
        if not question:
            return ()
        search = self._begun(agent_id, question)
        if search is None:
            return ()
        with anyio.move_on_after(budget_s):
            await search.done.wait()
        return search.found

    def _begun(self, agent_id: str, question: str) -> _Search | None:
        """Return the question's search: one still good, one under way or, if allowed, a new one."""
        now_s = self._clock()
        while self._searches:
            oldest = next(iter(self._searches.values()))
            if len(self._searches) <= _SEARCHES_LIMIT and now_s - oldest.began_s < CACHED_S:
                break
            self._searches.popitem(last=False)
        key = agent_id, question
        search = self._searches.get(key)
        if search is not None and (search.good or not search.done.is_set()):
            return search
        if self._tasks is None or not self._offered or not self._breaker.admits(now_s=now_s):
            return None
        if self._at_work >= _AT_ONCE:
            self._breaker.abandoned()
            self._failed(agent_id, f"more than {_AT_ONCE} searches at once", "", took_s=0.0)
            return None
        search = self._searches[key] = _Search(now_s)
        self._searches.move_to_end(key)
        self._at_work += 1
        self._tasks.start_soon(self._find, agent_id, question, search)
        return search

    async def _find(self, agent_id: str, question: str, search: _Search) -> None:
        verdict = False
        try:
            search.found = await self._source.search_passages(agent_id, question, limit=FOUND_LIMIT)
            search.good = verdict = True
            self._breaker.succeeded(now_s=self._clock())
            self._emit(
                telemetry.archive_searched,
                agent=agent_id,
                passages=len(search.found),
                took_s=self._clock() - search.began_s,
            )
        except NotOffered:
            verdict, self._offered = True, False
            self._breaker.succeeded(now_s=self._clock())
        except LettaError as error:
            verdict = True
            self._breaker.failed(now_s=self._clock(), began_s=search.began_s)
            self._failed(
                agent_id,
                f"{type(error).__name__}: {error.message}",
                error.hint,
                took_s=self._clock() - search.began_s,
            )
        finally:
            if not verdict:
                self._breaker.abandoned()
            self._at_work -= 1
            search.done.set()

    def _failed(self, agent_id: str, error: str, hint: str, *, took_s: float) -> None:
        self._emit(
            telemetry.archive_search_failed, agent=agent_id, error=error, hint=hint, took_s=took_s
        )
