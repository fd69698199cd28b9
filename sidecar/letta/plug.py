"""A plug in the line to Letta that the local page can pull: a real fault at the port, not a show.

While it is pulled, every request to this Letta fails as if the host refused connections, and what
was under way is cut off as by a lost connection: a post in flight has an unknown outcome. The
relay, the snapshots and their breakers meet what they would meet in a real outage.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
from typing_extensions import override

from sidecar import telemetry
from sidecar.errors import LettaError, LettaUnavailable, NotAccepted, OutcomeUnknown
from sidecar.letta.port import AgentSpec, Finding, FoundAgent, Letta, Post
from sidecar.model import Block, Passage
from sidecar.telemetry import Emit

T = TypeVar("T")


class PluggedLetta(Letta):
    """Any Letta, behind a plug. It keeps the port's promises as the Letta behind it does.

    Args:
        letta: What is behind the plug; closed with this.
        emit: Where events go.
    """

    def __init__(self, letta: Letta, *, emit: Emit) -> None:
        self._letta = letta
        self._emit = emit
        self._pulled = False
        self._under_way: set[anyio.CancelScope] = set()

    @property
    @override
    def name(self) -> str:
        return self._letta.name

    @property
    def pulled(self) -> bool:
        """Whether Letta is out of reach just now."""
        return self._pulled

    def pull(self) -> None:
        """Put Letta out of reach and cut off what is under way."""
        if not self._pulled:
            self._emit(telemetry.plug_pulled)
        self._pulled = True
        for scope in tuple(self._under_way):
            scope.cancel()

    def restore(self) -> None:
        """Make Letta reachable again; what waits for its next try still waits."""
        if self._pulled:
            self._emit(telemetry.plug_restored)
        self._pulled = False

    @override
    async def read_blocks(self, agent_id: str) -> tuple[Block, ...]:
        return await self._through(lambda: self._letta.read_blocks(agent_id))

    @override
    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        return await self._through(
            lambda: self._letta.search_passages(agent_id, query, limit=limit)
        )

    @override
    async def open_conversation(self, agent_id: str, *, label: str) -> str:
        return await self._through(lambda: self._letta.open_conversation(agent_id, label=label))

    @override
    async def post(self, post: Post) -> None:
        await self._through(
            lambda: self._letta.post(post),
            refused=NotAccepted("connection refused: the plug is pulled"),
            cut=OutcomeUnknown("connection lost: the plug was pulled"),
        )

    @override
    async def find(self, post: Post) -> Finding:
        return await self._through(lambda: self._letta.find(post))

    @override
    async def find_agents(self, tags: Sequence[str]) -> Sequence[FoundAgent]:
        return await self._through(lambda: self._letta.find_agents(tags))

    @override
    async def create_agent(self, spec: AgentSpec) -> str:
        return await self._through(lambda: self._letta.create_agent(spec))

    @override
    async def delete_agent(self, agent_id: str) -> None:
        await self._through(lambda: self._letta.delete_agent(agent_id))

    @override
    async def erase_agent(self, agent_id: str) -> None:
        await self._through(lambda: self._letta.erase_agent(agent_id))

    @override
    async def erase_conversation(self, agent_id: str, conversation_id: str) -> None:
        await self._through(lambda: self._letta.erase_conversation(agent_id, conversation_id))

    @override
    async def aclose(self) -> None:
        await self._letta.aclose()

    async def _through(
        self,
        ask: Callable[[], Awaitable[T]],
        *,
        refused: LettaError | None = None,
        cut: LettaError | None = None,
    ) -> T:
        """Ask the Letta behind the plug.

        Raises:
            LettaError: what that Letta raised; `refused` if the plug is pulled, `cut` if it was
                pulled meanwhile, or `LettaUnavailable` if the one that applies is not given.
        """
        if self._pulled:
            raise refused or _unreachable()
        with anyio.CancelScope() as scope:
            self._under_way.add(scope)
            try:
                return await ask()
            finally:
                self._under_way.discard(scope)
        raise cut or _unreachable()


def _unreachable() -> LettaError:
    return LettaUnavailable("connection refused: the plug is pulled")
