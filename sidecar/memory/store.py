"""The last good copy of each agent's memory on disk, for a start while Letta is away.

One JSON file per agent, 0600, replaced whole: a crash leaves the old copy or the new one.
"""

import hashlib
import tempfile
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio.to_thread
import msgspec

from sidecar.model import Block, Snapshot


class SnapshotStore(Protocol):
    """Keeps one snapshot per agent across restarts. Losing one costs freshness, nothing else."""

    async def load(self, agent_id: str) -> Snapshot | None:
        """Return the copy of an agent; None when there is none or it is damaged."""
        ...

    async def save(self, snapshot: Snapshot) -> None:
        """Keep this copy in place of the one before. Raises `OSError` when it can't."""
        ...

    async def forget(self, agent_id: str) -> None:
        """Erase the copy of an agent; none is no error."""
        ...


class _Copy(msgspec.Struct):
    agent_id: str
    blocks: list[Block]
    read_at_s: float


class DirectoryStore:
    """A `SnapshotStore` in a directory, created with mode 0700 when it is missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def load(self, agent_id: str) -> Snapshot | None:
        """As `SnapshotStore.load`."""
        return await anyio.to_thread.run_sync(partial(self._load, agent_id))

    async def save(self, snapshot: Snapshot) -> None:
        """As `SnapshotStore.save`."""
        await anyio.to_thread.run_sync(partial(self._save, snapshot))

    async def forget(self, agent_id: str) -> None:
        """As `SnapshotStore.forget`."""
        await anyio.to_thread.run_sync(partial(self._path(agent_id).unlink, missing_ok=True))

    def _path(self, agent_id: str) -> Path:
        # Hashed: an agent id comes from a server and must not choose the path.
        name = hashlib.sha256(agent_id.encode()).hexdigest()[:32]
        return self._directory / f"{name}.json"

    def _load(self, agent_id: str) -> Snapshot | None:
        try:
            copy = msgspec.json.decode(self._path(agent_id).read_bytes(), type=_Copy)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if copy.agent_id != agent_id:
            return None
        return Snapshot.of(agent_id, copy.blocks, read_at_s=copy.read_at_s)

    def _save(self, snapshot: Snapshot) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        copy = _Copy(snapshot.agent_id, list(snapshot.blocks), snapshot.read_at_s)
        with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:  # 0600
            try:
                file.write(msgspec.json.encode(copy))
                file.flush()
                Path(file.name).replace(self._path(snapshot.agent_id))
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
