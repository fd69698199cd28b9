"""Tells other replicas what was committed, so that nobody has to look for it all the time.

One of `NONCE`, a replica's nonce, says that something may be due earlier; one of `NONCE LANE`, with
a lane's row, that Letta has digested more of that lane. Whoever may connect to the database can
hear them, so they name nobody. They may be lost: whoever waits has to look from time to time.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, LiteralString, cast

import psycopg

from sidecar.journal.postgres.connection import Connection, connect, cut
from sidecar.journal.sql.transaction import Transaction

CHANNEL: Final = "letta_voice_sidecar"
_LISTEN: Final = f"LISTEN {CHANNEL}"
_AGAIN_S: Final = 2.0
_CUT_AGAIN_S: Final = 0.2
_STOP_S: Final = 15.0
_LOOK_S: Final = 30.0
"""How long to listen before the connection is asked whether it is there."""


def wake_and_commit(replica: str) -> LiteralString:
    """Return what commits, and says that the replica of this nonce has made something due."""
    assert replica.isalnum()
    return cast("LiteralString", f"NOTIFY {CHANNEL}, '{replica}'; COMMIT")


def tell_digested(tx: Transaction, *, replica: str) -> None:
    """Have the commit say what the replica of this nonce has settled in this transaction."""
    for lane in dict.fromkeys(tx.digested):
        tx.rows("SELECT pg_notify(?, ?)", CHANNEL, f"{replica} {lane}")


class Notifications:
    """A thread with a connection of its own, on which notifications come.

    Behind a pooler none would come, since a transaction pooler gives each transaction another
    session: the thread then ends.

    Args:
        url: Of the database.
        woken: Called on the loop with the nonce of a replica that has made something due earlier;
            with none when a connection has been made, since something may have been missed.
        digested: Called on the loop with a replica's nonce and the lane of what it has settled.
    """

    def __init__(
        self, url: str, *, woken: Callable[[str], None], digested: Callable[[str, int], None]
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
        """End the thread; return when it has ended, or has not within `_STOP_S`."""
        self._stopping.set()
        began_s = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - began_s < _STOP_S:
            if (connection := self._connection) is not None:
                cut(connection)  # again, as another one may have been made meanwhile
            self._thread.join(_CUT_AGAIN_S)

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
            if lane.isdecimal():
                self._loop.call_soon_threadsafe(self._digested, replica, int(lane))
            else:
                self._loop.call_soon_threadsafe(self._woken, replica)


def _is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands between: it names a session of its own invention."""
    ((pid,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
    return pid != connection.info.backend_pid
