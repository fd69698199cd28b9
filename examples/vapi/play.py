"""Play a recorded VAPI call against a running sidecar.

    python examples/vapi/play.py examples/vapi/calls/first-call.json --url http://127.0.0.1:8377

A recorded call is a JSON object: `call` (VAPI's call object), and `steps`, each with `at_s` from
the start of the call and either `chat` (the `messages` of a model request, which VAPI closes
`hang_up_s` after it was sent if that is given) or `webhook` (the `message` of a server message).
The player adds what VAPI adds to each body. Standard library only.
"""

import argparse
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 30.0


@dataclass
class Heard:
    """What came back for one step.

    Attributes:
        step: Its number, from 0.
        status: HTTP status; 0 if VAPI hung up or nothing answered.
        text: What the caller would hear.
        answer: A webhook's answer.
        first_s: Seconds to the first word.
        took_s: Seconds in all.
    """

    step: int
    status: int = 0
    text: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict[str, Any])
    first_s: float | None = None
    took_s: float = 0.0


class Player:
    """Plays the steps of a call.

    Args:
        url: Of the sidecar.
        key: SIDECAR_VAPI_KEY, or the token that the sidecar has made if none is set.
        secret: SIDECAR_VAPI_SECRET, or that token if none is set.
        speed: 2 plays twice as fast; 0 leaves the pauses out.
        say: Called with a line of text for people.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        secret: str = "",
        speed: float = 1.0,
        say: Callable[[str], None] = print,
    ) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._key = key
        self._secret = secret
        self._speed = speed
        self._say = say

    def play(self, recorded: Mapping[str, Any], *, call_id: str = "") -> list[Heard]:
        """Play a call; a request that VAPI will close runs while the next steps are played.

        Args:
            recorded: The call as in its file.
            call_id: Replaces the recorded id, so that a call can be played twice.
        """
        call = {**recorded["call"]} | ({"id": call_id} if call_id else {})
        began_s = time.monotonic()
        heard: list[Heard] = []
        beside: list[threading.Thread] = []
        for number, step in enumerate(recorded["steps"]):
            if self._speed:
                due_s = began_s + float(step.get("at_s", 0)) / self._speed
                threading.Event().wait(max(0.0, due_s - time.monotonic()))
            result = Heard(number)
            heard.append(result)
            act = self._chat if "chat" in step else self._webhook
            if step.get("hang_up_s") is not None and self._speed:
                thread = threading.Thread(target=act, args=(call, step, result), daemon=True)
                thread.start()
                beside.append(thread)
            else:
                act(call, step, result)
        for thread in beside:
            thread.join(TIMEOUT_S)
        return heard

    def _common(self, call: Mapping[str, Any]) -> dict[str, Any]:
        common: dict[str, Any] = {"call": call, "timestamp": int(time.time() * 1_000)}
        if "customer" in call:
            common["customer"] = call["customer"]
        return common

    def _chat(self, call: Mapping[str, Any], step: Mapping[str, Any], result: Heard) -> None:
        body = {
            "model": "gpt-4o-mini",
            "temperature": 0.5,
            "max_tokens": 250,
            "stream": True,
            "messages": step["chat"],
            "metadata": {"numAssistantTurns": 0, "numUserTurns": 0},
            **self._common(call),
        }
        began_s = time.monotonic()
        connection = self._post("/vapi/chat/completions", body, self._key)
        try:
            response = connection.getresponse()
            hang_up_s = step.get("hang_up_s")
            for raw in response:
                if hang_up_s is not None and time.monotonic() - began_s >= hang_up_s:
                    self._say("  VAPI     hung up on that request")
                    return
                piece = _spoken(raw)
                if piece and result.first_s is None:
                    result.first_s = time.monotonic() - began_s
                result.text += piece
            result.status = response.status
        finally:
            result.took_s = time.monotonic() - began_s
            connection.close()
        first_ms = f"{result.first_s * 1e3:.0f} ms" if result.first_s is not None else "silence"
        self._say(f"  hears    {result.text or '(nothing)'}   [{first_ms}]")

    def _webhook(self, call: Mapping[str, Any], step: Mapping[str, Any], result: Heard) -> None:
        message = {**self._common(call), **step["webhook"]}
        began_s = time.monotonic()
        connection = self._post("/vapi/webhook", {"message": message}, self._secret)
        try:
            response = connection.getresponse()
            result.answer = json.loads(response.read() or b"{}")
            result.status = response.status
        finally:
            result.took_s = time.monotonic() - began_s
            connection.close()
        shown = json.dumps(result.answer, ensure_ascii=False) if result.answer else "ok"
        self._say(f"  webhook  {message['type']}: {shown[:300]}   [{result.took_s * 1e3:.0f} ms]")

    def _post(self, path: str, body: Mapping[str, Any], token: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        connection.request("POST", path, json.dumps(body).encode(), headers)
        return connection


def _spoken(line: bytes) -> str:
    if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
        return ""
    choices: list[dict[str, Any]] = json.loads(line[5:]).get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or ""


def made_token() -> str:
    """Return the token that this user's sidecar made at its first start; empty without one."""
    state = os.environ.get("XDG_STATE_HOME", "").strip() or "~/.local/state"
    directory = os.environ.get("SIDECAR_DATA_DIR", "").strip() or f"{state}/letta-sidecar"
    try:
        return (Path(directory).expanduser() / "link-token").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def main() -> None:
    """Play the call named on the command line."""
    parser = argparse.ArgumentParser(description="Play a recorded VAPI call against a sidecar.")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8377")
    parser.add_argument("--call-id", default="")
    parser.add_argument("--speed", type=float, default=1.0)
    asked = parser.parse_args()
    player = Player(
        asked.url,
        key=os.environ.get("SIDECAR_VAPI_KEY", "").partition(",")[0].strip() or made_token(),
        secret=os.environ.get("SIDECAR_VAPI_SECRET", "").partition(",")[0].strip() or made_token(),
        speed=asked.speed,
    )
    recorded = json.loads(asked.recording.read_text(encoding="utf-8"))
    player.play(recorded, call_id=asked.call_id)


if __name__ == "__main__":
    main()
