"""Kill the sidecar and its workers at random, and look for lost, doubled or misordered turns.

    python -m tests.chaos.killloop [--kills N] [--seed N] [--letta KIND] [--journal ENGINE]
        [--replicas N] [--mutation NAME] [--keep DIR]

Two workers hold calls over the real link. The real sidecar posts to a stand-in Letta that stores a
post twice if it gets it twice, and that is slow, down, frozen, lying or restarted in turn. `--letta
classic` uses the real classic server, slow or frozen in turn; `--letta app-server` uses the real
App Server, slow, frozen or killed, and checks what it learned as well. Every so often a process is
killed with SIGKILL and started again, or the sidecar and then a worker are. With `--journal
postgres` the journal is in a real PostgreSQL, which crashes and recovers as well. With `--replicas`
several sidecars share it, each with a clock of its own, behind a proxy that gives each connection
to the next one; they are frozen and cut off from the database as well. At the end all faults are
removed, and what Letta has is compared with what the workers know to be acked, and with
what the spool must have held where both were dead.

The seed is printed first. The same seed draws the same kills and faults, though a kill finds the
processes at whatever they are doing. The last printed line is JSON.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import percentile
from sidecar.journal.postgres.lease import LEASE_S
from tests.chaos.ledger import Verdict, judge, read_ledgers
from tests.chaos.lettas import (
    FREEZE_S,
    AppServer,
    Letta,
    RealServer,
    StandIn,
    Stuck,
    ask,
)
from tests.chaos.mutated_sidecar import ADDRESSING_FILE, MUTATIONS, NO_FENCING
from tests.chaos.sidecars import Child, Sidecar, Sidecars, taken_over_in_s
from tests.postgres.server import PostgresServer

REAL: Mapping[str, Callable[[Path], Letta]] = {"classic": RealServer, "app-server": AppServer}
LATE_SPOOL = "late_spool"
"""A mutation of the worker: it waits for an ack even while the sidecar is away."""
KILL_WITHIN_S = 1.2
KILL_WITHIN_MUTATED_S = 4.0
WORKERS = 2
FROZEN_SHARE = 0.5
"""Of the faults of a replica beside others, those after which it goes on."""
START_S = 90.0
QUIET_S = 2.0
# A mutation runs with the moods in which its rule matters, so that the damage shows within a few
# kills. Kills then leave time for the damage: a post that is given up, looked up, and then lands.
MOODS_OF_MUTATION = {
    "no_lookup": ("slow", "lying"),
    "no_horizon": ("belated",),
    "trusted_503": ("lying",),
    NO_FENCING: ("well",),
    LATE_SPOOL: ("well",),
}


@dataclass(slots=True)
class Options:
    kills: int
    seed: int
    directory: Path
    mutation: str = ""
    letta: str = "stand-in"
    journal: str = "sqlite"
    replicas: int = 1
    say: Callable[[str], None] = print


@dataclass(slots=True)
class Loop:
    """The processes, their faults and their kills."""

    options: Options
    dice: random.Random = field(init=False)
    letta: Letta = field(init=False)
    sidecars: Sidecars = field(init=False)
    workers: list[Child] = field(init=False)
    database: PostgresServer | None = None
    starts: Counter[str] = field(default_factory=Counter[str])
    moods: Counter[str] = field(default_factory=Counter[str])
    taken_over_s: list[float] = field(default_factory=list[float])
    _mood_ends: float = 0.0

    def __post_init__(self) -> None:
        directory = self.options.directory
        self.dice = random.Random(self.options.seed)
        if self.options.letta in REAL:
            self.letta = REAL[self.options.letta](directory)
        elif self.options.mutation:
            self.letta = StandIn(directory, MOODS_OF_MUTATION[self.options.mutation])
        else:
            self.letta = StandIn(directory)
        if self.options.journal == "postgres":
            self.database = PostgresServer(directory / "postgres")
        env = {**self.letta.env, "CHAOS_MUTATION": self.options.mutation}
        self.sidecars = Sidecars(
            directory, replicas=self.options.replicas, env=env, database=self.database
        )
        self.workers = [Child(f"worker{n}", directory / f"worker{n}.log") for n in range(WORKERS)]
        (directory / "ledgers").mkdir()

    # Starting

    def start_worker(self, worker: Child) -> None:
        self.starts[worker.name] += 1
        directory = self.options.directory
        ledger = self.ledger_of(worker)
        arguments = [
            ledger.name,
            f"ws://127.0.0.1:{self.sidecars.link_port}/link",
            str(directory / "spool"),
            str(ledger),
            str(self.dice.randrange(1 << 30)),
        ]
        env = os.environ | self.letta.env | {"SIDECAR_DATA_DIR": str(directory / "data")}
        if self.options.mutation == LATE_SPOOL:
            env["CHAOS_SPOOL_AFTER_S"] = "5"
        worker.start(["tests.chaos.killed_worker", *arguments], env)

    def ledger_of(self, worker: Child) -> Path:
        """The ledger of a worker's current process."""
        return self.options.directory / "ledgers" / f"{worker.name}-{self.starts[worker.name]}"

    # Faults and kills

    def change_mood(self) -> None:
        """Put Letta into another mood for a while, once the last one is over."""
        if time.monotonic() < self._mood_ends:
            return
        mood = self.dice.choice(self.letta.moods)
        self.moods[mood] += 1
        self.letta.become(mood, self.dice)
        longest_s = FREEZE_S if mood == "frozen" else 3.0
        self._mood_ends = time.monotonic() + self.dice.uniform(0.3, longest_s)

    def pause(self, seconds: float) -> None:
        """Wait while Letta's mood changes."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.change_mood()
            threading.Event().wait(min(0.05, max(0.0, until - time.monotonic())))

    def until_the_next_kill(self) -> None:
        """Wait a while; with a mutation, for a further post too: a busy machine may make none."""
        if self.options.mutation not in MUTATIONS:
            self.pause(self.dice.uniform(0.05, KILL_WITHIN_S))
            return
        self.pause(self.dice.uniform(0.05, KILL_WITHIN_MUTATED_S))
        arrived = len(self.letta.messages())
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and len(self.letta.messages()) <= arrived:
            self.pause(0.2)

    def kill_one(self) -> str:
        """Kill a process whatever it is doing, and start it again at once or after a while."""
        if self.options.mutation == NO_FENCING:
            return self.freeze(self.before_a_post(), LEASE_S + 5.0)
        if self.dice.random() < (1.0 if self.options.mutation == LATE_SPOOL else 0.2):
            return self.kill_both()
        if self.database is not None and self.dice.random() < 0.3:
            self.database.crash()
            self.pause(self.dice.uniform(0.0, 2.0))
            self.database.start_postgres()
            return "database"
        if self.dice.random() < 0.3:
            worker = self.dice.choice(self.workers)
            worker.kill()
            self.start_worker(worker)
            return worker.name
        sidecar = self.dice.choice(self.sidecars.all)
        if self.options.replicas > 1 and self.dice.random() < FROZEN_SHARE:
            return self.freeze_or_cut(sidecar)
        sidecar.kill()
        if self.options.replicas > 1:
            self.measure_take_over(sidecar)
        self.pause(self.dice.choice([0.0, 0.0, self.dice.uniform(0.0, 2.0)]))
        sidecar.run()
        if self.dice.random() < 0.8:  # else the next kill may hit its start
            self.wait_for(sidecar)
        return sidecar.name

    def freeze_or_cut(self, sidecar: Sidecar) -> str:
        """Freeze a replica, or cut it off from the database, for longer than its lease or not."""
        assert sidecar.network is not None
        what = self.dice.choice(["frozen", "cut", "held"])
        for_s = self.dice.uniform(0.5, LEASE_S + 5.0)
        match what:
            case "frozen":
                return self.freeze(sidecar, for_s)
            case "cut":
                sidecar.network.cut()
            case _:
                sidecar.network.hold()
        self.pause(for_s)
        sidecar.network.resume()
        return f"{sidecar.name} {what}"

    def before_a_post(self) -> Sidecar:
        """Wait until a mutated sidecar is about to post, and return it."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for sidecar in self.sidecars.all:
                if (sidecar.data_dir / ADDRESSING_FILE).exists():
                    return sidecar
            threading.Event().wait(0.01)
        raise Stuck("no sidecar posts anything")

    def freeze(self, sidecar: Sidecar, for_s: float) -> str:
        """Let a sidecar do nothing for a while."""
        sidecar.signal(signal.SIGSTOP)
        self.pause(for_s)
        sidecar.signal(signal.SIGCONT)
        return f"{sidecar.name} frozen"

    def measure_take_over(self, killed: Sidecar) -> None:
        """Wait until what a killed replica had is another's, and note how long that took."""
        assert self.database is not None
        if killed.process is not None and any(
            other.answers for other in self.sidecars.all if other is not killed
        ):
            took_s = taken_over_in_s(
                self.database, killed.process.pid, within_s=START_S, pause=self.pause
            )
            self.taken_over_s.append(took_s)

    def kill_both(self) -> str:
        """Kill all sidecars and, while they are dead, a worker, whose words are in the spool."""
        for sidecar in self.sidecars.all:
            sidecar.kill()
        # With the mutation: long enough for more than `NEWEST` turns, even on a busy machine.
        least_s = 2.0 if self.options.mutation == LATE_SPOOL else 0.0
        self.pause(self.dice.uniform(least_s, 3.0))
        worker = self.dice.choice(self.workers)
        worker.kill()
        with self.ledger_of(worker).open("ab") as ledger:
            ledger.write(b"\nalone\n")
        self.start_worker(worker)
        for sidecar in self.sidecars.all:
            sidecar.run()
        for sidecar in self.sidecars.all:
            self.wait_for(sidecar)
        return f"all sidecars and {worker.name}"

    def wait_for(self, sidecar: Sidecar) -> None:
        deadline = time.monotonic() + START_S
        while not sidecar.answers:
            if time.monotonic() > deadline:  # checked before the pause, which may be long
                raise Stuck(f"{sidecar.name} does not start")
            if sidecar.ended:  # it started while it was cut off from its database
                sidecar.run()
            self.pause(0.05)

    # Verdict

    def verdict(self) -> Verdict:
        ledgers = (self.options.directory / "ledgers").iterdir()
        ledger = read_ledgers(path.read_bytes() for path in ledgers)
        return judge(ledger, self.letta.messages(), self.letta.lessons())

    def make_well(self) -> None:
        """End all faults and all calls."""
        self.letta.become("well", self.dice)
        self.sidecars.heal()
        for sidecar in self.sidecars.all:
            if not sidecar.answers:
                self.wait_for(sidecar)
        for worker in self.workers:
            worker.stop(within_s=20.0)

    def until_delivered(self) -> Verdict:
        """Wait until nothing is undelivered or spooled, or a mutation has shown, then judge."""
        deadline = time.monotonic() + self.letta.recover_s
        while time.monotonic() < deadline:
            if self._undelivered() == 0 and not list(
                (self.options.directory / "spool").glob("*.jsonl")
            ):
                threading.Event().wait(QUIET_S)
                if self._undelivered() == 0:
                    break
            if self.options.mutation in MUTATIONS:
                if self.verdict().doubled:
                    break
                threading.Event().wait(QUIET_S)  # a verdict reads every message
            threading.Event().wait(0.1)
        else:
            self.options.say(f"not all was delivered within {self.letta.recover_s:g} s")
        return self.verdict()

    def _undelivered(self) -> int:
        port = self.sidecars.all[0].port
        try:
            return int(ask(f"http://127.0.0.1:{port}/readyz")["undelivered_turns"])
        except (OSError, KeyError, ValueError):  # not up, or not ready
            return -1

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.sidecars.end()
        self.letta.stop()
        if self.database is not None:
            self.database.stop()


def run(options: Options) -> tuple[Verdict, Mapping[str, float | None]]:
    """Run the loop. With a mutation it ends as soon as a turn is doubled.

    Returns:
        What went wrong, and what was measured: `takeover_p99_s`, None without replicas.

    Raises:
        Stuck: a process did not start or stop.
    """
    loop = Loop(options)
    try:
        loop.letta.start()
        if loop.database is not None:
            loop.database.start()
        for sidecar in loop.sidecars.all:
            sidecar.run()
        for sidecar in loop.sidecars.all:
            loop.wait_for(sidecar)
        for worker in loop.workers:
            loop.start_worker(worker)
        loop.pause(1.0)
        killed: Counter[str] = Counter()
        for _ in range(options.kills):
            loop.until_the_next_kill()
            killed[loop.kill_one()] += 1
            if options.mutation and loop.verdict().doubled:
                break
        options.say(f"killed {dict(killed)}; Letta was {dict(loop.moods)}")
        if options.mutation in MUTATIONS and (shown := loop.verdict()).doubled:
            return shown, {}
        loop.make_well()
        verdict = loop.until_delivered()
        if isinstance(loop.letta, AppServer):
            options.say(f"{loop.letta.cut_off} messages stand cut off, in conversations of no use")
        for sidecar in loop.sidecars.all:
            sidecar.stop(within_s=20.0)
        took_s = percentile(loop.taken_over_s, 0.99) if loop.taken_over_s else None
        return verdict, {"takeover_p99_s": took_s}
    finally:
        loop.end()


def begun(seed: int | None, keep: Path | None) -> tuple[int, Path]:
    """Draw a seed if none is given, and say it; return it and the directory for all files."""
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    directory = keep or Path(tempfile.mkdtemp(prefix="sidecar-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}", flush=True)
    return seed, directory


def ended(directory: Path, *, remove: bool) -> None:
    """Remove the files, or say where they are."""
    if remove:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        print(f"logs are in {directory}")


def main() -> int:
    """Run from the command line; the exit code is 0 when nothing went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--letta", choices=("stand-in", *REAL), default="stand-in")
    parser.add_argument("--journal", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--replicas", type=int, default=1, help="sidecars; several need postgres")
    parser.add_argument("--mutation", choices=(*MUTATIONS, LATE_SPOOL), default="")
    parser.add_argument("--keep", type=Path, help="a new directory for logs and files, kept")
    chosen = parser.parse_args()
    seed, directory = begun(chosen.seed, chosen.keep)
    if chosen.replicas > 1 and chosen.journal != "postgres":
        parser.error("several replicas need --journal postgres")
    verdict, measured = run(
        Options(
            chosen.kills,
            seed,
            directory,
            chosen.mutation,
            letta=chosen.letta,
            journal=chosen.journal,
            replicas=chosen.replicas,
        )
    )
    if verdict.mixed:
        print(f"{verdict.mixed} conversations or turns that belong to another call")
    ended(directory, remove=verdict.clean and not chosen.keep)
    summary = {
        **verdict.summary(chosen.kills),
        "journal": chosen.journal,
        "replicas": chosen.replicas,
        **measured,
    }
    print(json.dumps(summary), flush=True)
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
