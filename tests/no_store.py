"""A snapshot store that keeps nothing."""

from sidecar.model import Snapshot


class NoStore:
    """Behaves as `sidecar.memory.store.SnapshotStore` does on a disk without any copy."""

    async def load(self, agent_id: str) -> Snapshot | None:
        return None

    async def save(self, snapshot: Snapshot) -> None:
        return None

    async def forget(self, agent_id: str) -> None:
        return None

    async def agent_ids(self) -> set[str]:
        return set()
