r"""Create or update the assistant of assistant.json through VAPI's API.

    VAPI_API_KEY=… SIDECAR_VAPI_KEY=… SIDECAR_VAPI_SECRET=… \
        python examples/vapi/assistant.py https://your-tunnel.example

Creates the two credentials the first time (the key of the model endpoint, the secret of the
server URL), then the assistant, and remembers their ids in `.vapi.json` beside this file; run it
again after every change of the file or of the tunnel. Standard library only.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
API = os.environ.get("VAPI_API_URL", "").strip() or "https://api.vapi.ai"
TIMEOUT_S = 20.0


def call(method: str, path: str, body: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Call VAPI's API and return its answer.

    Raises:
        SystemExit: VAPI refused; its message says why.
    """
    request = urllib.request.Request(  # noqa: S310 - VAPI's own address, or a test's
        f"{API}{path}",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return dict(json.loads(answer.read()))
    except urllib.error.HTTPError as error:
        with error:
            sys.exit(f"VAPI answered {error.code}: {error.read().decode(errors='replace')[:500]}")


def filled(base: str, credentials: Mapping[str, str]) -> dict[str, Any]:
    """Return the assistant with the sidecar's address and the credentials in it."""
    text = (HERE / "assistant.json").read_text(encoding="utf-8")
    assistant: dict[str, Any] = json.loads(text.replace("https://YOUR-TUNNEL", base.rstrip("/")))
    assistant["server"]["credentialId"] = credentials["server"]
    for tool in assistant["model"]["tools"]:
        tool["server"]["credentialId"] = credentials["server"]
    assistant["credentialIds"] = [credentials["model"]]
    return assistant


def main() -> None:
    """Create or update."""
    missing = [
        name
        for name in ("VAPI_API_KEY", "SIDECAR_VAPI_KEY", "SIDECAR_VAPI_SECRET")
        if not os.environ.get(name, "").strip()
    ]
    if missing or len(sys.argv) != 2 or not sys.argv[1].startswith("https://"):  # noqa: PLR2004
        sys.exit(f"set {', '.join(missing) or 'all three keys'} and name the public https address")
    key = os.environ["VAPI_API_KEY"].strip()
    remembered = HERE / ".vapi.json"
    ids: dict[str, str] = json.loads(remembered.read_text()) if remembered.exists() else {}
    if "model" not in ids:
        value = os.environ["SIDECAR_VAPI_KEY"].partition(",")[0].strip()
        made = call("POST", "/credential", {"provider": "custom-llm", "apiKey": value}, key)
        ids["model"] = made["id"]
    if "server" not in ids:
        plan = {
            "type": "bearer",
            "token": os.environ["SIDECAR_VAPI_SECRET"].partition(",")[0].strip(),
        }
        body = {"provider": "webhook", "name": "sidecar", "authenticationPlan": plan}
        ids["server"] = call("POST", "/credential", body, key)["id"]
    remembered.write_text(json.dumps(ids))
    assistant = filled(sys.argv[1], ids)
    if "assistant" in ids:
        call("PATCH", f"/assistant/{ids['assistant']}", assistant, key)
    else:
        ids["assistant"] = call("POST", "/assistant", assistant, key)["id"]
        remembered.write_text(json.dumps(ids))
    sys.stdout.write(f"assistant {ids['assistant']}\n")


if __name__ == "__main__":
    main()
