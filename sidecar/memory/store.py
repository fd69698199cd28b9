"""The last good copy of each agent's memory on disk, for a start while Letta is unreachable.

One JSON file per agent, 0600, replaced whole: a crash leaves the old copy or the new one, and
perhaps a file beside it that the next copy of that agent overwrites.
"""

import hashlib
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio.to_thread
import msgspec

from sidecar.model import Block, Snapshot
from sidecar.private import make_directory
from sidecar.untrusted import MALFORMED


class SnapshotStore(Protocol):
    """Keeps one snapshot per agent across restarts. Losing one costs freshness, nothing else."""

    async def load(self, agent_id: str) -> Snapshot | None:
        """Return the copy of an agent; None when there is none or it is damaged."""
        ...

    async def save(self, snapshot: Snapshot) -> None:
        """Replace the agent's copy by this one; one save of an agent at a time.

        Raises:
            OSError: it can't be stored.
        """
        ...

    async def forget(self, agent_id: str) -> None:
        """Erase the copy of an agent; a missing one is no error."""
        ...

    async def agent_ids(self) -> set[str]:
        """Return the ids of all agents that have a copy. Reads those that are new."""
        ...


class _Copy(msgspec.Struct):
    agent_id: str
    blocks: list[Block]
    read_at_s: float


class DirectoryStore:
    """A `SnapshotStore` in a directory, created with mode 0700 when it is missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names: dict[str, str] = {}
        """The ids of agents by the names of their files, as far as they were read."""

    async def load(self, agent_id: str) -> Snapshot | None:
        """As `SnapshotStore.load`."""
        return await anyio.to_thread.run_sync(partial(self._load, agent_id))

    async def save(self, snapshot: Snapshot) -> None:
        """As `SnapshotStore.save`."""
        await anyio.to_thread.run_sync(partial(self._save, snapshot))

    async def forget(self, agent_id: str) -> None:
        """As `SnapshotStore.forget`."""
        await anyio.to_thread.run_sync(partial(self._forget, agent_id))

    async def agent_ids(self) -> set[str]:
        """As `SnapshotStore.agent_ids`."""
        return await anyio.to_thread.run_sync(self._agent_ids)

    def _path(self, agent_id: str) -> Path:
        # Hashed: an agent id comes from a server and must not choose the path.
        name = hashlib.sha256(agent_id.encode()).hexdigest()[:32]
        return self._directory / f"{name}.json"

    def _load(self, agent_id: str) -> Snapshot | None:
        try:
            copy = msgspec.json.decode(self._path(agent_id).read_bytes(), type=_Copy)
        except (OSError, *MALFORMED):
            return None
        if copy.agent_id != agent_id:
            return None
        return Snapshot.of(agent_id, copy.blocks, read_at_s=copy.read_at_s)

    def _agent_ids(self) -> set[str]:
        there = {path.name: path for path in self._directory.glob("*.json")}
        names = {name: agent_id for name, agent_id in self._names.items() if name in there}
        for name, path in there.items():
            if name not in names:
                with suppress(OSError, *MALFORMED):
                    names[name] = msgspec.json.decode(path.read_bytes(), type=_Copy).agent_id
        self._names = names
        return set(names.values())

    def _save(self, snapshot: Snapshot) -> None:
        make_directory(self._directory)
        copy = _Copy(snapshot.agent_id, list(snapshot.blocks), snapshot.read_at_s)
        path = self._path(snapshot.agent_id)
        unfinished = _unfinished(path)
        try:
            unfinished.unlink(missing_ok=True)  # O_EXCL: nobody else's file or link is written
            file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(file, "wb") as stream:
                stream.write(msgspec.json.encode(copy))
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def _forget(self, agent_id: str) -> None:
        path = self._path(agent_id)
        _unfinished(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    """Return the path a copy is written to before it is renamed; a kill may leave it behind."""
    return path.with_suffix(".new")
