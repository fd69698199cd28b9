"""Workers and their jobs: LiveKit's worker protocol (`/agent`)."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import anyio
from aiohttp import WSMsgType, web
from livekit.protocol import agent, models

from tests.livekit_room.room import PROTOCOL, VERSION, Room, new_sid


@dataclass(eq=False)
class Worker:
    """A worker process that has registered."""

    socket: web.WebSocketResponse
    worker_id: str = field(default_factory=lambda: new_sid("AW_"))
    agent_name: str = ""
    available: bool = False

    async def say(self, message: agent.ServerMessage) -> None:
        await self.socket.send_bytes(message.SerializeToString())


class Dispatcher:
    """Gives rooms to workers.

    Args:
        token_for: Makes the agent's token from identity, name, metadata, attributes and room name.
    """

    def __init__(self, token_for: Callable[..., str]) -> None:
        self._token_for = token_for
        self._changed = anyio.Event()
        self.workers: list[Worker] = []
        self.jobs: dict[str, agent.Job] = {}
        self.statuses: dict[str, list[int]] = {}

    async def until_registered(
        self, *, beside: Collection[Worker] = (), budget_s: float = 60.0
    ) -> None:
        """Wait for a worker that takes jobs and is not in `beside`."""
        with anyio.fail_after(budget_s):
            while not any(w.available and w not in beside for w in self.workers):
                await self._changed.wait()

    async def until_status(self, job_id: str, *wanted: int, budget_s: float = 30.0) -> None:
        """Wait until a job has had one of these `agent.JobStatus` values."""
        with anyio.fail_after(budget_s):
            while not set(wanted) & set(self.statuses.get(job_id, ())):
                await self._changed.wait()

    async def dispatch(self, room: Room, *, metadata: str = "") -> str:
        """Offer a room to the newest available worker; returns the job's id."""
        await self.until_registered()
        worker = next(w for w in reversed(self.workers) if w.available)
        job = agent.Job(
            id=new_sid("AJ_"),
            dispatch_id=new_sid("AD_"),
            type=agent.JobType.JT_ROOM,
            room=room.info,
            metadata=metadata,
            agent_name=worker.agent_name,
        )
        self.jobs[job.id] = job
        await worker.say(agent.ServerMessage(availability=agent.AvailabilityRequest(job=job)))
        return job.id

    async def serve(self, socket: web.WebSocketResponse) -> None:
        """Serve one worker until it disconnects."""
        worker = Worker(socket)
        try:
            async for message in socket:
                if message.type == WSMsgType.BINARY:
                    await self._take(worker, agent.WorkerMessage.FromString(message.data))
        finally:
            if worker in self.workers:
                self.workers.remove(worker)
            self._notify()

    async def _take(self, worker: Worker, message: agent.WorkerMessage) -> None:
        match message.WhichOneof("message"):
            case "register":
                await self._register(worker, message.register)
            case "availability":
                await self._assign(worker, message.availability)
            case "update_worker":
                status = message.update_worker.status
                worker.available = status == agent.WorkerStatus.WS_AVAILABLE
            case "update_job":
                update = message.update_job
                self.statuses.setdefault(update.job_id, []).append(update.status)
            case "ping":
                pong = agent.WorkerPong(
                    last_timestamp=message.ping.timestamp, timestamp=int(time.time() * 1000)
                )
                await worker.say(agent.ServerMessage(pong=pong))
            case _:
                pass
        self._notify()

    async def _register(self, worker: Worker, request: agent.RegisterWorkerRequest) -> None:
        worker.agent_name = request.agent_name
        worker.available = True
        self.workers.append(worker)
        server = models.ServerInfo(version=VERSION, protocol=PROTOCOL)
        welcome = agent.RegisterWorkerResponse(worker_id=worker.worker_id, server_info=server)
        await worker.say(agent.ServerMessage(register=welcome))

    async def _assign(self, worker: Worker, answer: agent.AvailabilityResponse) -> None:
        if not answer.available:
            return
        job = self.jobs[answer.job_id]
        token = self._token_for(
            identity=answer.participant_identity,
            name=answer.participant_name,
            metadata=answer.participant_metadata,
            attributes=dict(answer.participant_attributes),
            room=job.room.name,
            kind="agent",
        )
        await worker.say(agent.ServerMessage(assignment=agent.JobAssignment(job=job, token=token)))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
