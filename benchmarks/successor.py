"""Workers that are killed in the middle of a call: from the next job's `call.open` to its prompt.

One call after another in one room. Each has several workers, processes with a link and a spool as a
LiveKit job has them. All but the last are killed with SIGKILL, most of them with words that are not
acked yet; the next one, which is up by then as LiveKit's idle processes are, opens its call at
once. The time is taken in the worker: from `open_call` to the first memory, which the sidecar sends
over the link. At the end, what Letta got is compared with what was acked.
"""

import random
import re
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from benchmarks.figures import Figures, milliseconds, percentile
from benchmarks.processes import LettaProcess, sidecar
from tests.job_process import Job
from tests.sidecar_process import eventually

KILLS = 100
QUICK_KILLS = 4
KILLS_PER_CALL = 4
UNACKED_FOR_S = 0.6
"""A killed worker's last words were said at most so long ago: some are in its spool."""


class Calls:
    """The calls of one room, as they are held and killed.

    Args:
        dice: Decides what is said, and when a worker is killed.
    """

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._words = count(1)
        self.acked: set[str] = set()
        self.first_prompts_s: list[float] = []
        self.new_calls_s: list[float] = []
        self.missing = 0
        self.greeted_twice = 0
        self.kills = 0
        self._of_call: list[str] = []

    def opened(self, one: Job, *, first: bool) -> None:
        """A job opens its call; it is the call's first, or a successor."""
        answer = one.ask(do="open")
        if first:
            self._of_call.clear()
            self.new_calls_s.append(answer["took_s"])
            assert not answer["continues"], "a new call was taken for one that goes on"
            return
        self.first_prompts_s.append(answer["took_s"])
        self.greeted_twice += not answer["continues"]
        shown = re.findall(r"said-\d+", answer["text"])
        self.missing += sum(word not in shown for word in self._of_call)

    def talk(self, one: Job) -> None:
        """Something is said and acked."""
        said = self._said(self._dice.randint(1, 4))
        one.say(*said)
        self.acked.update(said)
        self._of_call += said

    def kill(self, one: Job) -> None:
        """A job dies, perhaps with words that were not acked."""
        unacked = self._said(self._dice.randint(0, 2))
        one.say(*unacked, acked=False)
        time.sleep(self._dice.uniform(0.0, UNACKED_FOR_S) if unacked else 0.0)
        one.kill()
        self.kills += 1

    def _said(self, words: int) -> list[str]:
        return [f"said-{next(self._words)}" for _ in range(words)]


def measure(quick: bool) -> Figures:
    """Return `first_prompt_p50_ms` and `_p99_ms` over `kills`, and what went wrong.

    `lost` counts acked words that are not in a successor's first prompt or not at Letta, `doubled`
    words that Letta has more than once, `greeted_twice` successors that did not hear that the call
    goes on. The baseline, `new_call_p50_ms`, is the first memory of calls that nobody held before.
    """
    kills = QUICK_KILLS if quick else KILLS
    calls = Calls(random.Random(1))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        spool = directory / "spool"
        letta = stack.enter_context(LettaProcess())
        # What is posted at once is in no snapshot: only the call itself can have it.
        settings = {"SIDECAR_SPOOL_DIR": str(spool), "SIDECAR_POST_MAX_TURNS": "1"}
        one = stack.enter_context(sidecar(directory / "data", letta, **settings))
        names = (f"AJ_{n}" for n in count())

        def started() -> Job:
            return stack.enter_context(Job(next(names), one, spool))

        while calls.kills < kills:
            worker = started()
            calls.opened(worker, first=True)
            for _ in range(min(KILLS_PER_CALL, kills - calls.kills)):
                successor = started()
                calls.talk(worker)
                successor.ask(do="connect")
                calls.kill(worker)
                worker = successor
                calls.opened(worker, first=False)
            calls.talk(worker)
            worker.ask(do="close")
            worker.kill()
        eventually(one.is_at_rest)
        arrived = Counter(
            word for text in letta.accepted() for word in re.findall(r"said-\d+", text)
        )
    return {
        "kills": calls.kills,
        "first_prompt_p50_ms": milliseconds(percentile(calls.first_prompts_s, 0.50)),
        "first_prompt_p99_ms": milliseconds(percentile(calls.first_prompts_s, 0.99)),
        "first_prompt_max_ms": milliseconds(max(calls.first_prompts_s)),
        "new_call_p50_ms": milliseconds(percentile(calls.new_calls_s, 0.50)),
        "lost": calls.missing + len(calls.acked - arrived.keys()),
        "doubled": sum(times > 1 for times in arrived.values()),
        "greeted_twice": calls.greeted_twice,
    }
