"""What the commands do: serve with a banner, start the voice worker, look after agents."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc

from sidecar.app import (
    build_llm,
    identity_rules,
    opened,
    opened_letta,
    prepare_data_dir,
    spool_tenant,
)
from sidecar.config import Settings, for_a_worker, load
from sidecar.errors import LettaError
from sidecar.forget import Forgetting, Forgotten
from sidecar.letta.changes import Change, KeepsChanges
from sidecar.letta.digest_agent import caller_tags, spec_named, tags_of_tenant
from sidecar.letta.move import Move, agents_to_move, carry_out, plan
from sidecar.letta.port import FoundAgent, Letta
from sidecar.local_letta import OpenLetta
from sidecar.log import configure_logging
from sidecar.memory.store import DirectoryStore
from sidecar.model import Block
from sidecar.privacy import redaction
from sidecar.private import LINK_TOKEN_FILE
from sidecar.server.http import lift_file_limit
from sidecar.telemetry import Telemetry
from sidecar.transcript.journal import Journal

WORKER_STOP_S = 15.0
GROUP_LOOK_S = 1.0


class Kept(Protocol):
    """A parent that starts the sidecar again when it is killed; `sidecar.cli.restart`."""

    @property
    def page_token(self) -> str:
        """What the page is admitted with."""
        ...

    @property
    def earlier_groups(self) -> Sequence[int]:
        """Process groups of killed predecessors in which something still runs."""
        ...

    def came_up(self) -> None:
        """Tell it that the sidecar serves."""
        ...


async def serve(settings: Settings, worker: Path | None, kept: Kept | None = None) -> None:
    """Serve until a signal (`sidecar run`).

    Args:
        settings: As loaded.
        worker: The voice worker to start where LiveKit is configured; None: there is none.
        kept: The parent that starts this process again, if there is one.
    """
    configure_logging(level=settings.log_level, json=settings.log_json)
    lift_file_limit()
    events = Telemetry(log_text=settings.log_text, redact=redaction(settings.redact))
    page_token = kept.page_token if kept else ""
    async with opened(settings, events, page_token=page_token, say=_say_waiting) as sidecar:
        starting = worker if settings.livekit_url is not None else None

        def banner(url: str) -> None:
            token = sidecar.console.token if sidecar.console else ""
            sys.stdout.write(
                _banner(
                    settings,
                    url,
                    token=token,
                    found=sidecar.found,
                    llm=sidecar.llm.name,
                    worker=starting,
                )
            )
            sys.stdout.flush()
            if kept:
                kept.came_up()

        await sidecar.run(
            on_started=banner, extra=_worker_part(starting, settings, kept) if starting else None
        )


def _banner(
    settings: Settings, url: str, *, token: str, found: OpenLetta, llm: str, worker: Path | None
) -> str:
    access = "closed: set SIDECAR_LINK_TOKEN or SIDECAR_TENANTS"
    if settings.tokens:
        access = "voice workers connect here, with its token"
    elif settings.makes_token:
        access = f"voice workers of this user connect here; token in {LINK_TOKEN_FILE} of"
        access += " the data directory"
    lines = [
        "",
        "  The voice sidecar for Letta is up.",
        "",
        f"  page      {url}/#{token}" if token else "  page      off",
        f"  link      {url.replace('http', 'ws', 1)}/link   {access}",
        f"  memory    {'DEMO' if found.demo else 'real'}: {found.letta.name}",
        *([f"            {found.note}"] if found.note else []),
        f"  replies   {'real' if settings.llm_is_real else 'DEMO'}: {llm}",
        f"  LiveKit   {f'real: {worker}' if worker else 'not started'}",
        f"  data      {settings.data_dir.expanduser()}",
        "",
    ]
    wishes = [
        (
            settings.letta_generation == "local",
            "a Letta of yours:      set LETTA_API_KEY or LETTA_BASE_URL",
        ),
        (not settings.llm_is_real, "a real language model: set OPENAI_API_KEY, or LLM_BASE_URL"),
        (
            worker is None,
            "a real phone line:     set LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET",
        ),
    ]
    lines += [f"  for {text}" for wished, text in wishes if wished]
    return "\n".join([*lines, "", ""])


def _worker_part(
    worker: Path, settings: Settings, kept: Kept | None
) -> Callable[[anyio.Event], Awaitable[None]]:
    """Return a part that keeps the voice worker running as a process beside us.

    When the drain begins, the worker is told to finish its calls and take no new ones. A worker
    that has outlived a killed predecessor of this process goes on, and no second one is started.
    """

    async def run(stopping: anyio.Event) -> None:
        for group in kept.earlier_groups if kept else ():
            await _outlived(group, stopping)
        if stopping.is_set():
            await anyio.sleep_forever()
        env = for_a_worker(os.environ)
        env.setdefault("SIDECAR_LINK_URL", f"ws://127.0.0.1:{settings.port}/link")
        # `start` refuses calls above 0.7 of the CPU, which a small machine reaches by loading models.
        command = [sys.executable, str(worker), "dev", "--no-reload", "--log-level", "info"]
        async with await anyio.open_process(command, env=env, stdout=None, stderr=None) as process:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_terminate_when, stopping, process)
                    await process.wait()
                    tasks.cancel_scope.cancel()
                if stopping.is_set():
                    await anyio.sleep_forever()  # it has left as told: not to be started again
            finally:
                with anyio.CancelScope(shield=True):
                    await _stop(process)

    return run


async def _outlived(group: int, stopping: anyio.Event) -> None:
    """Return when nothing of a process group is left; with the drain it is told to end."""
    told = False
    with contextlib.suppress(OSError):  # ProcessLookupError: all of it is gone
        while True:
            os.killpg(group, signal.SIGTERM if stopping.is_set() and not told else 0)
            told = stopping.is_set()
            with anyio.move_on_after(None if told else GROUP_LOOK_S):
                await (anyio.sleep(GROUP_LOOK_S) if told else stopping.wait())


async def _terminate_when(stopping: anyio.Event, process: anyio.abc.Process) -> None:
    await stopping.wait()
    process.terminate()


async def _stop(process: anyio.abc.Process) -> None:
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(WORKER_STOP_S):
            await process.wait()
    if process.returncode is None:
        process.kill()


@asynccontextmanager
async def letta_at_hand(place: str = "") -> AsyncGenerator[tuple[Settings, Letta]]:
    """Open the Letta of the settings, or one that `Settings.at` names, for one command.

    Raises:
        ConfigError: the settings are wrong.
        LettaError: the Letta of this machine does not start.
    """
    settings = load().at(place) if place else load()
    directory = prepare_data_dir(settings)
    llm = build_llm(settings)
    try:
        async with opened_letta(settings, directory, llm=llm, say=_say_waiting) as found:
            yield settings, found.letta
    finally:
        await llm.aclose()


def _say_waiting(text: str) -> None:
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()


async def create_agent(name: str, tenant: str) -> str:
    """Make an agent that digests transcripts; returns its id (`sidecar agents create`)."""
    async with letta_at_hand() as (settings, letta):
        return await letta.create_agent(
            spec_named(
                name,
                tenant,
                model=settings.letta_agent_model,
                embedding=settings.letta_agent_embedding,
            )
        )


class _Silent:
    """A log for commands, which say themselves what they did."""

    def info(self, event: str, **fields: object) -> None:
        """Say nothing."""


async def list_agents(tenant: str) -> list[FoundAgent]:
    """Return the agents this product made, of one tenant or of all (`sidecar agents list`)."""
    async with letta_at_hand() as (_, letta):
        return list(await letta.find_agents(tags_of_tenant(tenant)))


async def forget_caller(
    journal: Journal, tenant: str, caller_key: str, *, really: bool
) -> Forgotten:
    """Tell what is held of a caller, or erase it, while no sidecar runs (`sidecar forget`)."""
    async with letta_at_hand() as (settings, letta):
        directory = prepare_data_dir(settings)
        forgetting = Forgetting(
            journal,
            letta,
            DirectoryStore(directory / "snapshots"),
            rules=identity_rules(settings),
            directory=directory,
            spool=settings.spool.expanduser(),
            spool_tenant=spool_tenant(settings),
            emit=Telemetry(logger=_Silent()).emit,
            clock=time.time,
        )
        step = forgetting.forget if really else forgetting.plan
        return await step(tenant, caller_key)


async def show_agent(agent_id: str) -> tuple[Block, ...]:
    """Return the blocks of an agent (`sidecar agents show`)."""
    async with letta_at_hand() as (_, letta):
        return await letta.read_blocks(agent_id)


async def agents_of_caller(tenant: str, caller_key: str) -> list[str]:
    """Return the agents at Letta that carry a caller's tags, oldest first (`sidecar memory`)."""
    async with letta_at_hand() as (_, letta):
        return [one.agent_id for one in await letta.find_agents(caller_tags(tenant, caller_key))]


async def memory_changes(agent_id: str, limit: int) -> Sequence[Change]:
    """Return what changed an agent's memory, newest first (`sidecar memory`).

    Raises:
        LettaError: this Letta keeps no such history.
    """
    async with letta_at_hand() as (_, letta):
        if not isinstance(letta, KeepsChanges):
            await letta.read_blocks(agent_id)
            raise LettaError(
                f"{letta.name} keeps no history of an agent's memory",
                hint="`sidecar agents diff` compares it with the copy that was kept last, `sidecar"
                " calls` tells what was said; the App Server keeps the history of its agents",
            )
        return await letta.changes(agent_id, limit=limit)


async def move_agents(
    agent_id: str, source_place: str, target_place: str, *, really: bool
) -> list[Move]:
    """Tell what a move would do, or move (`sidecar agents move`). An empty id: every agent.

    An agent that the target does not take, or that could not be moved whole, ends it; those before
    are moved, and are found by the next try.

    Raises:
        ConfigError, LettaError: a Letta can't be opened, or failed.
    """
    moves: list[Move] = []
    async with (
        letta_at_hand(source_place) as (_, source),
        letta_at_hand(target_place) as (settings, target),
    ):
        model, embedding = settings.letta_agent_model, settings.letta_agent_embedding
        for agent in await agents_to_move(source, agent_id):
            if really:
                moves.append(
                    await carry_out(source, target, agent, model=model, embedding=embedding)
                )
            else:
                moves.append(await plan(source, target, agent))
    return moves
