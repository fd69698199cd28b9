"""A worker process with one call, as a LiveKit job has it (`one_job.py`); it may be killed."""

from pathlib import Path

from tests.line_process import LineProcess
from tests.sidecar_process import SidecarProcess


class Job(LineProcess):
    """The process.

    Args:
        name: Of the job.
        sidecar: Which it reaches.
        spool: Of all workers.
        code: As for `LineProcess`.
    """

    def __init__(
        self, name: str, sidecar: SidecarProcess, spool: Path, *, code: Path | None = None
    ) -> None:
        words = name, sidecar.link_url, str(spool)
        super().__init__("tests.one_job", *words, sidecar=sidecar, code=code)

    def say(self, *texts: str, acked: bool = True) -> None:
        """Say something; `acked` waits until the sidecar has all of it."""
        for text in texts:
            self.ask(do="say", text=text)
        if acked:
            self.ask(do="flush")
