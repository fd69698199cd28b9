"""Hold many calls for minutes while Letta and the network fail, and see whether anything grows.

    python -m tests.chaos.soak [--seconds N] [--calls N] [--seed N] [--keep DIR]

The workers, the sidecar, the stand-in Letta and its moods, and the verdict are those of the kill
loop (`tests.chaos.killloop`), but nothing is killed. Callers take turns every 2.5 s, and a call
is followed by another one. The link is cut or held in the middle of the run alone, so that the
times at its start and at its end are of the same work. The last printed line is JSON.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.figures import Figures, milliseconds, percentile
from tests.chaos import killloop
from tests.chaos.killloop import Loop, begun, ended
from tests.chaos.ledger import Verdict
from tests.fault_proxy import FaultProxy
from tests.sidecar_process import get

TURN_EVERY_S = 2.5
CALLERS_PER_CALL = 2
SAMPLE_EVERY_S = 1.0
FIRST = (0.1, 0.35)
"""The share of the run that is its start: the caches are full by then."""
LAST = (0.75, 1.0)
CALM_S = 20.0
"""At most, between two faults of the link."""
FAULT_S = 3.0
BACK_S = 12.0
"""By then workers have found the link again, and sent what they held."""
SLOWER_AT_MOST = 1.2


@dataclass(slots=True)
class Options:
    seconds: float
    calls: int
    seed: int
    directory: Path
    say: Callable[[str], None] = print


@dataclass(frozen=True, slots=True)
class Sample:
    """The sidecar at a moment, in seconds since the start of the run."""

    at_s: float
    rss_kb: float
    handles: float
    tasks: float
    wal_kb: float


@dataclass(slots=True)
class Soak:
    """A run.

    Args:
        loop: Its processes.
        network: Between the workers and the sidecar.
        seconds: How long it is.
    """

    loop: Loop
    network: FaultProxy
    seconds: float
    samples: list[Sample] = field(default_factory=list[Sample])
    began_s: float = 0.0
    _fault_s: float = 0.0
    _faulty: bool = False

    def hold(self) -> None:
        """Let the faults happen, and look at the sidecar, until the time is over."""
        self.began_s = time.time()
        while (at_s := time.time() - self.began_s) < self.seconds:
            self.change_link(at_s)
            self.samples.append(self.sample(at_s))
            self.loop.pause(SAMPLE_EVERY_S)
        self.network.resume()

    def change_link(self, at_s: float) -> None:
        """End the link's fault or begin one, in the middle of the run."""
        dice = self.loop.dice
        if at_s < self._fault_s:
            return
        if self._faulty:
            self.network.resume()
        middle = FIRST[1] * self.seconds < at_s < LAST[0] * self.seconds - FAULT_S - BACK_S
        self._faulty = middle and not self._faulty
        if self._faulty:
            dice.choice([self.network.cut, self.network.hold])()
        self._fault_s = at_s + dice.uniform(0.5, FAULT_S if self._faulty else CALM_S)

    def sample(self, at_s: float) -> Sample:
        (sidecar,) = self.loop.sidecars.all
        assert sidecar.process is not None
        process = psutil.Process(sidecar.process.pid)
        _, metrics = get(f"http://127.0.0.1:{sidecar.port}/metrics")
        (tasks,) = [
            float(line.split()[1]) for line in metrics.splitlines() if line[:14] == "sidecar_tasks "
        ]
        wal = sidecar.data_dir / "journal.db-wal"
        return Sample(
            at_s,
            process.memory_info().rss / 1024,
            process.num_fds(),
            tasks,
            wal.stat().st_size / 1024,
        )

    def took_s(self, what: str, within: tuple[float, float]) -> list[float]:
        """Return how long each ack or prompt took that ended in a share of the run."""
        first_s, last_s = (self.began_s + share * self.seconds for share in within)
        found: list[float] = []
        for ledger in (self.loop.options.directory / "ledgers").iterdir():
            for line in ledger.read_text(encoding="utf-8").splitlines():
                match line.split():
                    case ["took", kind, at_s, took_s] if kind == what:
                        if first_s <= float(at_s) < last_s:
                            found.append(float(took_s))
                    case _:
                        pass
        return found

    def figures(self) -> Figures:
        """Return what was measured; see docs/benchmarks.md."""
        figures: Figures = {"rss_mb": round(self.samples[-1].rss_kb / 1024, 1)}
        steady = [one for one in self.samples if one.at_s >= FIRST[0] * self.seconds]
        for name in ("rss", "wal"):
            sizes_kb = [getattr(one, f"{name}_kb") for one in steady]
            slope = 60 * slope_of([one.at_s for one in steady], sizes_kb)
            figures[f"{name}_slope_kb_per_min"] = round(slope, 1)
        for name in ("handles", "tasks"):
            figures[name] = self._median(name, LAST) - self._median(name, FIRST)
        ratios: list[float] = []
        for what in ("ack", "prompt"):
            before_s, after_s = (percentile(self.took_s(what, at), 0.99) for at in (FIRST, LAST))
            figures[f"{what}_p99_ms"] = [milliseconds(before_s), milliseconds(after_s)]
            ratios.append(after_s / before_s)
        return {**figures, "p99_ratio": round(max(ratios), 2)}

    def _median(self, name: str, within: tuple[float, float]) -> float:
        first_s, last_s = (share * self.seconds for share in within)
        found = [getattr(one, name) for one in self.samples if first_s <= one.at_s < last_s]
        return statistics.median(found) if found else math.nan


def slope_of(at: Sequence[float], values: Sequence[float]) -> float:
    """Return by how much the values grow on each unit of `at`: least squares, or NaN for none."""
    return statistics.linear_regression(at, values).slope if len(set(at)) > 1 else math.nan


def run(options: Options) -> tuple[Verdict, Figures]:
    """Run it.

    Raises:
        Stuck: a process did not start or stop.
    """
    loop = Loop(killloop.Options(0, options.seed, options.directory, say=options.say))
    calls = max(1, options.calls // len(loop.workers))
    loop.letta.env = {
        **loop.letta.env,
        "CHAOS_CALLS": str(calls),
        "CHAOS_CALLERS": str(CALLERS_PER_CALL * options.calls),
        "CHAOS_TURN_EVERY_S": str(TURN_EVERY_S),
        "CHAOS_TIMED": "1",
    }
    (sidecar,) = loop.sidecars.all
    try:
        with FaultProxy(sidecar.port) as network:
            loop.sidecars.link_port = network.port
            soak = Soak(loop, network, options.seconds)
            loop.letta.start()
            sidecar.run()
            loop.wait_for(sidecar)
            for worker in loop.workers:
                loop.start_worker(worker)
            soak.hold()
            loop.make_well()
            verdict = loop.until_delivered()
            options.say(f"Letta was {dict(loop.moods)}")
            return verdict, soak.figures()
    finally:
        loop.end()


def main() -> int:
    """Run from the command line; the exit code is 0 when nothing was lost and nothing slower."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", type=Path, help="a new directory for logs and files, kept")
    chosen = parser.parse_args()
    seed, directory = begun(chosen.seed, chosen.keep)
    verdict, figures = run(Options(chosen.seconds, chosen.calls, seed, directory))
    ended(directory, remove=verdict.clean and not chosen.keep)
    found = {name: n for name, n in verdict.summary(0).items() if name != "kills"}
    print(json.dumps({"seconds": chosen.seconds, "calls": chosen.calls, **figures, **found}))
    return 0 if verdict.clean and figures["p99_ratio"] <= SLOWER_AT_MOST else 1


if __name__ == "__main__":
    sys.exit(main())
