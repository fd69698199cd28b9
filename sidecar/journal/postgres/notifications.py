"""Tells other replicas what was committed, so that nobody has to look for it all the time.

A notification without words says that something may be due earlier; one of `REPLICA LANE` says that
Letta has digested more of a lane. It may be lost: whoever waits has to look from time to time.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg

from sidecar.journal.postgres.connection import Connection, connect, cut
from sidecar.journal.sql.transaction import Transaction

CHANNEL: Final = "letta_voice_sidecar"
WAKE: Final = f"NOTIFY {CHANNEL}"
_LISTEN: Final = f"LISTEN {CHANNEL}"
_AGAIN_S: Final = 2.0
_LOOK_S: Final = 30.0
"""How long to listen before the connection is asked whether it is there."""


def tell_digested(tx: Transaction, *, replica: str) -> None:
    """Have the commit tell the others what `replica` has settled in this transaction."""
    for lane in dict.fromkeys(tx.digested):
        tx.rows("SELECT pg_notify(?, ?)", CHANNEL, f"{replica} {lane}")


class Notifications:
    """A thread with a connection of its own, on which notifications come.

    Behind a pooler none would come, since a transaction pooler gives each transaction another
    session: the thread then ends.

    Args:
        url: Of the database.
        woken: Called on the loop when another replica, or this one, has made something due earlier,
            and when a connection has been made, since something may have been missed.
        digested: Called on the loop with a replica's name and the lane of what it has settled.
    """

    def __init__(
        self, url: str, *, woken: Callable[[], None], digested: Callable[[str, str], None]
    ) -> None:
        self._url = url
        self._woken = woken
        self._digested = digested
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="journal-notifications", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and return when it has ended."""
        self._stopping.set()
        if (connection := self._connection) is not None:
            cut(connection)
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(psycopg.Error), connect(self._url) as connection:
                self._connection = connection
                if _is_pooled(connection):
                    return
                self._listen(connection)
            self._stopping.wait(_AGAIN_S)

    def _listen(self, connection: Connection) -> None:
        connection.execute(_LISTEN)
        self._tell("")
        while not self._stopping.is_set():
            for notification in connection.notifies(timeout=_LOOK_S, stop_after=1):
                self._tell(notification.payload)
            connection.execute("SELECT 1")

    def _tell(self, words: str) -> None:
        replica, _, lane = words.partition(" ")
        with suppress(RuntimeError):  # the loop is closed
            if lane:
                self._loop.call_soon_threadsafe(self._digested, replica, lane)
            else:
                self._loop.call_soon_threadsafe(self._woken)


def _is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands between: it names a session of its own invention."""
    ((pid,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
    return pid != connection.info.backend_pid
