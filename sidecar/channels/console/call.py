"""One call of an open page: memory goes into the prompt, the reply streams, turns are recorded.

It works like every other channel. A turn has an id made by the browser, which sends it again until
it has seen the reply: a turn that is stored is not stored again, and one that was answered is not
answered again. So a call goes on across a restart of the sidecar.

A reply is recorded as it was heard: a reply that is cut off by the next words, or by the end of the
call, with the part that was sent; one that is read aloud, with the part that was spoken.
"""

import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

import anyio
from anyio.abc import TaskGroup

from sidecar.calls import LiveCall, MemoryView
from sidecar.errors import SidecarError
from sidecar.llm.placement import placed_in_chat
from sidecar.llm.port import Llm
from sidecar.memory.freshness import age_s
from sidecar.model import Speaker, Turn, prompt_metrics
from sidecar.prompt_wait import Waits

SYSTEM: Final = (
    "You are a friendly voice agent. Answer in one or two short spoken sentences. "
    "Use what you remember about the caller where it helps, as someone would who knows them."
)
FALLBACK: Final = "I'm sorry, I can't think just now. Please say that again in a moment."
HISTORY_MESSAGES: Final = 100
PROMPTS_LIMIT: Final = 20
UNSTORED_LIMIT: Final = 100
"""Turns of a call that wait while the journal takes none; the page can repeat refused words."""
HEARD_S: Final = 120.0
REPLY_TO: Final = "reply-"


class SendToPage(Protocol):
    """Sends frames to the page."""

    def __call__(self, kind: str, **fields: object) -> Awaitable[None]:
        """Send a frame. It is no error if the page has gone."""
        ...


class ConsoleCall:
    """One call of an open page; it is the `Listener` of its `LiveCall`.

    Args:
        key: Key of the call.
        send: Sends a frame to the page.
        look: Tells the session that there is newer memory; returns at once.
        llm: Who replies.
        waits: What a prompt may wait for memory.
        tasks: Where replies run.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        key: str,
        send: SendToPage,
        llm: Llm,
        *,
        look: Callable[[], None],
        waits: Waits,
        tasks: TaskGroup,
        clock: Callable[[], float],
    ) -> None:
        self.key = key
        self.live: LiveCall | None = None
        self._send = send
        self._look = look
        self._llm = llm
        self._waits = waits
        self._tasks = tasks
        self._clock = clock
        self._history: list[dict[str, str]] = []
        self._said: set[str] = set()
        self._stored: set[str] = set()
        self._unstored: dict[str, Turn] = {}
        self._replies: dict[str, Turn] = {}
        self._prompts: dict[str, list[dict[str, Any]]] = {}
        self._seq = 0
        self._reply: _Reply | None = None

    # What the listener of a call hears -----------------------------------------------------

    def on_memory(self, view: MemoryView, *, newest: bool) -> None:
        """See `sidecar.calls.Listener`."""
        self._look()

    def on_guidance(self, text: str) -> None:
        """See `sidecar.calls.Listener`. It is read at the prompt."""

    def on_say(self, text: str) -> None:
        """See `sidecar.calls.Listener`."""
        self._tasks.start_soon(self._speak, text)

    def on_hang_up(self) -> None:
        """See `sidecar.calls.Listener`."""
        self._tasks.start_soon(self._hang_up)

    # ---------------------------------------------------------------------------------------

    @property
    def on_the_line(self) -> bool:
        """Whether the call is live, and this page holds it."""
        return self.live is not None and not self.live.closed and self.live.listener is self

    def begin(self, live: LiveCall, turns: Sequence[Turn]) -> None:
        """Go on from what is stored of the call."""
        self.live = live
        for turn in turns:
            role = "user" if turn.speaker == "caller" else "assistant"
            self._history.append({"role": role, "content": turn.text})
            self._said.add(turn.item_id)
            self._stored.add(turn.item_id)
            if turn.speaker == "agent":
                self._replies[turn.item_id.removeprefix(REPLY_TO)] = turn
        self._seq = len(turns)

    async def say(self, turn: str, text: str, *, aloud: bool) -> None:
        """Store the caller's words, and answer them.

        Args:
            turn: The browser's id of these words; the same id again is neither stored nor answered
                a second time.
            text: The words.
            aloud: The page reads the reply out, and `heard` is called when that is done.
        """
        live = self.live
        if live is None or not self.on_the_line:
            await self._send("error", call=self.key, message="start a call first")
            return
        if self._reply is not None and self._reply.turn == turn and not self._reply.over.is_set():
            return
        arrived_s = self._clock()
        before = self._replies.get(turn)
        if before is None:
            await self.stop()
        if turn not in self._said:
            if len(self._unstored) >= UNSTORED_LIMIT:
                await self._store(live)  # it tells the page why it fails
            if len(self._unstored) >= UNSTORED_LIMIT:
                return
            self._said.add(turn)
            self._history.append({"role": "user", "content": text})
        await self._record(live, turn, "caller", text)
        store_s = self._clock() - arrived_s
        if before is not None:
            await self._send("turn", call=self.key, turn=turn, stored=turn in self._stored)
            await self._tell_reply(turn, before.text, interrupted=before.interrupted)
            return
        self._reply = _Reply(turn, aloud=aloud, store_s=store_s)
        self._tasks.start_soon(self._answer, live, self._reply)

    async def stop(self, *, heard_chars: int | None = None) -> None:
        """Cut the reply off, and wait until it is recorded, for at most 5 s.

        Args:
            heard_chars: How many characters of it were heard; None: all that was sent.
        """
        reply = self._reply
        if reply is not None:
            if heard_chars is not None and reply.heard_chars is None:
                reply.heard_chars = heard_chars
            reply.scope.cancel()
            with anyio.move_on_after(5.0):
                await reply.over.wait()
            self._reply = None

    def heard(self, turn: str) -> None:
        """The reply to a turn was read out to its end."""
        if self._reply is not None and self._reply.turn == turn:
            self._reply.heard.set()

    async def end(self, reason: str) -> None:
        """End the call, unless another page has taken it up."""
        await self.stop()
        if self.live is not None and self.on_the_line:
            await self._store(self.live)
            try:
                await self.live.close(reason)
            except SidecarError as error:
                await self._send("error", call=self.key, message=str(error))

    def prompt_of(self, turn: str) -> list[dict[str, Any]] | None:
        """Return the messages of the prompt that answered a turn; None when no longer there."""
        return self._prompts.get(turn)

    # ---------------------------------------------------------------------------------------

    async def _speak(self, text: str) -> None:
        live = self.live
        if live is None or not self.on_the_line:
            return
        await self.stop()
        turn = f"said-{uuid.uuid4()}"
        self._history.append({"role": "assistant", "content": text})
        await self._record(live, turn, "agent", text)
        stored = turn in self._stored
        await self._send("agent.said", call=self.key, turn=turn, text=text, stored=stored)

    async def _hang_up(self) -> None:
        await self.end("hung up by the sidecar")
        await self._send("call", call=self.key, live=False)

    async def _answer(self, live: LiveCall, reply: "_Reply") -> None:
        failed = False
        try:
            with reply.scope:
                try:
                    messages = await self._prompt(live, reply)
                    asked_s = self._clock()
                    async for piece in self._llm.stream(messages):
                        if not reply.text:
                            reply.timing["first_token_s"] = self._clock() - asked_s
                        reply.text += piece
                        await self._say_piece(reply, piece)
                    reply.timing["reply_s"] = self._clock() - asked_s
                except SidecarError as error:
                    failed = True
                    await self._send("error", call=self.key, message=str(error))
                    if not reply.text:
                        reply.text = FALLBACK
                        await self._say_piece(reply, FALLBACK)
                if reply.aloud:
                    await self._send("reply.spoken", call=self.key, turn=reply.turn)
                    with anyio.move_on_after(HEARD_S):
                        await reply.heard.wait()
            cut = reply.scope.cancelled_caught
            text = (reply.text[: reply.heard_chars] if cut else reply.text).strip()
            interrupted = cut or (failed and text != FALLBACK)
            with anyio.CancelScope(shield=True):
                await self._record_reply(live, reply, text, interrupted=interrupted)
        finally:
            reply.over.set()

    async def _say_piece(self, reply: "_Reply", piece: str) -> None:
        await self._send("reply.delta", call=self.key, turn=reply.turn, text=piece)

    async def _record_reply(
        self, live: LiveCall, reply: "_Reply", text: str, *, interrupted: bool
    ) -> None:
        if text:
            self._history.append({"role": "assistant", "content": text})
            await self._record(
                live,
                REPLY_TO + reply.turn,
                "agent",
                text,
                interrupted=interrupted,
                metrics=reply.metrics,
            )
        await self._tell_reply(
            reply.turn, text, interrupted=interrupted, timing=reply.timing, memory=reply.memory
        )

    async def _tell_reply(
        self, turn: str, text: str, *, interrupted: bool, **measured: object
    ) -> None:
        await self._send(
            "reply.end",
            call=self.key,
            turn=turn,
            text=text,
            interrupted=interrupted,
            stored=REPLY_TO + turn in self._stored,
            **measured,
        )

    async def _prompt(self, live: LiveCall, reply: "_Reply") -> list[dict[str, Any]]:
        wait_s = await live.ready(self._waits)
        began_s = self._clock()
        del self._history[:-HISTORY_MESSAGES]
        memory = live.memory
        age = age_s(memory.read_at_s, now_s=began_s) if memory.read_at_s else None
        reply.metrics = prompt_metrics(memory.served, age_s=age, wait_s=wait_s)
        messages = prompt_of(self._history, guidance=live.guidance.text, memory=memory.text)
        reply.memory = {"served": memory.served, "age_s": age, "version": memory.version}
        reply.timing |= {"memory_wait_s": wait_s, "prompt_s": self._clock() - began_s}
        self._prompts[reply.turn] = messages
        while len(self._prompts) > PROMPTS_LIMIT:
            del self._prompts[next(iter(self._prompts))]
        return messages

    async def _record(
        self,
        live: LiveCall,
        item_id: str,
        speaker: Speaker,
        text: str,
        *,
        interrupted: bool = False,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Make a turn durable, after those that could not be stored before it."""
        if item_id not in self._stored and item_id not in self._unstored:
            self._seq += 1
            turn = Turn(
                live.key,
                item_id,
                self._seq,
                speaker,
                text,
                self._clock(),
                interrupted,
                metrics or {},
            )
            self._unstored[item_id] = turn
            if speaker == "agent":
                self._replies[item_id.removeprefix(REPLY_TO)] = turn
        await self._store(live)

    async def _store(self, live: LiveCall) -> None:
        turns = tuple(self._unstored.values())
        if not turns:
            return
        try:
            await live.record(turns)
        except SidecarError as error:
            await self._send("error", call=self.key, message=str(error))
            return
        for turn in turns:
            self._stored.add(turn.item_id)
            self._unstored.pop(turn.item_id, None)
            if turn.speaker == "caller":
                await self._send("turn", call=self.key, turn=turn.item_id, stored=True)


def prompt_of(
    history: Sequence[dict[str, str]], *, guidance: str, memory: str
) -> list[dict[str, Any]]:
    """Return the messages of a prompt: the page's instructions, the history, guidance, memory."""
    rules = {"role": "system", "content": SYSTEM}
    return placed_in_chat([rules, *history], guidance=guidance, memory=memory)


class _Reply:
    """One reply on its way."""

    def __init__(self, turn: str, *, aloud: bool, store_s: float) -> None:
        self.turn = turn
        self.aloud = aloud
        self.text = ""
        self.heard_chars: int | None = None
        self.heard = anyio.Event()
        self.over = anyio.Event()
        self.scope = anyio.CancelScope()
        self.timing: dict[str, float] = {"store_s": store_s}
        self.metrics: dict[str, float] = {}
        self.memory: dict[str, Any] = {}
