"""A store for snapshots that keeps none."""

from sidecar.model import Snapshot


class NoStore:
    """What `sidecar.memory.store.SnapshotStore` is on a disk that is never written."""

    async def load(self, agent_id: str) -> Snapshot | None:
        return None

    async def save(self, snapshot: Snapshot) -> None:
        return None

    async def forget(self, agent_id: str) -> None:
        return None
