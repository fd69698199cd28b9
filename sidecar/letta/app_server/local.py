"""The sidecar's own App Server on this machine, whose files it can delete.

An App Server deletes no conversation and keeps the history of an erased agent's memory. Here its
files are ours, so that what is erased is deleted from them.
"""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import anyio.to_thread
from typing_extensions import override

from sidecar.errors import LettaUnavailable
from sidecar.letta.app_server.letta import AppServerLetta
from sidecar.letta.port import AgentSpec
from sidecar.untrusted import MALFORMED

USED = "used"
"""A file of this name says that the folder has agents: their memory is looked for nowhere else."""


class LocalAppServer(AppServerLetta):
    """`AppServerLetta` on our own server.

    Args:
        url: Of the server.
        token: Bearer token.
        folder: The server's folder.
        model_name: What its agents run on, for people.
        read_timeout_s: As for `AppServerLetta`.
        post_timeout_s: As for `AppServerLetta`.
        reflect: As for `AppServerLetta`.
    """

    def __init__(
        self,
        url: str,
        token: str,
        folder: Path,
        *,
        model_name: str,
        read_timeout_s: float,
        post_timeout_s: float,
        reflect: bool,
    ) -> None:
        super().__init__(
            url,
            token,
            read_timeout_s=read_timeout_s,
            post_timeout_s=post_timeout_s,
            reflect=reflect,
        )
        self._folder = folder
        self._model_name = model_name

    @property
    @override
    def name(self) -> str:
        return f"Letta App Server on this machine ({self._model_name})"

    @override
    async def create_agent(self, spec: AgentSpec) -> str:
        await anyio.to_thread.run_sync((self._folder / USED).touch, 0o600)
        return await super().create_agent(spec)

    @override
    async def erase_agent(self, agent_id: str) -> None:
        await super().erase_agent(agent_id)
        try:
            await anyio.to_thread.run_sync(_erase_files_of, self._folder / "home/.letta", agent_id)
        except OSError as error:
            raise LettaUnavailable(
                f"files of an erased agent can't be deleted: {error.strerror}",
                hint=f"delete what names {agent_id} below {self._folder}",
            ) from error


def _erase_files_of(home: Path, agent_id: str) -> None:
    """Delete what a server leaves behind of a deleted agent. Blocking; may be repeated."""
    if not agent_id or "/" in agent_id or agent_id.startswith("."):
        return
    gone = [home / "lc-local-backend/memfs" / agent_id, home / "transcripts" / agent_id]
    gone += [
        folder
        for folder in (home / "lc-local-backend/conversations").glob("*")
        if _agent_of(folder / "conversation.json") == agent_id
    ]
    for folder in gone:
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)


def _agent_of(conversation: Path) -> str:
    try:
        return str(cast("dict[str, Any]", json.loads(conversation.read_text()))["agent_id"])
    except (OSError, *MALFORMED, KeyError, TypeError):
        return ""
