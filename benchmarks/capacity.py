"""How many live calls two cores hold: load, stand-in Letta and sidecar on one machine.

Processes of `many_calls` hold calls over the worker's real link, one link a call, as LiveKit's jobs
have them. Each caller has an agent of its own. A caller takes a turn every five seconds and is
answered; batches are posted to the stand-in by the default settings, and each that is digested
brings a new memory over the link. The rows are the same load with fewer calls: by them it is seen
what a call adds.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.figures import Figures, milliseconds, percentile
from benchmarks.processes import LettaProcess, sidecar
from tests.line_process import LineProcess
from tests.sidecar_process import eventually

CALLS: Final = (100, 300, 600, 1_000)
QUICK_CALLS: Final = (10,)
PROCESSES: Final = 2
SECONDS: Final = 40.0
QUICK_SECONDS: Final = 6.0
SETTLE_S: Final = 3.0
FIRST_NUMBER: Final = 14155550000


def measure(quick: bool) -> Figures:
    """Return `calls`, `ack_p99_ms`, `prompt_p99_ms`, `rss_kb_per_call` and `cpu_cores`.

    They are those of the most calls; a row for each other number has the same. `lost` counts turns
    that were acked and are not at Letta.
    """
    rows = {n: _held(n, quick) for n in (QUICK_CALLS if quick else CALLS)}
    most = max(rows)
    return {"calls": most, **rows[most], **{f"{n} calls": row for n, row in rows.items()}}


def _held(calls: int, quick: bool) -> Figures:
    """Hold calls for a while, and return the figures."""
    seconds = QUICK_SECONDS if quick else SECONDS
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        letta = stack.enter_context(LettaProcess())
        spool = directory / "spool"
        agents = directory / "agents.json"
        numbers = range(FIRST_NUMBER, FIRST_NUMBER + calls)
        agents.write_text(json.dumps({f"+{n}": letta.agent(f"caller {n}") for n in numbers}))
        one = stack.enter_context(
            sidecar(
                directory / "data",
                letta,
                SIDECAR_SPOOL_DIR=str(spool),
                SIDECAR_AGENT_MAP=str(agents),
            )
        )
        process = psutil.Process(one.pid)
        time.sleep(SETTLE_S)
        idle_kb = process.memory_info().rss / 1024
        each = calls // PROCESSES
        loads = [
            stack.enter_context(
                LineProcess(
                    "benchmarks.many_calls",
                    one.link_url,
                    f"w{n}",
                    str(numbers[n * each]),
                    str(each),
                    str(spool),
                    sidecar=one,
                )
            )
            for n in range(PROCESSES)
        ]
        began_s = time.perf_counter()
        _all(loads, do="open")
        opened_s = time.perf_counter() - began_s
        watched = {"cpu": [one.pid], "letta": [letta.pid], "load": [load.pid for load in loads]}
        before_s, began_s = _cpu_s(watched), time.perf_counter()
        talks = _all(loads, do="talk", seconds=seconds)
        took_s = time.perf_counter() - began_s
        after_s = _cpu_s(watched)
        rss_kb = process.memory_info().rss / 1024
        acks_s = [s for talk in talks for s in talk["acks_s"]]
        lags_s = [s for talk in talks for s in talk["lags_s"]]
        prompts_s = [s for talk in talks for s in talk["prompts_s"]]
        _all(loads, do="close")
        eventually(one.is_at_rest, within_s=300.0)
        said = sum(text.count("I would like to book") for text in letta.accepted())
    return {
        "ack_p50_ms": milliseconds(percentile(acks_s, 0.50)),
        "ack_p99_ms": milliseconds(percentile(acks_s, 0.99)),
        "prompt_p50_ms": milliseconds(percentile(prompts_s, 0.50)),
        "prompt_p99_ms": milliseconds(percentile(prompts_s, 0.99)),
        "load_lag_p99_ms": milliseconds(percentile(lags_s, 0.99)),
        "with_memory": round(sum(t["with_memory"] for t in talks) / max(1, len(prompts_s)), 3),
        "rss_kb_per_call": round((rss_kb - idle_kb) / calls, 1),
        **{
            f"{name}_cores": round((after_s[name] - before_s[name]) / took_s, 2) for name in watched
        },
        "turns_per_s": round(len(acks_s) / took_s, 1),
        "memories_per_s": round(sum(t["memories"] for t in talks) / took_s, 1),
        "opened_per_s": round(calls / opened_s, 1),
        "lost": len(acks_s) - said,
    }


def _all(loads: Sequence[LineProcess], **what: object) -> list[dict[str, Any]]:
    for load in loads:
        load.send(**what)
    return [load.answer() for load in loads]


def _cpu_s(watched: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return how much CPU time each of these groups of processes has used."""
    return {
        name: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)
        for name, pids in watched.items()
    }
