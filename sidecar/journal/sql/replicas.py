"""Which sidecars use this journal, and what of it each of them has taken.

A *replica* is one run of a sidecar; its name is never used again. A live call and a lane under way
each belong to a replica. Each taking raises the `epoch` of what is taken, and what was taken is
changed only by its own replica at that epoch. What belongs to no replica that is there is free.
"""

import os
import socket
import uuid

from sidecar.errors import TakenOver
from sidecar.journal.sql.transaction import Transaction

# The replicas that are there. What belongs to another name, or to none, is free.
THERE = "(SELECT name FROM replicas)"


def new_name() -> str:
    """Return a name for this run of a sidecar."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def enter(tx: Transaction, name: str, *, now_s: float) -> None:
    """Enter a replica beside those that are there."""
    tx.run("INSERT INTO replicas(name, entered_s) VALUES (?, ?)", name, now_s)


def count(tx: Transaction) -> int:
    """Return how many replicas are there."""
    return int(tx.rows("SELECT count(*) FROM replicas")[0][0])


def enter_alone(tx: Transaction, name: str, *, now_s: float) -> None:
    """Enter a replica where no other can be: the engine has locked them out, so they are gone."""
    tx.run("DELETE FROM replicas")
    enter(tx, name, now_s=now_s)


def require_lane(tx: Transaction, lane: int, *, replica: str, epoch: int) -> None:
    """Check that a lane is as it was when it was claimed.

    Raises:
        TakenOver: another claim has it.
    """
    row = tx.row("SELECT replica, epoch FROM lanes WHERE id = ?", lane)
    if row != (replica, epoch):
        raise TakenOver("another replica has claimed this lane since")


def require_call(tx: Transaction, row_id: int, *, replica: str, epoch: int) -> None:
    """Check that a call is as it was when it was opened.

    Raises:
        TakenOver: it was opened elsewhere since.
    """
    row = tx.row("SELECT replica, epoch FROM calls WHERE id = ?", row_id)
    if row != (replica, epoch):
        raise TakenOver("another replica has opened this call since")
