"""Spans, as the parts see them: no part but `sidecar/otel.py` knows OpenTelemetry.

A span is named by its W3C `traceparent` (https://www.w3.org/TR/trace-context/, version 00), a
string that goes over the link, is stored with a turn in the journal and is sent to the language
model. Without an exporter, `NO_TRACES` makes no spans and passes on what came in.

Names of attributes are those of OpenTelemetry's GenAI conventions (`gen_ai.*`, of the registry in
opentelemetry-semantic-conventions 0.66b2) if there is one, else `sidecar.*`. Callers' words are
only in `TEXT`, which an exporter gets if the owner opted in.
"""

import re
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Final, Literal, Protocol, Self, TypeAlias

Value: TypeAlias = str | bool | int | float
Kind: TypeAlias = Literal["internal", "client", "server"]

TEXT: Final = "sidecar.pii.text"
"""Words of a caller or of the agent; LiveKit's own filter recognises the `pii` in it, too."""
CONVERSATION: Final = "gen_ai.conversation.id"
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Span(Protocol):
    """One piece of work. Nothing here waits or raises; as a context manager it ends itself."""

    @property
    def traceparent(self) -> str:
        """Names this span to others; with no traces, what was given as its parent."""
        ...

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """Add attributes; one that is None is left out."""
        ...

    def end(self, *, error: str = "") -> None:
        """End the span. Only the first end counts.

        Args:
            error: The type of what went wrong, never its text; empty: nothing did.
        """
        ...

    def __enter__(self) -> Self:
        """Return the span."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        """End the span; an exception is recorded by its type alone."""
        ...


class Tracer(Protocol):
    """Makes spans."""

    def start(
        self,
        name: str,
        *,
        parent: str = "",
        kind: Kind = "internal",
        links: Iterable[str] = (),
        attributes: Mapping[str, Value | None] | None = None,
        start_s: float | None = None,
        inside: bool = False,
    ) -> Span:
        """Start a span.

        Args:
            name: One of few; no id is part of it.
            parent: `traceparent` of the span it belongs to; empty or wrong: it starts a trace.
            kind: Whether it waits for another service, or serves one.
            links: `traceparent`s of related spans.
            attributes: Those that are known by now.
            start_s: Unix time at which it began, by default now.
            inside: It belongs to the span that is current in this task, if there is one.
        """
        ...

    def make_current(self, span: Span) -> None:
        """Make spans of other libraries, started later in this task, belong to this one."""
        ...


class _Passing:
    """No span: its parent's name is passed on, so that a trace goes through an untraced part."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def set(self, attributes: Mapping[str, Value | None]) -> None: ...

    def end(self, *, error: str = "") -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


class _NoTraces:
    def start(
        self,
        name: str,
        *,
        parent: str = "",
        kind: Kind = "internal",
        links: Iterable[str] = (),
        attributes: Mapping[str, Value | None] | None = None,
        start_s: float | None = None,
        inside: bool = False,
    ) -> Span:
        return _Passing(traceparent_or_empty(parent))

    def make_current(self, span: Span) -> None: ...


NO_TRACES: Final[Tracer] = _NoTraces()


def traceparent_or_empty(raw: str) -> str:
    """Return a well-formed `traceparent` as it is, and any other text as empty, not an error."""
    return raw if _TRACEPARENT.fullmatch(raw) else ""
