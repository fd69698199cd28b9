"""Connections to a PostgreSQL database, and how one that does not answer is ended."""

import os
import socket
from contextlib import suppress
from typing import Any, Final

import psycopg

CONNECT_S: Final = 5
STATEMENT_S: Final = 10
"""How long the server works on one statement before it gives up."""
IDLE_S: Final = 2
"""How long a process that is frozen within a transaction makes all others wait."""
_PEER_GONE_MS: Final = 10_000

Connection = psycopg.Connection[tuple[Any, ...]]


def connect(url: str) -> Connection:
    """Connect to the database of `url`, each statement its own transaction.

    Blocking, for at most `CONNECT_S` per host. Nothing that a session remembers is relied on, since
    a transaction pooler gives each transaction another session.

    Raises:
        psycopg.Error: it can't; `faults.journal_error` says what that means.
    """
    return psycopg.connect(
        url,
        autocommit=True,
        connect_timeout=CONNECT_S,
        prepare_threshold=None,
        application_name="letta-voice-sidecar",
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=_PEER_GONE_MS,
    )


def cut(connection: Connection) -> None:
    """End a connection from another thread: what waits for its answer fails at once."""
    with (
        suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as beside,
    ):
        beside.shutdown(socket.SHUT_RDWR)
