"""The composition root: the one place that builds the parts and wires them.

Theory of operation: `Sidecar.run` starts the parts in one task group, serves until a signal, and
then drains: no new calls, live calls finish, pending turns are posted to Letta, links are closed
with a hint when to come back. A second signal skips the rest. A part that fails is reported and
started again with a backoff; the journal is closed last.
"""

import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from sidecar import telemetry
from sidecar.app.from_settings import (
    build_forgetting,
    build_llm,
    identity_rules,
    opened_letta,
    prepare_data_dir,
    spool_tenant,
    traced,
)
from sidecar.app.journal import opened_journal, secret_of
from sidecar.app.local_letta import OpenLetta
from sidecar.app.routes import routes
from sidecar.app.vapi import build_vapi
from sidecar.breaker import backoff_s
from sidecar.calls import CallPolicy, Calls
from sidecar.calls.commands import CallCommands
from sidecar.channels.admin import Admin, Forget
from sidecar.channels.console.routes import Console
from sidecar.channels.console.session import Parts
from sidecar.channels.link.server import LinkServer
from sidecar.clock import SteadyClock
from sidecar.config.settings import DEFAULT_TENANT, Settings
from sidecar.delivery.decisions import DeliveryPolicy
from sidecar.delivery.relay import Relay
from sidecar.errors import JournalError
from sidecar.http.metrics import Gauges, Metrics
from sidecar.http.server import Direct, listen, serving
from sidecar.jobs.copies import ErasedCopies
from sidecar.jobs.intake import SpoolIntake
from sidecar.jobs.retention import Retention
from sidecar.journal.port import Journal
from sidecar.letta.identity import Identity
from sidecar.letta.plug import PluggedLetta
from sidecar.llm.port import Llm
from sidecar.memory.archive import Archive
from sidecar.memory.freshness import FreshnessPolicy
from sidecar.memory.prompt import PromptLimits
from sidecar.memory.snapshots import Snapshots
from sidecar.memory.store import DirectoryStore
from sidecar.privacy import redaction
from sidecar.private import link_token
from sidecar.prompt_wait import Waits
from sidecar.telemetry import Telemetry
from sidecar.tracing import NO_TRACES, Tracer

DAY_S = 86_400.0
LEASE_ENDS_S = 10.0
"""How long a start waits for the database to be free of a process that was killed."""
FIRST_LOOK_S = 5.0
"""The longest that delivery waits at the start for the first pass over the spool."""


class Sidecar:
    """The parts, built and wired; use `opened` to create one."""

    def __init__(
        self,
        settings: Settings,
        *,
        journal: Journal,
        found: OpenLetta,
        llm: Llm,
        secret: bytes,
        directory: Path,
        emit: telemetry.Emit,
        clock: Callable[[], float],
        tracer: Tracer = NO_TRACES,
        page_token: str = "",
        made_token: str = "",
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.found = found
        self.letta = letta = found.letta
        self.llm = llm
        self._emit = emit
        self._clock = clock
        rules = identity_rules(settings)
        self.identity = Identity(letta, journal, rules=rules, emit=emit)
        self.snapshots = Snapshots(
            letta,
            DirectoryStore(directory / "snapshots"),
            emit=emit,
            clock=clock,
            read_timeout_s=settings.read_timeout_s,
            poll_s=settings.poll_s,
        )
        self.calls = Calls(
            journal,
            self.snapshots,
            self.identity,
            rules=rules,
            policy=CallPolicy(
                limits=PromptLimits(
                    settings.block_chars, settings.memory_chars, settings.recent_chars
                ),
                freshness=FreshnessPolicy(fresh_s=settings.fresh_s),
                orphan_s=settings.orphan_s,
                consent_required=settings.consent == "required",
            ),
            secret=secret,
            emit=emit,
            clock=clock,
            tracer=tracer,
        )
        self.relay = Relay(
            journal,
            letta,
            self.identity.agent_of,
            policy=DeliveryPolicy(
                post_timeout_s=settings.post_timeout_s, give_up_s=settings.give_up_s
            ),
            concurrency=settings.post_concurrency,
            clock=clock,
            dice=random.random,  # noqa: S311 - jitter
            emit=emit,
            on_changed=self.calls.changed,
            on_settled=self.calls.digested,
            tracer=tracer,
        )
        self.link = LinkServer(
            self.calls,
            tokens=settings.tokens or ({made_token: DEFAULT_TENANT} if made_token else {}),
            memory_wait_s=settings.memory_wait_s,
            cold_start_s=settings.cold_start_s,
            emit=emit,
        )
        self.console: Console | None = None
        if isinstance(letta, PluggedLetta):
            parts = Parts(
                self.calls,
                journal,
                llm,
                waits=Waits(settings.memory_wait_s, settings.cold_start_s),
                plug=letta,
                tenant=spool_tenant(settings) or DEFAULT_TENANT,
                summary={"letta": letta.name, "llm": llm.name},
                restarts=bool(page_token),
                clock=clock,
            )
            self.console = Console(parts, token=page_token)
        self.archive = Archive(letta, emit=emit, clock=clock)
        self.vapi = build_vapi(
            settings,
            self.calls,
            journal,
            llm,
            self.archive,
            made_token=made_token,
            directory=directory,
            redact=redaction(settings.redact),
            emit=emit,
            clock=clock,
            tracer=tracer,
        )
        tenant = spool_tenant(settings)
        self._directory = directory
        self._forgetting = build_forgetting(
            settings,
            directory,
            journal,
            letta,
            self.snapshots,
            rules=rules,
            on_the_line=self._on_the_line,
            emit=emit,
            clock=clock,
        )
        self._retention = Retention(
            journal,
            settings.spool.expanduser(),
            retention_s=settings.retention_days * DAY_S,
            emit=emit,
            clock=clock,
        )
        self._erased_copies = ErasedCopies(journal, self.snapshots, emit=emit, clock=clock)
        self._commands = CallCommands(
            journal,
            live=lambda: self.calls.live,
            superseded=self.vapi.calls.superseded if self.vapi else lambda _key, _one: None,
        )
        self._admin = Admin(journal, commands=self._commands, forget=self._forget, clock=clock)
        self.metrics = Metrics(self._metrics_state)
        self._intake = (
            SpoolIntake(self.calls, settings.spool.expanduser(), tenant=tenant, emit=emit)
            if tenant
            else None
        )
        if self._intake is not None:
            self.calls.on_opened = self._intake.look_soon

    async def run(
        self,
        *,
        on_started: Callable[[str], None],
        extra: Callable[[anyio.Event], Awaitable[None]] | None = None,
    ) -> None:
        """Serve until a signal, then drain.

        Args:
            on_started: Called with the base URL once everything is up.
            extra: Runs alongside until the end (the voice worker of `sidecar run`); its event is
                set when the drain begins.

        Raises:
            ConfigError: the address can't be bound.
        """
        settings = self.settings
        bound = listen(settings.host, settings.port)
        host, port = bound.getsockname()[:2]
        here = _url_of_this_machine(host, port)
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        console = self.console.routes(host, port) if self.console else []
        operators = [*self.metrics.routes(), *self._admin.routes()]
        vapi = self.vapi.routes() if self.vapi else []
        app = Direct(
            routes(self.link, self.readiness, [*operators, *console, *vapi]),
            self.vapi.posts() if self.vapi else {},
        )
        stopped, unhurried = anyio.Event(), anyio.CancelScope()
        async with anyio.create_task_group() as parts:
            await parts.start(self.snapshots.run)
            await parts.start(self.archive.run)
            await parts.start(self.calls.run)
            if self.vapi is not None:
                await parts.start(self.vapi.run)
            if self.found.run_server is not None:
                parts.start_soon(self._supervise, "app server", self.found.run_server)
            parts.start_soon(self._deliver)
            parts.start_soon(self._supervise, "retention", self._retention.run)
            parts.start_soon(self._supervise, "commands", self._commands.run)
            if settings.journal_url:
                parts.start_soon(self._supervise, "copies", self._erased_copies.run)
            if self._intake is not None:
                parts.start_soon(self._supervise, "spool", self._intake.run)
            async with serving(app, bound):
                parts.start_soon(_watch_signals, stopped, unhurried)
                if extra is not None:
                    parts.start_soon(self._supervise, "voice worker", partial(extra, stopped))
                await anyio.to_thread.run_sync(self._admin.announce, self._directory, here)
                on_started(url)
                await stopped.wait()
                await self._drain(unhurried)
                await anyio.to_thread.run_sync(self._admin.withdraw, self._directory)
            parts.cancel_scope.cancel()
        if self.vapi is not None:
            await self.vapi.aclose()

    async def _deliver(self) -> None:
        """Run the relay after the first pass over the spool, whose turns were said earlier."""
        if self._intake is not None:
            with anyio.move_on_after(FIRST_LOOK_S):
                await self._intake.looked.wait()
        await self._supervise("relay", self.relay.run)

    async def _forget(self, asked: Forget) -> object:
        forgetting = self._forgetting
        step = forgetting.forget if asked.really else forgetting.plan
        return await step(asked.tenant, asked.caller_key)

    async def _metrics_state(self) -> Gauges:
        return Gauges(
            backlog=await self.journal.backlog(),
            journal_ok=not self.calls.journal_error,
            live_calls=Counter(live.call.channel for live in self.calls.live),
            connections=self.link.connections,
            breaker_open={"memory": self.snapshots.degraded, "relay": self.relay.degraded},
            draining=self.calls.draining,
            replicas=await self.journal.replicas(),
            now_s=self._clock(),
        )

    async def readiness(self) -> Mapping[str, object]:
        """Return what `/readyz` shows; Letta is degraded from a failure to its next success."""
        try:
            with anyio.fail_after(2.0):
                backlog = await self.journal.backlog()
        except Exception as error:  # noqa: BLE001 - whatever it is, the journal does not work
            return {"ready": False, "journal": type(error).__name__}
        journal = self.calls.journal_error or ("" if self.journal.has_room else "takes no turns")
        ready = not self.calls.draining and not journal
        failing = self.relay.failing or self.snapshots.failing or self.calls.lookup_failed
        return {
            "ready": ready,
            "draining": self.calls.draining,
            "journal": journal or "ok",
            "live_calls": len(self.calls.live),
            "undelivered_turns": backlog.undelivered,
            "dead_batches": backlog.dead_batches,
            "letta": "degraded" if failing else "ok",
        }

    def _on_the_line(self, caller_key: str) -> bool:
        return any(live.call.caller_key == caller_key for live in self.calls.live)

    async def _drain(self, unhurried: anyio.CancelScope) -> None:
        """Let calls finish and post what is due, until `unhurried` is cancelled.

        The connections are closed before the parts that serve them, so none can reach a closed
        journal.
        """
        settings = self.settings
        began_s = self._clock()
        self.calls.draining = True
        self._emit(
            telemetry.draining,
            live_calls=len(self.calls.live),
            budget_s=settings.drain_calls_s + settings.drain_flush_s,
            reason="signal",
        )
        self.link.announce_drain()
        with unhurried:
            if self.console is not None:
                await self.console.close_all()
            with anyio.move_on_after(settings.drain_calls_s):
                while self.calls.live:
                    await self.calls.wait_for_fewer()
            await self.relay.flush(settings.drain_flush_s)
        await self.link.close_all()
        undelivered: int | None = None
        with anyio.move_on_after(2.0), suppress(JournalError):
            undelivered = (await self.journal.backlog()).undelivered
        self._emit(
            telemetry.drained,
            undelivered=undelivered,
            live_calls=len(self.calls.live),
            took_s=self._clock() - began_s,
        )

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a part, and restart it whenever it ends: an error in it must not end the calls."""
        attempt = 0
        while True:
            began_s = self._clock()
            try:
                await run()
                error, hint = "ended", ""
            except Exception as failure:  # noqa: BLE001 - counted, logged and started again
                error, hint = f"{type(failure).__name__}", getattr(failure, "hint", "")
            if self._clock() - began_s > 60:  # noqa: PLR2004
                attempt = 0
            attempt += 1
            self._emit(telemetry.part_failed, part=name, error=error, hint=hint)
            dice = random.random()  # noqa: S311
            await anyio.sleep(backoff_s(attempt, base_s=0.5, cap_s=30.0, dice=dice))


def _url_of_this_machine(host: str, port: int) -> str:
    """Return the URL at which a program on this machine reaches a server bound to `host`."""
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def _watch_signals(stopped: anyio.Event, unhurried: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stopped.is_set():
                unhurried.cancel()
                continue
            stopped.set()
            if sys.stderr.isatty():
                sys.stderr.write("\nfinishing calls; interrupt again to quit now\n")


@asynccontextmanager
async def opened(
    settings: Settings,
    events: Telemetry,
    *,
    page_token: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> AsyncGenerator[Sidecar]:
    """Build a sidecar from the settings; closes everything it opened, in reverse.

    Args:
        settings: As loaded.
        events: Where events go.
        page_token: Admits the local page; from a parent that starts the sidecar again when it is
            killed (`sidecar run --restart`). Empty: there is no such parent, and the page gets a
            new token.
        say: Called with a text about what the start waits for.

    Raises:
        ConfigError: a directory, the map file or the App Server asked for can't be used.
        JournalError: the journal can't be opened.
    """
    directory = prepare_data_dir(settings)
    clock = SteadyClock()
    async with AsyncExitStack() as stack:
        journal = await stack.enter_async_context(
            opened_journal(settings, directory, clock=clock, alone=False, wait_s=LEASE_ENDS_S)
        )
        llm = build_llm(settings)
        stack.push_async_callback(llm.aclose)
        tracer = await stack.enter_async_context(traced(settings, events.emit))
        found = await stack.enter_async_context(
            opened_letta(settings, directory, llm=llm, patient=False, say=say)
        )
        if settings.console and settings.loopback:
            found = replace(found, letta=PluggedLetta(found.letta, emit=events.emit))
        sidecar = Sidecar(
            settings,
            journal=journal,
            found=found,
            llm=llm,
            secret=secret_of(settings, directory),
            directory=directory,
            emit=events.emit,
            clock=clock,
            tracer=tracer,
            page_token=page_token,
            made_token=link_token(directory) if settings.makes_token else "",
        )
        events.observe = sidecar.metrics.observe
        yield sidecar
