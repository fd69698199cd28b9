"""Nothing that is sent to the sidecar makes it fail: every field of every route and frame, fuzzed.

`FUZZ_S=600 FUZZ_SEED=7 pytest tests/e2e/test_fuzz.py` hunts for ten minutes with other inputs.
"""

import itertools
import json
import os
import random
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.fuzz.inputs import Raw, cases, minimised, text_of
from tests.fuzz.peers import PAGE_CALL, Log, Peer, Route, link, page, raw_of
from tests.sidecar_process import SidecarProcess, get
from tests.vapi import bodies
from tests.vapi.model import Model

pytestmark = pytest.mark.e2e

SEED = int(os.environ.get("FUZZ_SEED", "1"))
SLICE_S = float(os.environ.get("FUZZ_S", "20"))
KEY, SECRET = "key-0123456789abcdef", "secret-0123456789abcdef"
LINK_TOKEN = "link-0123456789abcdef"
CALL = "call-of-the-fuzzer"

WEBHOOK = {name: {"message": sent.message} for name, sent in bodies.SENT.items()}
CHAT = {
    "stream": bodies.model_request(stream=True),
    "whole": bodies.model_request(stream=False),
    "parts and tools": bodies.model_request(
        stream=False,
        messages=[
            {"role": "system", "content": [{"type": "text", "text": "You are Ada."}]},
            {"role": "user", "content": [{"type": "text", "text": "Which dog?"}]},
            {"role": "assistant", "content": None, "tool_calls": [bodies.TOOL_CALL]},
            {"role": "tool", "tool_call_id": "call_9f2", "content": "Rex"},
        ],
        tool_choice="auto",
        response_format={"type": "json_object"},
    ),
}
# Read by the sidecar, though none of the bodies has them.
ALSO = [
    "lettaCaller",
    "lettaAgentId",
    "lettaConsent",
    "letta_caller",
    "metadata",
    "stamp",
    "timestamp",
    "role",
    "content",
    "text",
    "message",
    "customer",
    "toolCalls",
    "arguments",
    "parameters",
    "id",
    "query",
    "type",
    "status",
]
LINK = {
    "hello": {"type": "hello", "worker": "w1", "version": "1"},
    "call.open": {
        "type": "call.open",
        "call": CALL,
        "channel": "livekit",
        "hints": {"caller": "bob", "phone": "", "identity": "", "agent_id": "", "consent": ""},
        "opened_at_s": 1.0,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    },
    "speech.started": {"type": "speech.started", "call": CALL, "traceparent": ""},
    "turn": {
        "type": "turn",
        "call": CALL,
        "item": "i1",
        "seq": 1,
        "speaker": "caller",
        "text": "My dog is called Rex.",
        "at_s": 1.0,
        "interrupted": False,
        "metrics": {"e2e_latency": 0.5, "memory_served_fresh": 1.0},
        "traceparent": "",
    },
    "call.close": {"type": "call.close", "call": CALL, "at_s": 2.0, "reason": "hung up"},
}
PAGE = {
    kind: {"type": kind, **fields}
    for kind, fields in {
        "call.start": {"call": PAGE_CALL, "caller": "Ada", "consent": "yes"},
        "speech.started": {"call": f"default/{PAGE_CALL}"},
        "say": {"call": f"default/{PAGE_CALL}", "turn": "t1", "text": "My dog is Rex."},
        "reply.stop": {"call": f"default/{PAGE_CALL}", "heard_chars": 5},
        "reply.heard": {"call": f"default/{PAGE_CALL}", "turn": "t1"},
        "prompt.show": {"call": f"default/{PAGE_CALL}", "turn": "t1"},
        "call.watch": {"call": f"default/{PAGE_CALL}"},
        "outbox.replay": {"batch": "b1"},
        "plug": {"pulled": False},
        "kill": {},
        "call.end": {"call": f"default/{PAGE_CALL}"},
    }.items()
}


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    with Model(say="All right.") as model:
        env = {
            "LLM_BASE_URL": f"{model.url}/v1",
            "LLM_MODEL": "demo",
            "SIDECAR_VAPI_KEY": KEY,
            "SIDECAR_VAPI_SECRET": SECRET,
            "SIDECAR_LINK_TOKEN": LINK_TOKEN,
            "SIDECAR_VAPI_RATE_PER_S": "100000",
            "SIDECAR_VAPI_FALLBACK_S": "2",
            "SIDECAR_LOG_LEVEL": "warning",
        }
        with SidecarProcess(tmp_path_factory.mktemp("fuzz") / "data", env) as process:
            yield process


def json_route(process: SidecarProcess, path: str, bearer: str) -> Route:
    headers = {"content-type": "application/json", "authorization": f"Bearer {bearer}"}
    return Route(process, path, headers)


def control_token(process: SidecarProcess) -> str:
    return json.loads((process.data_dir / "control.json").read_text())["token"]


def of_another_call(document: object, number: int) -> object:
    """Use another call for every thirty inputs, so that a spoilt call does not hide faults."""
    return Raw(text_of(document).replace(bodies.CALL_ID, f"fuzz-{SEED}-{number // 30}"))


def hunted(
    peer: Peer,
    documents: dict[str, object],
    process: SidecarProcess,
    *,
    share: float,
    least: int,
    also: Sequence[str] = (),
) -> None:
    """Send inputs for a share of the time, at least `least`; fail with the smallest faulty one."""
    log = Log(process)
    log.fault()
    until_s = time.monotonic() + SLICE_S * share
    try:
        for sent, (name, document) in enumerate(cases(documents, SEED, also=also)):
            if sent >= least and time.monotonic() > until_s:
                break
            answered = peer.send(raw_of(of_another_call(document, sent)))
            fault = answered or log.fault()
            if fault:
                by_log = not answered

                def fails(candidate: object, number: int = sent, by_log: bool = by_log) -> bool:
                    log.fault()  # from the input before
                    answered = peer.send(raw_of(of_another_call(candidate, number)))
                    return bool(log.fault() if by_log else answered)

                smallest = minimised(document, fails) if fails(document) else document
                shown = text_of(smallest)[:3_000]
                pytest.fail(f"seed {SEED}, input {sent}, {name}: {fault}\nsmallest input: {shown}")
    finally:
        peer.close()
    assert get(f"{process.url}/readyz")[0] == 200


def test_no_vapi_message_is_too_strange(sidecar: SidecarProcess) -> None:
    """Any type, size or nesting in any field of a server message causes no fault."""
    peer = json_route(sidecar, "/vapi/webhook", SECRET)
    hunted(peer, dict(WEBHOOK), sidecar, share=0.4, least=100, also=ALSO)


def test_no_request_to_the_model_is_too_strange(sidecar: SidecarProcess) -> None:
    """Any value in any field of a chat completion causes no error, which would end the call."""
    peer = json_route(sidecar, "/vapi/chat/completions", KEY)
    hunted(peer, dict(CHAT), sidecar, share=0.25, least=50, also=ALSO)


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_no_frame_of_a_worker_is_too_strange(sidecar: SidecarProcess, first: bool) -> None:
    """Any value in any field of a link frame is refused or accepted, and the link goes on."""
    peer = link(sidecar, first=first, bearer=LINK_TOKEN)
    hunted(peer, dict(LINK), sidecar, share=0.05 if first else 0.1, least=50)


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_no_frame_of_a_page_is_too_strange(sidecar: SidecarProcess, first: bool) -> None:
    """Any value in any field of a page's frame causes no fault, in its first frame as well."""
    documents: dict[str, object] = {**PAGE}
    if first:
        documents = {"hello": {"type": "hello", "token": "x"}}
    share = 0.05 if first else 0.1
    hunted(page(sidecar, first=first), documents, sidecar, share=share, least=50)


def test_no_order_of_an_operator_is_too_strange(sidecar: SidecarProcess) -> None:
    """Any value in any field of a body to `/admin` causes no fault."""
    token = control_token(sidecar)
    asked = {
        "/admin/command": {"call": CALL, "command": "guide", "text": "Be brief."},
        "/admin/forget": {"tenant": "default", "caller_key": "0" * 32, "really": False},
        "/admin/outbox/none/replay": {},
    }
    for path, document in asked.items():
        peer = json_route(sidecar, path, token)
        for (_, wrong), _number in zip(cases({path: document}, SEED), range(120), strict=False):
            fault = peer.send(raw_of(wrong))
            assert not fault, f"{path}: {fault}: {text_of(wrong)[:500]}"
        peer.close()


def test_no_bytes_are_too_strange(sidecar: SidecarProcess) -> None:
    """Cut, flipped and foreign bytes in place of any body cause no fault."""
    dice = random.Random(SEED)
    log = Log(sidecar)
    log.fault()
    token = control_token(sidecar)
    routes = [
        (json_route(sidecar, "/vapi/webhook", SECRET), list(WEBHOOK.values())),
        (json_route(sidecar, "/vapi/chat/completions", KEY), list(CHAT.values())),
        (json_route(sidecar, "/admin/forget", token), [{"tenant": "default", "caller_key": "0"}]),
    ]
    for number in range(300):
        route, documents = routes[number % len(routes)]
        raw = bytearray(raw_of(dice.choice(documents)))
        for _ in range(dice.randint(1, 5)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        if dice.random() < 0.3:
            del raw[dice.randrange(len(raw)) :]
        fault = route.send(bytes(raw)) or log.fault()
        assert not fault, f"{route.path}: {fault}: {bytes(raw)!r}"
    for route, _ in routes:
        route.close()


HEADERS = (
    *(
        ("/vapi/webhook", {"x-signature": signature, "x-timestamp": stamp})
        for signature, stamp in itertools.product(
            ("", "x", "00" * 32, "sha256=" + "zz" * 32, "\xe9", "=" * 44, "A" * 5_000),
            (
                "",
                "x",
                "nan",
                "inf",
                "-inf",
                "1e999",
                "0",
                "-1",
                "9" * 500,
                "\u0661".encode().decode("latin-1"),
            ),
        )
    ),
    *(
        (path, {"authorization": value})
        for path, value in itertools.product(
            ("/vapi/webhook", "/vapi/chat/completions", "/admin/forget", "/admin/status"),
            (
                "",
                "Bearer",
                "Bearer ",
                "Bearer \xe9",
                "\xff\xfe",
                "Basic eDp5",
                "bearer " + "a" * 8_000,
            ),
        )
    ),
    *(
        ("/vapi/chat/completions", {"authorization": f"Bearer {KEY}", name: value})
        for name, value in (
            ("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"),
            ("traceparent", "\xe9" * 55),
            ("content-type", "\xff"),
            ("content-encoding", "gzip"),
            ("origin", "null"),
            ("host", ""),
            ("host", "a" * 5_000),
            ("forwarded", "for=\xe9"),
            ("x-forwarded-for", "1.2.3.4, \xe9"),
        )
    ),
    *(
        ("/console/ws", {"host": value, "origin": value})
        for value in ("", "\xe9", "http://[::1", "http://\u0663")
        if value.isascii() or value == "\xe9"
    ),
)


def test_no_header_is_too_strange(sidecar: SidecarProcess) -> None:
    """Invalid secrets, signatures, times and traceparents in headers cause no fault."""
    log = Log(sidecar)
    log.fault()
    body = raw_of(CHAT["whole"])
    for path, headers in HEADERS:
        route = Route(sidecar, path, headers)
        fault = route.send(body) or log.fault()
        route.close()
        assert not fault, f"{path} {headers}: {fault}"


PATHS = ("%00", "%ff", "%ed%a0%80", "a" * 10_000, "..", "%2e%2e%2f", "%0a", "'--", "%", "%zz")


def test_no_path_is_too_strange(sidecar: SidecarProcess) -> None:
    """Unknown batches, files and routes, and every method on every route, cause no fault."""
    log = Log(sidecar)
    log.fault()
    bearer = {"authorization": f"Bearer {control_token(sidecar)}"}
    paths = [f"/admin/outbox/{name}/{what}" for name in PATHS for what in ("replay", "drop")]
    known = ["/readyz", "/livez", "/metrics", "/openapi.json", "/", "/vapi/webhook", "/link"]
    known += ["/vapi/chat/completions", "/admin/status", "/admin/forget", "/console/ws"]
    paths += [f"/{name}" for name in PATHS] + [f"{path}/" for path in known]
    asked = [("POST", path) for path in paths]
    methods = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE")
    asked += [(method, path) for method in methods for path in known]
    for method, path in asked:
        route = Route(sidecar, path, bearer, method)
        fault = route.send(b"{}") or log.fault()
        route.close()
        assert not fault, f"{method} {path[:200]}: {fault}"


def test_the_hunt_finds_and_shrinks_a_fault() -> None:
    """A peer that fails on a list in one field is found, and reduced to that field alone."""

    class Weak:
        def send(self, raw: bytes) -> str:
            try:
                customer = json.loads(raw)["message"]["customer"]["number"]
            except (ValueError, KeyError, TypeError, RecursionError):
                return ""
            return "status 500" if isinstance(customer, list) and customer else ""

    documents = {name: body for name, body in WEBHOOK.items() if name == "hang"}
    found = next(
        document
        for _, document in itertools.islice(cases(documents, SEED), 5_000)
        if Weak().send(raw_of(document))
    )
    smallest = minimised(found, lambda candidate: bool(Weak().send(raw_of(candidate))))
    shown = text_of(smallest)
    assert shown.startswith('{"message":{"customer":{"number":[')
    assert len(shown) < 60


def test_a_seed_says_what_is_sent() -> None:
    """The same seed gives the same inputs, and another seed gives others."""

    def first(seed: int) -> list[str]:
        return [text_of(one) for _, one in itertools.islice(cases(dict(WEBHOOK), seed), 500)]

    assert first(3) == first(3)
    assert first(3) != first(4)
