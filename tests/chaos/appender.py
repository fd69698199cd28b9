"""A process that appends turns and prints which are acked, until it is killed.

usage: appender.py JOURNAL FIRST

Prints one number per line, each once its turn was acked. Turns go to calls by `n % 7`, in order.
"""

import sys
from pathlib import Path

import anyio

from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.model import AgentRef, Call, Turn

CALLS = 7
AT_ONCE = 20


async def main(path: Path, first: int) -> None:
    journal = await SqliteJournal.open(path, policy=PostPolicy(max_turns=20, max_age_s=60.0))
    for n in range(CALLS):
        await journal.open_call(Call(f"acme/{n}", AgentRef("acme", agent_id="a"), "vapi", "", 0.0))

    async def append(n: int) -> None:
        await journal.append([Turn(f"acme/{n % CALLS}", str(n), n, "caller", f"turn {n}", 0.0)])
        print(n, flush=True)

    n = first
    while True:
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(append, n)
                n += 1


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
