"""The same as `vapi`, with the LiteLLM proxy as one more way to the model.

It runs with its defaults and one worker, from its own virtual environment (`make bench-litellm`),
never in this process. If it is not installed, the part says so and measures nothing.
"""

import os
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio.to_thread
import psutil

from benchmarks.figures import Figures
from benchmarks.vapi import QUICK_ROUNDS, ROUNDS, Way, opened
from tests.sidecar_process import eventually

PROXY = Path(__file__).parents[1] / ".litellm-venv" / "bin" / "litellm"
START_S = 120.0
_CONFIG = """\
model_list:
  - model_name: demo
    litellm_params:
      model: openai/demo
      api_base: {model_url}/v1
      api_key: none
"""


async def measure(quick: bool) -> Figures:
    """Return the figures of `vapi`, and `litellm_ttft_ratio_…` as well."""
    if not PROXY.exists():
        return {"skipped": "LiteLLM is not installed: make bench-litellm"}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stage = await anyio.to_thread.run_sync(opened, stack, directory)
        way = await anyio.to_thread.run_sync(_litellm, stack, directory, stage.model.url)
        stage.ways["litellm"] = way
        return await stage.measured(QUICK_ROUNDS if quick else ROUNDS)


def _litellm(stack: ExitStack, directory: Path, model_url: str) -> Way:
    config = directory / "litellm.yaml"
    config.write_text(_CONFIG.format(model_url=model_url))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [str(PROXY), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--keepalive_timeout", "120"]  # as ours, so that no connection is closed early
    env = os.environ | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no download
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    with (directory / "litellm.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=directory, stdout=log, stderr=log)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)

    def up() -> bool:
        assert process.poll() is None, (directory / "litellm.log").read_text()[-2_000:]
        with suppress(urllib.error.URLError, OSError):
            url = f"http://127.0.0.1:{port}/health/liveliness"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status == 200
        return False

    eventually(up, within_s=START_S)
    return Way(f"http://127.0.0.1:{port}/v1/chat/completions", psutil.Process(process.pid))
