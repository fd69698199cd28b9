"""`sidecar ready`, as health checks run it."""

import json
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typing_extensions import override

from tests.e2e.test_link_server import worker
from tests.sidecar_process import SidecarProcess, eventually, sidecar_command

pytestmark = pytest.mark.e2e


def ready(data_dir: Path, *options: str) -> tuple[int, str]:
    """The exit code and the output of `sidecar ready`."""
    done = sidecar_command("ready", *options, env=os.environ | {"SIDECAR_DATA_DIR": str(data_dir)})
    return done.returncode, done.stdout + done.stderr


def test_ready_follows_the_sidecar(tmp_path: Path) -> None:
    """It exits with 0 while calls are taken, and else with 1 and the reason."""
    data = tmp_path / "data"
    code, said = ready(data)
    assert code == 1
    assert "no sidecar answers" in said
    with SidecarProcess(data) as sidecar:
        assert ready(data) == (0, "ready\n")
        assert json.loads(ready(data, "--json")[1])["ready"] is True
        with worker(sidecar) as peer:
            peer.open("c-live", identity="ada")
            peer.until("memory")
            sidecar.terminate()
            peer.until("drain")
            assert ready(data) == (1, "not ready: draining\n")
        sidecar.kill()
        code, said = ready(data)
        assert code == 1
        assert "no sidecar answers" in said


@contextmanager
def login_page() -> Generator[str]:
    """A proxy that answers everything with 200 and its login page; yields its URL."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            page = b"<html><body>Please log in</body></html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        do_POST = do_GET  # noqa: N815 - the name that http.server looks for

        @override
        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_login_page_in_lettas_place_is_told(tmp_path: Path) -> None:
    """Behind a proxy that answers 200 for Letta, `/readyz` says degraded, and calls go on."""
    with (
        login_page() as url,
        SidecarProcess(tmp_path, {"SIDECAR_LETTA": "auto", "LETTA_BASE_URL": url}) as sidecar,
        worker(sidecar) as peer,
    ):
        peer.open("c-live", identity="ada")
        peer.turn("c-live", "i1")
        peer.until("ack")
        eventually(lambda: sidecar.readiness()["letta"] == "degraded")
        peer.send(type="call.close", call="c-live", at_s=2.0)
        peer.until("ack")
        eventually(lambda: sidecar.readiness()["letta"] == "degraded")
        assert sidecar.readiness()["ready"] is True
        assert sidecar.undelivered() == 1
