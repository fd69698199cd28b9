"""Debian's Chromium, headless, driven over its DevTools protocol, without a driver or library.

A test acts on a page as a person does, with the mouse and the keyboard, and on visible elements. It
reads what the page shows.
"""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.sidecar_process import eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
START_S = 30.0
ANSWER_S = 30.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--disable-features=SpareRendererForSitePerProcess",  # a process ahead of need
    "--remote-debugging-port=0",
)
KEYS = {"Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, ""), " ": ("Space", 32, " ")}


class Tab:
    """One page in its own browser context."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self._socket = socket
        self._session = session
        self._id = 0
        self.faults: list[str] = []
        """Uncaught exceptions, and errors that were logged."""
        self.asked: list[str] = []
        """The addresses of all requests and sockets."""

    def command(self, method: str, **params: object) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        self._id += 1
        frame = {"id": self._id, "method": method, "params": params, "sessionId": self._session}
        self._socket.send(json.dumps(frame))
        while True:
            answer = json.loads(self._socket.recv(timeout=ANSWER_S))
            self._note(answer)
            if answer.get("id") == self._id and answer.get("sessionId") == self._session:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])

    def open(self, url: str) -> None:
        """Go to an address."""
        self.command("Page.navigate", url=url)

    def read(self, expression: str) -> Any:
        """Return the value of an expression in the page; promises are awaited."""
        answer = self.command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, (expression, answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, expression: str, *, within_s: float = 60.0) -> Any:
        """Return the expression's value once it is true."""
        deadline = time.monotonic() + within_s
        while not (value := self.read(expression)):
            assert time.monotonic() < deadline, f"not within {within_s:g} s: {expression}\n" + str(
                self.read("document.body.innerText")
            )
            self.command("Runtime.evaluate", expression=_PAUSE, awaitPromise=True)
        return value

    def shows(self, text: str, *, within: str = "body", within_s: float = 60.0) -> None:
        """Wait until a part of the page shows a text."""
        self.until(
            f"(document.querySelector({json.dumps(within)})?.innerText ?? '')"
            f".includes({json.dumps(text)})",
            within_s=within_s,
        )

    def says(self, text: str, *, within: str, within_s: float = 60.0) -> None:
        """Wait until a part of the page shows exactly this text, as another may contain it."""
        self.until(
            f"document.querySelector({json.dumps(within)})?.innerText.trim()"
            f" === {json.dumps(text)}",
            within_s=within_s,
        )

    def click(self, selector: str, *, text: str = "") -> None:
        """Click the element that matches the selector and text, once it is visible and enabled."""
        finder = (
            f"[...document.querySelectorAll({json.dumps(selector)})].find((e) => !e.disabled"
            f" && e.innerText.includes({json.dumps(text)}) && e.getClientRects().length)"
        )
        self.until(f"Boolean({finder})")
        where = self.read(
            f"(() => {{ const e = {finder}; e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.command(
                "Input.dispatchMouseEvent",
                type=kind,
                x=where[0],
                y=where[1],
                button="left",
                clickCount=1,
            )

    def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.command("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key."""
        code, number, char = KEYS[key]
        down = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.command(
            "Input.dispatchKeyEvent", type="keyDown", **down, **({"text": char} if char else {})
        )
        self.command("Input.dispatchKeyEvent", type="keyUp", **down)

    def look(self, *, width: int = 1280, height: int = 860, dark: bool = False) -> None:
        """Give the page a size and a colour scheme."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.command("Emulation.setEmulatedMedia", features=[scheme, motion])

    def close(self) -> None:
        """Close the page."""
        self.open("about:blank")

    def save_picture(self, path: Path) -> None:
        """Save a picture of what is visible."""
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = self.command("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.faults.append(json.dumps(params["exceptionDetails"])[:2_000])
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.faults.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])
            case "Network.webSocketCreated":
                self.asked.append(params["url"])
            case _:
                pass


_PAUSE = "new Promise((done) => setTimeout(done, 40))"


class Browser:
    """A running Chromium."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    def tab(self, *, before: str = "") -> Tab:
        """Open an empty page in a new browser context.

        Args:
            before: A script that runs before the scripts of each page that is opened.
        """
        command = self._command
        context = command("Target.createBrowserContext")["browserContextId"]
        target = command("Target.createTarget", url="about:blank", browserContextId=context)
        session = command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        tab = Tab(self._socket, session["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.command(f"{domain}.enable")
        if before:
            tab.command("Page.addScriptToEvaluateOnNewDocument", source=before)
        tab.look()
        return tab

    def _command(self, method: str, **params: object) -> dict[str, Any]:
        self._socket.send(json.dumps({"id": 1, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=ANSWER_S))
            if answer.get("id") == 1 and "sessionId" not in answer:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])


@contextmanager
def chromium() -> Generator[Browser]:
    """Start Chromium with an empty profile, and stop it at the end."""
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium: `make debian` installs it")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_address(Path(profile)), max_size=None, ping_interval=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10.0)


def _address(profile: Path) -> str:
    """Return the address that Chromium listens on, from the file that it writes."""
    written = profile / "DevToolsActivePort"
    eventually(lambda: written.exists() and written.read_text().count("\n") == 1, within_s=START_S)
    port, path = written.read_text().splitlines()
    return f"ws://127.0.0.1:{port}{path}"
