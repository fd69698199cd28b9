"""Ports of this machine for servers that need to know their port in advance."""

import random
import socket

_FROM, _BELOW = 10_000, 32_000  # below the ports that the kernel gives to outgoing connections
_dice = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on.

    They stay free until they are used: no outgoing connection takes one in between, and two
    processes that call this at the same time get the same port only once in ten thousand times.
    """
    ports: set[int] = set()
    while len(ports) < count:
        port = _dice.randrange(_FROM, _BELOW)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.add(port)
    return list(ports)


def free_port() -> int:
    """Return one such port."""
    return free_ports(1)[0]
