"""Talks to Letta about one batch: finds its agent, looks the batch up, posts it.

Every way a request to Letta can end becomes one `Outcome` of `sidecar.delivery.decisions`; nothing
is decided here. It writes to the journal only which agent and which conversation a batch goes to.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import anyio

from sidecar.delivery.decisions import DeliveryPolicy, Outcome
from sidecar.delivery.message import render_batch
from sidecar.errors import (
    AgentNotFound,
    ConversationGone,
    LettaDenied,
    LettaError,
    LettaUnavailable,
    NotAccepted,
    OutcomeUnknown,
    Rejected,
    SidecarError,
    TooLarge,
)
from sidecar.journal.directory import Addresses
from sidecar.journal.states import BatchEvent
from sidecar.letta.port import Finding, Letta, Post
from sidecar.model import AgentRef, Batch

GONE_LIMIT = 3
"""After this many "no such agent" in a row, a learnt agent is forgotten and looked for again."""

_FINDINGS: dict[Finding, BatchEvent] = {
    "found": BatchEvent.FOUND,
    "running": BatchEvent.RUNNING,
    "absent": BatchEvent.ABSENT,
}


@dataclass(frozen=True, slots=True)
class Addressed:
    """A batch and its post. `nothing_sent`: no earlier try of it can have reached Letta."""

    batch: Batch
    post: Post
    nothing_sent: bool


class Courier:
    """Talks to Letta about one batch at a time per agent; never raises a `LettaError`.

    Args:
        journal: Stores agents and conversations durably, before the first post.
        letta: The Letta.
        resolve_agent: Finds or creates the agent of a reference.
        policy: Deadlines.
    """

    def __init__(
        self,
        journal: Addresses,
        letta: Letta,
        resolve_agent: Callable[[AgentRef], Awaitable[str]],
        *,
        policy: DeliveryPolicy,
    ) -> None:
        self._journal = journal
        self._letta = letta
        self._resolve_agent = resolve_agent
        self._policy = policy
        self._conversations_gone: dict[str, str] = {}
        self._times_gone: dict[str, int] = {}
        self._moved: set[str] = set()

    async def address(self, batch: Batch) -> Addressed | Outcome:
        """Find the agent and the call's conversation; both are durable on return.

        Raises:
            JournalError: what was learnt could not be stored.
        """
        nothing_sent = batch.agent_id is None or batch.call.conversation_id is None
        try:
            with anyio.fail_after(4 * self._policy.lookup_timeout_s):
                batch = await self._with_agent(batch)
                batch = await self._with_conversation(batch)
        except LettaDenied as error:
            return _outcome(BatchEvent.DENIED, error)
        except AgentNotFound as error:
            return await self._agent_gone(batch, error)
        except Rejected as error:
            return _outcome(BatchEvent.NO_AGENT, error)
        except LettaError as error:
            return _outcome(BatchEvent.UNADDRESSED, error)
        except TimeoutError:
            return Outcome(BatchEvent.UNADDRESSED, "Letta took too long to name the agent")
        assert batch.agent_id is not None
        assert batch.call.conversation_id is not None
        post = Post(
            batch.batch_id,
            batch.agent_id,
            batch.call.conversation_id,
            render_batch(batch),
            first_sent_at_s=batch.sealed_at_s,
            final=batch.last_part,
        )
        return Addressed(batch, post, nothing_sent)

    async def _with_agent(self, batch: Batch) -> Batch:
        if batch.agent_id is not None:
            return batch
        agent_id = await self._resolve_agent(batch.call.ref)
        agent_id = await self._journal.learn_agent(batch.call.ref, agent_id)
        return replace(batch, agent_id=agent_id)

    async def _with_conversation(self, batch: Batch) -> Batch:
        call = batch.call
        assert batch.agent_id is not None
        if call.conversation_id not in {None, self._conversations_gone.get(call.key)}:
            self._conversations_gone.pop(call.key, None)  # another replica has opened a new one
            return batch
        opened = await self._letta.open_conversation(
            batch.agent_id, label=f"{call.channel} call {call.call_id}"
        )
        # Another replica may have opened one meanwhile, and may have posted to it.
        learnt = await self._journal.learn_conversation(
            call.key, opened, agent_id=batch.agent_id, instead_of=call.conversation_id or ""
        )
        if not learnt:
            raise LettaUnavailable("the caller's agent was replaced meanwhile")
        self._conversations_gone.pop(call.key, None)
        return replace(batch, call=replace(call, conversation_id=learnt))

    async def look_up(self, addressed: Addressed) -> Outcome:
        """Ask Letta whether an earlier try of the batch has landed."""
        if addressed.nothing_sent:
            return Outcome(BatchEvent.ABSENT_FOR_GOOD)
        try:
            with anyio.fail_after(self._policy.lookup_timeout_s):
                finding = await self._letta.find(addressed.post)
        except LettaDenied as error:
            return _outcome(BatchEvent.DENIED, error)
        except AgentNotFound as error:
            return await self._agent_gone(addressed.batch, error)
        except LettaError as error:
            return _outcome(BatchEvent.UNANSWERED, error)
        except TimeoutError:
            return Outcome(BatchEvent.UNANSWERED, "the look-up took too long")
        return Outcome(_FINDINGS[finding])

    async def send(self, addressed: Addressed) -> Outcome:
        """Post the batch once."""
        batch = addressed.batch
        try:
            with anyio.fail_after(self._policy.post_timeout_s):
                await self._letta.post(addressed.post)
        except NotAccepted as error:
            event = BatchEvent.BUSY if error.busy else BatchEvent.REFUSED
            return Outcome(event, error.message, error.retry_after_s)
        except OutcomeUnknown as error:
            return _outcome(BatchEvent.FAILED if error.over else BatchEvent.LOST, error)
        except TooLarge as error:
            return self._too_large(batch, error)
        except Rejected as error:
            return _outcome(BatchEvent.REJECTED, error)
        except ConversationGone as error:
            self._conversations_gone[batch.call.key] = batch.call.conversation_id or ""
            return _outcome(BatchEvent.CONVERSATION_GONE, error)
        except AgentNotFound as error:
            return await self._agent_gone(batch, error)
        except LettaDenied as error:
            return _outcome(BatchEvent.DENIED, error)
        except LettaUnavailable as error:
            return _outcome(BatchEvent.LOST, error)
        except TimeoutError:
            return Outcome(BatchEvent.LOST, "the post took too long")
        self._times_gone.pop(batch.lane, None)
        self._moved.discard(batch.batch_id)
        return Outcome(BatchEvent.DIGESTED)

    def _too_large(self, batch: Batch, error: TooLarge) -> Outcome:
        """Retry once in a new conversation; a batch too large even there is too large by itself."""
        if batch.batch_id in self._moved:
            self._moved.discard(batch.batch_id)
            return _outcome(BatchEvent.TOO_LARGE, error)
        self._moved.add(batch.batch_id)
        self._conversations_gone[batch.call.key] = batch.call.conversation_id or ""
        return _outcome(BatchEvent.CONVERSATION_GONE, error)

    async def _agent_gone(self, batch: Batch, error: AgentNotFound) -> Outcome:
        """Count the answer; at `GONE_LIMIT`, forget a caller's own agent: it is looked for again.

        One such answer is not enough: a Letta that answers wrongly for a moment must not cost a
        caller their agent.
        """
        times = self._times_gone.get(batch.lane, 0) + 1
        self._times_gone[batch.lane] = times
        if times >= GONE_LIMIT and batch.call.ref.agent_id is None:
            await self._journal.forget_agent(batch.call.ref, batch.agent_id or "")
            del self._times_gone[batch.lane]
        return _outcome(BatchEvent.AGENT_GONE, error)


def _outcome(event: BatchEvent, error: SidecarError) -> Outcome:
    return Outcome(event, str(error))
