"""A full disk, on a separate file system; run inside a mount namespace.

usage: full_disk.py DIRECTORY

Mounts a small tmpfs on DIRECTORY, fills it with turns, and prints what happened as JSON.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import anyio

from sidecar.errors import JournalFull
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.model import AgentRef, Call, Turn

DISK_BYTES = 24 << 20
BALLAST_BYTES = 8 << 20
TEXT = "said and never to be lost " * 160
POLICY = PostPolicy(max_turns=4, max_age_s=60.0, batch_turns=4)


async def fill(journal: SqliteJournal, acked: list[int]) -> int:
    """Append until the disk is full; returns the number of the refused turn."""
    n = len(acked)
    while True:
        try:
            await journal.append([Turn(f"acme/{n % 50}", str(n), n, "caller", f"{n} {TEXT}", 0.0)])
        except JournalFull:
            return n
        acked.append(n)
        n += 1


async def main(directory: Path) -> None:
    subprocess.run(  # noqa: ASYNC221 - nothing else runs yet
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(directory)], check=True
    )
    path = directory / "data" / "journal.db"
    ballast = directory / "ballast"
    ballast.write_bytes(b"x" * BALLAST_BYTES)
    journal = await SqliteJournal.open(path, policy=POLICY)
    for n in range(50):
        ref = AgentRef("acme", agent_id=f"agent-{n}")
        await journal.open_call(Call(f"acme/{n}", ref, "livekit", "k", 0.0))
    acked: list[int] = []
    await fill(journal, acked)
    found: dict[str, object] = {"acked_when_full": len(acked), "has_room": journal.has_room}

    async def deliver_all() -> int:
        settled = 0
        while batches := await journal.claim(50, now_s=time.time(), post_timeout_s=9.0):
            for batch in batches:
                await journal.settle(batch, now_s=time.time())
                settled += len(batch.turns)
        return settled

    found["settled_while_full"] = await deliver_all()
    refusals = 0
    for _ in range(20):
        try:
            await journal.append([Turn("acme/1", "refused", 1, "caller", TEXT, 0.0)])
        except JournalFull:
            refusals += 1
    found["refused_while_full"] = refusals
    found["has_room_after_settling"] = journal.has_room
    await anyio.Path(ballast).unlink()
    with anyio.fail_after(10):
        while True:
            try:
                await journal.append([Turn("acme/0", "after", 1, "caller", "back again", 0.0)])
                break
            except JournalFull:
                await anyio.sleep(0.1)
    found["has_room_at_last"] = journal.has_room
    counts = await journal.counts()
    found["stored"] = counts.turns
    found["acked"] = len(acked) + 1
    await journal.aclose()
    again = await SqliteJournal.open(path, policy=POLICY)
    stored = {
        int(t.item_id)
        for n in range(50)
        for t in await again.turns(f"acme/{n}")
        if t.item_id.isdigit()
    }
    found["missing_after_reopen"] = len(set(acked) - stored)
    found["never_acked_after_reopen"] = len(stored - set(acked))
    await again.aclose()
    print(json.dumps(found))


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]))
