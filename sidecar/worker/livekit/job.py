"""A LiveKit job and its link: begun before the session, ended after it."""

import asyncio
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import anyio
from livekit.agents import AgentSession, JobContext

from sidecar import environment, telemetry
from sidecar.errors import ConfigError
from sidecar.peer import is_loopback
from sidecar.printable import printable_line
from sidecar.private import LINK_TOKEN_FILE, token_in
from sidecar.telemetry import Emit, Telemetry
from sidecar.wire.frames import Hints
from sidecar.wire.spool import default_spool_dir
from sidecar.worker.call import LinkedCall
from sidecar.worker.link import Link
from sidecar.worker.livekit.caller import Identification
from sidecar.worker.livekit.recorder import CallRecorder
from sidecar.worker.livekit.traces import JobTraces

__all__ = ["LinkSettings", "finish", "remember"]

T = TypeVar("T")

DEFAULT_LINK_URL: Final = "ws://127.0.0.1:8377/link"
FLUSH_S: Final = 5.0  # at the end of a call; a worker that is told to stop has ten seconds
RESTART_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Where the sidecar is, as the environment of the worker says.

    Attributes:
        url: `SIDECAR_LINK_URL`.
        token: `SIDECAR_LINK_TOKEN`, or None.
        spool_dir: `SIDECAR_SPOOL_DIR`, or `spool` in `SIDECAR_DATA_DIR`: the directory in which
            the sidecar looks, too.
        log_text: `SIDECAR_LOG_TEXT` lets callers' words into the log.
        trace_text: `SIDECAR_TRACE_TEXT` lets them into traces.
        token_file: File of the token that a sidecar of this user on this machine has made, sent
            if `token` is not set; None if the sidecar is on another machine.
    """

    url: str
    token: str | None
    spool_dir: Path
    log_text: bool = False
    trace_text: bool = False
    token_file: Path | None = None

    @property
    def shown(self) -> str | Callable[[], str] | None:
        """The token to send, or a function that reads the one that a local sidecar has made."""
        if self.token or self.token_file is None:
            return self.token
        return partial(token_in, self.token_file)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "LinkSettings":
        """Read the settings by the sidecar's own rules; unset or blank ones have their defaults.

        Raises:
            ConfigError: one or more can't be used; `fields` names each with its remedy.
        """
        fields: list[tuple[str, str]] = []

        def read(name: str, check: Callable[[str], T]) -> T | None:
            try:
                return environment.read(environ, name, check)
            except ConfigError as error:
                fields.extend(error.fields)
                return None

        schemes = environment.WS_SCHEMES
        url = read("SIDECAR_LINK_URL", partial(environment.url_alone, schemes=schemes))
        token = read("SIDECAR_LINK_TOKEN", environment.link_token)
        data_dir = read("SIDECAR_DATA_DIR", environment.path)
        spool_dir = read("SIDECAR_SPOOL_DIR", environment.path)
        log_text = read("SIDECAR_LOG_TEXT", environment.flag)
        trace_text = read("SIDECAR_TRACE_TEXT", environment.flag)
        if fields:
            raise environment.wrong(fields)
        state = data_dir or default_spool_dir().parent
        return cls(
            url=url or DEFAULT_LINK_URL,
            token=token,
            spool_dir=spool_dir or (data_dir / "spool" if data_dir else default_spool_dir()),
            log_text=bool(log_text),
            trace_text=bool(trace_text),
            token_file=state / LINK_TOKEN_FILE if _is_here(url or DEFAULT_LINK_URL) else None,
        )


def _is_here(url: str) -> bool:
    """Whether a URL names this machine: no other machine is sent the token of this one."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


class _JobLog:
    """Sends events to the log of the LiveKit job: the name as message, the fields as extras."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("sidecar")

    def debug(self, event: str, **fields: object) -> None:
        self._logger.debug(event, extra=_extra(fields))

    def info(self, event: str, **fields: object) -> None:
        self._logger.info(event, extra=_extra(fields))

    def warning(self, event: str, **fields: object) -> None:
        self._logger.warning(event, extra=_extra(fields))

    def error(self, event: str, **fields: object) -> None:
        self._logger.error(event, extra=_extra(fields))


def _extra(fields: Mapping[str, object]) -> dict[str, object]:
    """Return log fields under names that no log record uses, each text on one line."""
    return {
        f"sidecar.{name}": printable_line(value) if isinstance(value, str) else value
        for name, value in fields.items()
    }


class _LinkedJob:
    """The link of one job, and the task that holds it.

    LiveKit calls us back from its own loop and offers no task group, so this is the one task of
    ours that is not in one: it owns the link's group, and `close` awaits its end.
    """

    def __init__(self, link: Link, traces: JobTraces, emit: Emit) -> None:
        self.link = link
        self.traces = traces
        self.recorder: CallRecorder | None = None
        self.calls: list[LinkedCall] = []
        self._emit = emit
        self._scope = anyio.CancelScope()
        self._task = asyncio.create_task(self._run_link(), name="sidecar-link")

    async def close(self) -> None:
        """End the link; what is unacked is in the spool when this returns."""
        self._scope.cancel()
        await self._task

    async def _run_link(self) -> None:
        with self._scope:
            while True:
                try:
                    await self.link.run()
                except Exception as error:  # noqa: BLE001 - turns wait for the next start
                    self._emit(
                        telemetry.part_failed,
                        part="link",
                        error=type(error).__name__,
                        hint="the link was restarted; please report this",
                    )
                await anyio.sleep(RESTART_S)


_jobs: WeakKeyDictionary[JobContext, _LinkedJob] = WeakKeyDictionary()


async def remember(
    ctx: JobContext,
    session: AgentSession[Any],
    *,
    participant_identity: str | None = None,
    shared_line: bool = False,
    settings: LinkSettings | None = None,
    emit: Emit | None = None,
) -> LinkedCall:
    """Link this call to the sidecar and record its session. Call it before `session.start`.

    Waits neither for a caller nor for the sidecar. A caller named by the job's metadata is known
    at once, and is then looked for in the room (docs/livekit.md says who it can be). Otherwise
    this connects to the room (`session.start` would do it anyway), and the caller is the person in
    it, or the first to join: memory is then on its way before the greeting is.

    Args:
        ctx: The job; its id is the id of the call.
        session: Not started yet. When it closes, the job is shut down.
        participant_identity: Whom the agent listens to, if `RoomOptions` name somebody.
        shared_line: Several people may be on the line and hear what is remembered of the one the
            agent listens to (a family's loudspeaker). Otherwise no prompt holds memory while
            somebody else is in the room. The job's metadata may set it, too.
        settings: Where the sidecar is; by default read from the environment.
        emit: Events; by default they go to the job's log.
    """
    settings = settings or LinkSettings.of(os.environ)
    emit = emit or Telemetry(log_text=settings.log_text, logger=_JobLog()).emit
    traces = JobTraces(text=settings.trace_text, emit=emit)
    traces.begin(ctx.job.id)
    link = Link(
        settings.url,
        settings.shown,
        worker=uuid.uuid4().hex,
        spool_dir=settings.spool_dir,
        emit=emit,
        clock=time.time,
        dice=random.random,  # noqa: S311 - jitter
    )
    job = _LinkedJob(link, traces, emit)
    _jobs[ctx] = job
    who = Identification(ctx, session, participant_identity, shared_line=shared_line, emit=emit)

    def open_call(hints: Hints | None) -> LinkedCall:
        """Open the call of who is on the line; calls after the first are `JOB.2` and so on."""
        number = len(job.calls) + 1
        call = link.open_call(
            ctx.job.id if number == 1 else f"{ctx.job.id}.{number}",
            "livekit",
            hints,
            opened_at_s=time.time(),
            meanwhile=who.named,
            traceparent=traces.traceparent,
            room=ctx.job.room.sid,
        )
        call.say = partial(_say, session)
        call.hang_up = partial(_hang_up, ctx)
        job.calls.append(call)
        return call

    hints = who.from_job()
    call = open_call(hints)
    recorder = CallRecorder(
        call,
        emit=emit,
        clock=time.time,
        ended=ctx.shutdown,
        listeners=who,
        open_next=open_call,
        tracer=traces.tracer,
        traceparent=traces.traceparent,
    )
    recorder.listen(session)
    job.recorder = recorder
    who.when_moved(recorder.look)
    if hints is None:
        await ctx.connect()
        recorder.look()
    return call


def _say(session: AgentSession[Any], text: str) -> None:
    session.say(text)


def _hang_up(ctx: JobContext) -> None:
    """End the job and its room: a caller by telephone stays in the room until it is gone."""
    ctx.delete_room()
    ctx.shutdown("hung up by the sidecar")


async def finish(ctx: JobContext) -> None:
    """Hand over the last words of a call: pass this as `on_session_end`.

    Waits for their acks, at most `FLUSH_S` seconds, and not while the sidecar is known to be away.
    What is unacked then is left in the spool, where the sidecar finds it.
    """
    job = _jobs.pop(ctx, None)
    if job is None or job.recorder is None:
        return
    job.recorder.end("job ended")
    with anyio.move_on_after(FLUSH_S):
        for call in job.calls:
            if call.identified:
                await call.flushed(FLUSH_S)
    await job.close()
    await job.traces.end()
