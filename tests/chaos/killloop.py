"""Kill the sidecar and its workers at random, and look for lost, doubled or misordered turns.

    python -m tests.chaos.killloop [--kills N] [--seed N] [--letta KIND] [--journal ENGINE]
        [--mutation NAME] [--keep DIR]

Two workers hold calls over the real link. The real sidecar posts to a stand-in Letta that stores a
post twice if it gets it twice, and that is slow, down, frozen, lying or restarted in turn. `--letta
classic` uses the real classic server, slow or frozen in turn; `--letta app-server` uses the real
App Server, slow, frozen or killed, and checks what it learned as well. Every so often a process is
killed with SIGKILL and started again, or the sidecar and then a worker are. With `--journal
postgres` the journal is in a real PostgreSQL, which crashes and recovers as well. At the end all
faults are removed, and what Letta has is compared with what the workers know to be acked, and with
what the spool must have held where both were dead.

The seed is printed first. The same seed draws the same kills and faults, though a kill finds the
processes at whatever they are doing. The last printed line is JSON.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.ledger import Verdict, judge, read_ledgers
from tests.chaos.lettas import (
    FREEZE_S,
    AppServer,
    Letta,
    RealServer,
    StandIn,
    Stuck,
    answers,
    ask,
    start,
    wait_for_port,
)
from tests.chaos.mutated_sidecar import MUTATIONS
from tests.ports import free_port
from tests.postgres.server import PostgresServer

REAL: Mapping[str, Callable[[Path], Letta]] = {"classic": RealServer, "app-server": AppServer}
LATE_SPOOL = "late_spool"
"""A mutation of the worker: it waits for an ack even while the sidecar is away."""
KILL_WITHIN_S = 1.2
KILL_WITHIN_MUTATED_S = 4.0
WORKERS = 2
START_S = 90.0
QUIET_S = 2.0
SIDECAR_ENV = {
    "SIDECAR_CONSOLE": "0",
    "SIDECAR_LOG_JSON": "1",
    "SIDECAR_POST_MAX_TURNS": "4",
    "SIDECAR_POST_MAX_AGE_S": "0.4",
    "SIDECAR_ORPHAN_S": "3.0",
    "SIDECAR_DRAIN_CALLS_S": "0",
    "SIDECAR_DRAIN_FLUSH_S": "5",
}
# A mutation runs with the moods in which its rule matters, so that the damage shows within a few
# kills. Kills then leave time for the damage: a post that is given up, looked up, and then lands.
MOODS_OF_MUTATION = {
    "no_lookup": ("slow", "lying"),
    "no_horizon": ("belated",),
    "trusted_503": ("lying",),
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
    say: Callable[[str], None] = print


@dataclass(slots=True)
class Child:
    """A process that is started again under the same name."""

    name: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.process = start(command, self.log, env)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self, within_s: float) -> None:
        """Send SIGTERM and wait; kill a process that does not end."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Stuck(f"{self.name} did not stop in {within_s:g} s") from None


@dataclass(slots=True)
class Loop:
    """The processes, their faults and their kills."""

    options: Options
    dice: random.Random = field(init=False)
    letta: Letta = field(init=False)
    sidecar: Child = field(init=False)
    workers: list[Child] = field(init=False)
    database: PostgresServer | None = None
    starts: Counter[str] = field(default_factory=Counter[str])
    moods: Counter[str] = field(default_factory=Counter[str])
    _port: int = field(init=False)
    _mood_ends: float = 0.0

    def __post_init__(self) -> None:
        directory = self.options.directory
        self.dice = random.Random(self.options.seed)
        self._port = free_port()
        if self.options.letta in REAL:
            self.letta = REAL[self.options.letta](directory)
        elif self.options.mutation:
            self.letta = StandIn(directory, MOODS_OF_MUTATION[self.options.mutation])
        else:
            self.letta = StandIn(directory)
        if self.options.journal == "postgres":
            self.database = PostgresServer(directory / "postgres")
        self.sidecar = Child("sidecar", directory / "sidecar.log")
        self.workers = [Child(f"worker{n}", directory / f"worker{n}.log") for n in range(WORKERS)]
        (directory / "ledgers").mkdir()

    # Starting

    def start_sidecar(self) -> None:
        ours = ("SIDECAR_", "LETTA_", "LLM_", "OPENAI_", "LIVEKIT_", "COVERAGE")
        env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        env |= SIDECAR_ENV | {
            **self.letta.env,
            "SIDECAR_PORT": str(self._port),
            "SIDECAR_DATA_DIR": str(self.options.directory / "data"),
            "SIDECAR_SPOOL_DIR": str(self.options.directory / "spool"),
            "CHAOS_MUTATION": self.options.mutation,
        }
        if self.database is not None:
            env["SIDECAR_JOURNAL_URL"] = self.database.url("postgres")
        mutated = self.options.mutation in MUTATIONS
        module = "tests.chaos.mutated_sidecar" if mutated else "sidecar"
        self.sidecar.start([sys.executable, "-m", module, "run"], env)

    def start_worker(self, worker: Child) -> None:
        self.starts[worker.name] += 1
        directory = self.options.directory
        ledger = self.ledger_of(worker)
        arguments = [
            ledger.name,
            f"ws://127.0.0.1:{self._port}/link",
            str(directory / "spool"),
            str(ledger),
            str(self.dice.randrange(1 << 30)),
        ]
        env = os.environ | self.letta.env | {"SIDECAR_DATA_DIR": str(directory / "data")}
        if self.options.mutation == LATE_SPOOL:
            env["CHAOS_SPOOL_AFTER_S"] = "5"
        worker.start([sys.executable, "-m", "tests.chaos.killed_worker", *arguments], env)

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

    def kill_one(self) -> str:
        """Kill a process whatever it is doing, and start it again at once or after a while."""
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
        self.sidecar.kill()
        self.pause(self.dice.choice([0.0, 0.0, self.dice.uniform(0.0, 2.0)]))
        self.start_sidecar()
        if self.dice.random() < 0.8:  # else the next kill may hit its start
            self.wait_for_sidecar()
        return "sidecar"

    def kill_both(self) -> str:
        """Kill the sidecar and, while it is dead, a worker, whose words are in the spool alone."""
        self.sidecar.kill()
        # With the mutation: long enough for more than `NEWEST` turns, even on a busy machine.
        least_s = 1.0 if self.options.mutation == LATE_SPOOL else 0.0
        self.pause(self.dice.uniform(least_s, least_s + 1.5))
        worker = self.dice.choice(self.workers)
        worker.kill()
        with self.ledger_of(worker).open("ab") as ledger:
            ledger.write(b"\nalone\n")
        self.start_worker(worker)
        self.start_sidecar()
        self.wait_for_sidecar()
        return f"sidecar and {worker.name}"

    def wait_for_sidecar(self) -> None:
        deadline = time.monotonic() + START_S
        while not answers(self._port):
            if time.monotonic() > deadline:  # checked before the pause, which may be long
                raise Stuck("the sidecar does not start")
            self.pause(0.05)

    # Verdict

    def verdict(self) -> Verdict:
        ledgers = (self.options.directory / "ledgers").iterdir()
        ledger = read_ledgers(path.read_bytes() for path in ledgers)
        return judge(ledger, self.letta.messages(), self.letta.lessons())

    def make_well(self) -> None:
        """End all faults and all calls."""
        self.letta.become("well", self.dice)
        if not answers(self._port):
            wait_for_port(self._port)
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
        try:
            return int(ask(f"http://127.0.0.1:{self._port}/readyz")["undelivered_turns"])
        except (OSError, KeyError, ValueError):  # not up, or not ready
            return -1

    def end(self) -> None:
        for child in (self.sidecar, *self.workers):
            child.kill()
        self.letta.stop()
        if self.database is not None:
            self.database.stop()


def run(options: Options) -> Verdict:
    """Run the loop. With a mutation it ends as soon as a turn is doubled.

    Raises:
        Stuck: a process did not start or stop.
    """
    loop = Loop(options)
    try:
        loop.letta.start()
        if loop.database is not None:
            loop.database.start()
        loop.start_sidecar()
        loop.wait_for_sidecar()
        for worker in loop.workers:
            loop.start_worker(worker)
        loop.pause(1.0)
        killed: Counter[str] = Counter()
        within_s = KILL_WITHIN_MUTATED_S if options.mutation in MUTATIONS else KILL_WITHIN_S
        for _ in range(options.kills):
            loop.pause(loop.dice.uniform(0.05, within_s))
            killed[loop.kill_one()] += 1
            if options.mutation and loop.verdict().doubled:
                break
        options.say(f"killed {dict(killed)}; Letta was {dict(loop.moods)}")
        loop.make_well()
        verdict = loop.until_delivered()
        if isinstance(loop.letta, AppServer):
            options.say(f"{loop.letta.cut_off} messages stand cut off, in conversations of no use")
        loop.sidecar.stop(within_s=20.0)
        return verdict
    finally:
        loop.end()


def main() -> int:
    """Run from the command line; the exit code is 0 when nothing went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--letta", choices=("stand-in", *REAL), default="stand-in")
    parser.add_argument("--journal", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--mutation", choices=(*MUTATIONS, LATE_SPOOL), default="")
    parser.add_argument("--keep", type=Path, help="a new directory for logs and files, kept")
    chosen = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    directory = chosen.keep or Path(tempfile.mkdtemp(prefix="sidecar-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"seed {seed}", flush=True)
    verdict = run(
        Options(
            chosen.kills,
            seed,
            directory,
            chosen.mutation,
            letta=chosen.letta,
            journal=chosen.journal,
        )
    )
    if verdict.mixed:
        print(f"{verdict.mixed} conversations or turns that belong to another call")
    if verdict.clean and not chosen.keep:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        print(f"logs are in {directory}")
    print(json.dumps({**verdict.summary(chosen.kills), "journal": chosen.journal}), flush=True)
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
