"""The environment variables of the worker; the sidecar's are `environment_names()`."""

import ast
import re
from collections.abc import Iterator
from functools import cache

from tests.documents import ROOT

OURS = r"(?:SIDECAR|LETTA|LLM|OPENAI|LIVEKIT|VOICE)_[A-Z0-9_]*[A-Z0-9]"
"""A name that this project defines or takes over, but none of OpenTelemetry."""
# Read by LiveKit's own AgentServer.
OF_LIVEKIT = frozenset({"LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"})
_SOURCES = (
    *("voice_worker.py", "sidecar/environment.py"),
    *("sidecar/wire", "sidecar/worker", "sidecar/llm", "sidecar/demo"),
)


@cache
def worker_names() -> frozenset[str]:
    """Every variable that the worker and its end of the link read, OpenTelemetry's left out."""
    return frozenset(name for name in _texts() if re.fullmatch(OURS, name)) | OF_LIVEKIT


def _texts() -> Iterator[str]:
    """Each string in the code that a worker runs."""
    for source in _SOURCES:
        for path in ROOT.glob(source):
            for file in path.rglob("*.py") if path.is_dir() else [path]:
                for node in ast.walk(ast.parse(file.read_text())):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str):
                        yield node.value
