"""The console's WebSocket as the page's script uses it, without the page."""

import json
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.sidecar_process import SidecarProcess


class Page:
    """What the page's script does, without the page."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._call = ""
        self._open: list[str] = []
        self.frames: list[dict[str, Any]] = []

    def send(self, **frame: object) -> None:
        self._socket.send(json.dumps(frame))

    def until(self, kind: str, *, within_s: float = 60.0, **fields: object) -> dict[str, Any]:
        """Receive until a frame of this type and these values."""
        deadline = time.monotonic() + within_s
        while True:
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind} {fields}"
            frame = json.loads(self._socket.recv(timeout=left))
            self.frames.append(frame)
            if frame["type"] == kind and all(frame.get(k) == v for k, v in fields.items()):
                return frame

    def dial(self, caller: str) -> None:
        """Open a call without waiting."""
        self._call = f"default/console-{uuid.uuid4()}"
        self.send(type="call.start", call=self._call, caller=caller)

    def call(self, caller: str) -> str:
        """Open a call and return its key."""
        self.dial(caller)
        self.until("call", live=True)
        self._open.append(self._call)
        return self._call

    def hang_up_all(self) -> None:
        """End every call that was opened."""
        for call in self._open:
            self.send(type="call.end", call=call)
            self.until("call", call=call, live=False)
        self._open.clear()

    def resume(self, call: str, caller: str) -> dict[str, Any]:
        """Take a call up again, and return the sidecar's answer."""
        self._call = call
        self.send(type="call.start", call=call, caller=caller)
        return self.until("call", live=True)

    def say(self, text: str, *, turn: str = "", aloud: bool = False) -> str:
        """Say something and return the whole reply."""
        self.begin_saying(text, turn=turn, aloud=aloud)
        return str(self.until("reply.end")["text"])

    def begin_saying(self, text: str, *, turn: str = "", aloud: bool = False) -> str:
        """Say something, and return its id."""
        turn = turn or str(uuid.uuid4())
        self.frames.clear()
        self.send(type="say", call=self._call, turn=turn, text=text, aloud=aloud)
        return turn

    def hang_up(self) -> None:
        self.send(type="call.end", call=self._call)
        self.until("call", live=False)


@contextmanager
def opened(sidecar: SidecarProcess, *, token: str | None = None) -> Generator[Page]:
    here = f"127.0.0.1:{sidecar.port}"
    origin = f"http://{here}"
    with connect(f"ws://{here}/console/ws", origin=origin) as websocket:  # type: ignore[arg-type]
        page = Page(websocket)
        page.send(type="hello", token=sidecar.token if token is None else token)
        yield page
