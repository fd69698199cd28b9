"""What commands ask Letta themselves: agents, their memory, a move, forgetting a caller."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from sidecar.app.from_settings import (
    build_forgetting,
    build_llm,
    identity_rules,
    opened_letta,
    prepare_data_dir,
)
from sidecar.app.serve import say_waiting
from sidecar.config.load import load
from sidecar.config.settings import Settings
from sidecar.errors import LettaError
from sidecar.jobs.forget import Forgotten
from sidecar.journal.erasure import Erasure
from sidecar.letta.changes import Change, RecordsChanges
from sidecar.letta.digest_agent import caller_tags, spec_named, tags_of_tenant
from sidecar.letta.move import Move, agents_to_move, carry_out, plan
from sidecar.letta.port import FoundAgent, Letta
from sidecar.memory.store import DirectoryStore
from sidecar.model import Block
from sidecar.telemetry import Telemetry


@asynccontextmanager
async def letta_of_settings(place: str = "") -> AsyncGenerator[tuple[Settings, Letta]]:
    """Open the Letta of the settings, or one that `Settings.at` names, for one command.

    Raises:
        ConfigError: the settings are wrong.
        LettaError: the Letta of this machine does not start.
    """
    settings = load().at(place) if place else load()
    directory = prepare_data_dir(settings)
    llm = build_llm(settings)
    try:
        async with opened_letta(settings, directory, llm=llm, say=say_waiting) as found:
            yield settings, found.letta
    finally:
        await llm.aclose()


async def create_agent(name: str, tenant: str) -> str:
    """Make an agent that digests transcripts; returns its id (`sidecar agents create`)."""
    async with letta_of_settings() as (settings, letta):
        return await letta.create_agent(
            spec_named(
                name,
                tenant,
                model=settings.letta_agent_model,
                embedding=settings.letta_agent_embedding,
            )
        )


class _Silent:
    """A log that stays empty: commands print themselves what they did."""

    def info(self, event: str, **fields: object) -> None:
        """Log nothing."""


async def list_agents(tenant: str) -> list[FoundAgent]:
    """Return the agents this product made, of one tenant or of all (`sidecar agents list`)."""
    async with letta_of_settings() as (_, letta):
        return list(await letta.find_agents(tags_of_tenant(tenant)))


async def forget_caller(
    journal: Erasure, tenant: str, caller_key: str, *, really: bool
) -> Forgotten:
    """Return what is stored of a caller, or erase it, while no sidecar runs (`sidecar forget`)."""
    async with letta_of_settings() as (settings, letta):
        directory = prepare_data_dir(settings)
        forgetting = build_forgetting(
            settings,
            directory,
            journal,
            letta,
            DirectoryStore(directory / "snapshots"),
            rules=identity_rules(settings),
            on_the_line=lambda _caller_key: False,  # no sidecar runs, so no call is live
            emit=Telemetry(logger=_Silent()).emit,
            clock=time.time,
        )
        step = forgetting.forget if really else forgetting.plan
        return await step(tenant, caller_key)


async def show_agent(agent_id: str) -> tuple[Block, ...]:
    """Return the blocks of an agent (`sidecar agents show`)."""
    async with letta_of_settings() as (_, letta):
        return await letta.read_blocks(agent_id)


async def agents_of_caller(tenant: str, caller_key: str) -> list[str]:
    """Return the agents at Letta that carry a caller's tags, oldest first (`sidecar memory`)."""
    async with letta_of_settings() as (_, letta):
        return [one.agent_id for one in await letta.find_agents(caller_tags(tenant, caller_key))]


async def memory_changes(agent_id: str, limit: int) -> Sequence[Change]:
    """Return what changed an agent's memory, newest first (`sidecar memory`).

    Raises:
        LettaError: this Letta keeps no such history.
    """
    async with letta_of_settings() as (_, letta):
        if not isinstance(letta, RecordsChanges):
            await letta.read_blocks(agent_id)
            raise LettaError(
                f"{letta.name} keeps no history of an agent's memory",
                hint="`sidecar agents diff` compares it with the sidecar's last copy, `sidecar"
                " calls` shows what was said; only the App Server keeps the history of its agents",
            )
        return await letta.changes(agent_id, limit=limit)


async def move_agents(
    agent_id: str, source_place: str, target_place: str, *, really: bool
) -> list[Move]:
    """Move agents, or return what a move would do (`sidecar agents move`); all if the id is empty.

    The move stops at the first agent that the target refuses, or that can't be moved whole. Agents
    moved before it stay moved, and the next try recognizes them.

    Raises:
        ConfigError, LettaError: a Letta can't be opened, or failed.
    """
    moves: list[Move] = []
    async with (
        letta_of_settings(source_place) as (_, source),
        letta_of_settings(target_place) as (settings, target),
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
