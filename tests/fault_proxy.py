"""A network between two programs of this machine that fails when a test says so."""

import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Final, Self

_CHUNK: Final = 65_536
_JOIN_S: Final = 30.0


class FaultProxy:
    """Passes connections on to ports of 127.0.0.1, from one of its own.

    Args:
        target_ports: Each connection goes to the next of them that takes one.

    Attributes:
        port: Where it listens.
        accepted: How many connections were made to it.
        lost: How many times it has lost what `lose` or `lose_answer_to` told it to.
    """

    def __init__(self, *target_ports: int) -> None:
        self._targets = deque(target_ports)
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._is_open = True
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._to_lose: tuple[bytes, bool] | None = None
        self.lost = 0
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.resume()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._end_all()
        for thread in self._threads:
            thread.join(_JOIN_S)
        for end in self._ends:
            end.close()

    def hold(self) -> None:
        """Pass nothing on, and end no connection: the database seems to have stopped."""
        self._flowing.clear()

    def cut(self) -> None:
        """End all connections, and every new one at once."""
        self._is_open = False
        self._end_all()

    def resume(self) -> None:
        """Pass everything on again."""
        self._is_open = True
        self._flowing.set()

    def lose(self, words: bytes) -> None:
        """End the next connection over which these words go, before they arrive."""
        self._to_lose = (words, False)

    def lose_answer_to(self, words: bytes) -> None:
        """End the next connection over which these words go, after they have arrived."""
        self._to_lose = (words, True)

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            server = self._connected()
            if server is None:
                client.close()
                continue
            with self._lock:
                self._ends += client, server
            if not self._is_open:
                _end(client)
                _end(server)
                continue
            self._start(partial(self._pass, client, server, asks=True))
            self._start(partial(self._pass, server, client, asks=False))

    def _connected(self) -> socket.socket | None:
        for _ in range(len(self._targets)):
            self._targets.rotate(-1)
            with suppress(OSError):
                return socket.create_connection(("127.0.0.1", self._targets[-1]))
        return None

    def _pass(self, source: socket.socket, target: socket.socket, *, asks: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                self._flowing.wait()
                if asks and self._loses(data):
                    self._lose_now(data, source, target)
                    break
                target.sendall(data)
        _end(source)
        _end(target)

    def _loses(self, data: bytes) -> bool:
        return self._to_lose is not None and self._to_lose[0] in data

    def _lose_now(self, data: bytes, client: socket.socket, server: socket.socket) -> None:
        assert self._to_lose is not None
        _, arrive = self._to_lose
        self._to_lose = None
        self.lost += 1
        _end(client)
        if arrive:  # what is in the server's buffer is read, though its client is gone
            server.sendall(data)

    def _end_all(self) -> None:
        with self._lock:
            for end in self._ends:
                _end(end)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
