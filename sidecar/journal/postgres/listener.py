"""Listens to what other replicas commit, so that nobody has to look for it all the time."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg

from sidecar.journal.postgres.connection import Connection, connect, cut

CHANNEL: Final = "letta_voice_sidecar"
_LISTEN: Final = f"LISTEN {CHANNEL}"
_AGAIN_S: Final = 2.0
_LOOK_S: Final = 30.0
"""How long to listen before the connection is asked whether it is there."""


class Listener:
    """A thread with a connection of its own, on which notifications come.

    Behind a pooler none would come: a transaction pooler gives each transaction another session. It
    then ends, and whoever waits has to look from time to time, as after a notification was lost.

    Args:
        url: Of the database.
        heard: Called on the loop when another replica, or this one, has made something due earlier,
            and when a connection has been made, since something may have been missed.
    """

    def __init__(self, url: str, *, heard: Callable[[], None]) -> None:
        self._url = url
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="journal-listener", daemon=True)
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
        self._tell()
        while not self._stopping.is_set():
            for _ in connection.notifies(timeout=_LOOK_S, stop_after=1):
                self._tell()
            connection.execute("SELECT 1")

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._heard)


def _is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands between: it names a session of its own invention."""
    ((pid,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
    return pid != connection.info.backend_pid
