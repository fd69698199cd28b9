"""The console's WebSocket as the page's script uses it, without the page."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.sidecar_process import SidecarProcess


class Page:
    """What the page's script does, without the page."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.frames: list[dict[str, Any]] = []

    def send(self, **frame: object) -> None:
        self._socket.send(json.dumps(frame))

    def until(self, kind: str, *, within_s: float = 20.0, **fields: object) -> dict[str, Any]:
        """Receive until a frame of this type and these values."""
        deadline = time.monotonic() + within_s
        while True:
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind} {fields}"
            frame = json.loads(self._socket.recv(timeout=left))
            self.frames.append(frame)
            if frame["type"] == kind and all(frame.get(k) == v for k, v in fields.items()):
                return frame

    def call(self, caller: str) -> None:
        self.send(type="call.start", caller=caller)
        self.until("call", live=True)

    def say(self, text: str) -> str:
        """Say something and return the whole reply."""
        self.send(type="say", text=text)
        self.frames.clear()
        self.until("reply.end")
        return "".join(f["text"] for f in self.frames if f["type"] == "reply.delta")

    def hang_up(self) -> None:
        self.send(type="call.end")
        self.until("call", live=False)


@contextmanager
def opened(sidecar: SidecarProcess, *, token: str | None = None) -> Iterator[Page]:
    here = f"127.0.0.1:{sidecar.port}"
    with connect(f"ws://{here}/console/ws", origin=f"http://{here}") as websocket:  # type: ignore[arg-type]
        page = Page(websocket)
        page.send(type="hello", token=sidecar.token if token is None else token)
        yield page
