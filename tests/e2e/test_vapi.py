"""VAPI: recorded calls, faults and intruders against the real process over HTTP."""

import hashlib
import hmac
import http.client
import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

from benchmarks.processes import LettaProcess
from examples.vapi.play import Heard, Player
from sidecar.journal.sqlite.reports import reports_of_file
from tests.sidecar_process import SidecarProcess, eventually
from tests.vapi.model import Model

pytestmark = pytest.mark.e2e

CALLS = Path(__file__).parents[2] / "examples" / "vapi" / "calls"
KEY, OLD_KEY = "key-new-0123456789", "key-old-0123456789"
SECRET, OLD_SECRET = "secret-new-0123456789", "secret-old-0123456789"
ADA = "+14155550123"
SYSTEM = {"role": "system", "content": "You are Ada."}


@pytest.fixture(scope="module")
def running_model() -> Iterator[Model]:
    with Model() as model:
        yield model


@pytest.fixture
def model(running_model: Model) -> Model:
    """A model without faults and without earlier requests."""
    running_model.begin_anew()
    return running_model


def settings(model: Model, **more: str) -> dict[str, str]:
    return {
        "LLM_BASE_URL": f"{model.url}/v1",
        "LLM_MODEL": "demo",
        "SIDECAR_VAPI_FALLBACK_S": "1",
        **more,
    }


@pytest.fixture
def sidecar(tmp_path: Path, model: Model) -> Iterator[SidecarProcess]:
    keys = {
        "SIDECAR_VAPI_KEY": f"{KEY},{OLD_KEY}",
        "SIDECAR_VAPI_SECRET": f"{SECRET},{OLD_SECRET}",
        "SIDECAR_VAPI_MODELS": "gpt-4o-mini",
    }
    with SidecarProcess(tmp_path / "data", settings(model, **keys)) as process:
        yield process


def player(sidecar: SidecarProcess) -> Player:
    return Player(sidecar.url, key=KEY, secret=SECRET, speed=0, say=lambda _: None)


def post(
    sidecar: SidecarProcess, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=20)
    try:
        connection.request("POST", path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def body(text: str = "Hello", *, call_id: str = "call-1", **more: object) -> dict[str, Any]:
    call = {"id": call_id, "type": "inboundPhoneCall", "customer": {"number": ADA}}
    return {
        "model": "gpt-4o-mini",
        "messages": [SYSTEM, {"role": "user", "content": text}],
        "stream": True,
        "call": call,
        "customer": {"number": ADA},
        "metadata": {"numUserTurns": 1},
        "phoneNumber": {"number": "+14155550199"},
        "timestamp": int(time.time() * 1_000),
        **more,
    }


def ask(
    sidecar: SidecarProcess,
    asked: Mapping[str, Any],
    *,
    key: str = KEY,
    path: str = "/vapi/chat/completions",
) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return post(sidecar, path, json.dumps(asked).encode(), headers)


def spoken(stream: bytes) -> str:
    """What a client hears; fails on a frame that would end a call."""
    text = ""
    frames = [frame for frame in stream.split(b"\n\n") if frame.strip()]
    assert frames[-1].strip() == b"data: [DONE]"
    for frame in frames[:-1]:
        chunk = json.loads(frame.strip().removeprefix(b"data:"))
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
    return text


def tell(
    sidecar: SidecarProcess,
    kind: str,
    *,
    call_id: str = "call-1",
    secret: str = SECRET,
    **more: Any,
) -> tuple[int, Any]:
    call = {"id": call_id, "type": "inboundPhoneCall", "customer": {"number": ADA}}
    message = {"type": kind, "timestamp": int(time.time() * 1_000), "call": call, **more}
    headers = {"x-vapi-secret": secret, "Content-Type": "application/json"}
    status, raw = post(sidecar, "/vapi/webhook", json.dumps({"message": message}).encode(), headers)
    return status, json.loads(raw)


def until_refused(sidecar: SidecarProcess, *, call_id: str = "") -> int:
    """Ask, in one call or in new ones, until a budget is used up; return the number of replies."""
    key = KEY if call_id == "" else sidecar.link_token
    for number in range(60):
        asked = body("Hello", call_id=call_id or f"until-{number}")
        if "call again later" in spoken(ask(sidecar, asked, key=key)[1]):
            assert number
            return number
    raise AssertionError("no budget was used up")


def report(sidecar: SidecarProcess, *lines: tuple[str, str], call_id: str = "call-1") -> int:
    messages = [{"role": role, "message": text} for role, text in lines]
    artifact = {"messages": messages}
    return tell(sidecar, "end-of-call-report", call_id=call_id, artifact=artifact)[0]


def history_of(lines: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """A history as requests to the model have it."""
    roles = {"user": "user", "bot": "assistant"}
    return [SYSTEM, *({"role": roles[role], "content": text} for role, text in lines)]


def stored(sidecar: SidecarProcess, call_id: str = "call-1") -> list[str]:
    """The texts that the journal on disk has of a call, with their notes."""

    async def texts() -> list[str]:
        async with reports_of_file(sidecar.data_dir / "journal.db") as reports:
            return [turn.text for turn in await reports.turns(f"default/{call_id}")]

    return anyio.run(texts)


def signed_status(sidecar: SidecarProcess, call_id: str, at_s: float) -> int:
    """Send a request for an assistant, signed with this time; return the status."""
    call = {"id": call_id, "type": "inboundPhoneCall", "customer": {"number": ADA}}
    raw = json.dumps({"message": {"type": "assistant-request", "call": call}}).encode()
    stamp = str(int(at_s))
    mac = hmac.new(SECRET.encode(), stamp.encode() + b"." + raw, hashlib.sha256)
    return post(
        sidecar, "/vapi/webhook", raw, {"x-signature": mac.hexdigest(), "x-timestamp": stamp}
    )[0]


class TestRecordedCalls:
    def test_who_calls_again_is_remembered(self, sidecar: SidecarProcess, model: Model) -> None:
        """In two recorded calls of one number, the second prompt holds what the first one said."""
        first = json.loads((CALLS / "first-call.json").read_text())
        second = json.loads((CALLS / "second-call.json").read_text())
        heard = player(sidecar).play(first)
        assert {one.status for one in heard} <= {200, 0}
        eventually(lambda: sidecar.undelivered() == 0)
        again: list[Heard] = player(sidecar).play(second)
        assert "Rex" in "".join(one.text for one in again)
        prompt = model.prompts()[-1]
        assert prompt["messages"][-2]["content"].startswith("<memory-")
        assert "Rex" in prompt["messages"][-2]["content"]

    def test_what_vapi_adds_does_not_reach_the_model(
        self, sidecar: SidecarProcess, model: Model
    ) -> None:
        """The model's server gets no number, call or metadata, and only an allowed model."""
        asked = body("Hello", lettaAgentId="x", max_tokens=99_999, tools=[], n=7)
        assert ask(sidecar, asked)[0] == 200
        (prompt,) = model.prompts()
        assert set(prompt) <= {"model", "messages", "stream", "max_tokens", "tools"}
        assert prompt["model"] == "gpt-4o-mini"
        assert prompt["max_tokens"] == 1_024
        ask(sidecar, body("Hello", model="the-dearest-there-is"))
        assert model.prompts()[-1]["model"] == "demo"

    def test_the_doubled_suffix_and_whole_answers(self, sidecar: SidecarProcess) -> None:
        """A base URL that already has the suffix works, and so does a reply in one piece."""
        doubled = "/vapi/chat/completions/chat/completions"
        assert "Ada" in spoken(ask(sidecar, body("My name is Ada."), path=doubled)[1])
        status, raw = ask(sidecar, body("My name is Ada.", stream=False))
        assert status == 200
        assert "Ada" in json.loads(raw)["choices"][0]["message"]["content"]

    def test_a_call_without_an_id_has_nobodys_memory(
        self, sidecar: SidecarProcess, model: Model
    ) -> None:
        """With metadataSendMode off a request is answered without memory, logged and not stored."""
        anonymous = {k: v for k, v in body("My dog is Rex.").items() if k in {"messages", "stream"}}
        assert spoken(ask(sidecar, anonymous)[1])
        assert len(model.prompts()[-1]["messages"]) == 2
        eventually(lambda: sidecar.has_logged("vapi_call_unnamed"))
        assert sidecar.readiness()["live_calls"] == 0

    def test_another_number_in_the_same_call_gets_nothing(
        self, sidecar: SidecarProcess, model: Model
    ) -> None:
        """A body that names another caller than its call has is served without memory."""
        ask(sidecar, body("My dog is called Rex."))
        report(sidecar, ("user", "My dog is called Rex."))
        eventually(lambda: sidecar.undelivered() == 0)
        ask(sidecar, body("Hi", call_id="call-2"))
        assert "Rex" in model.prompts()[-1]["messages"][-2]["content"]
        ask(sidecar, body("Hi", call_id="call-2", customer={"number": "+14155550124"}))
        assert "Rex" not in json.dumps(model.prompts()[-1])

    def test_whose_a_call_is_and_what_it_hears(self, sidecar: SidecarProcess, model: Model) -> None:
        """A caller named late gets all of its words, and a body that names nobody no memory."""
        ask(sidecar, body("My dog is called Rex."))
        report(sidecar, ("user", "My dog is called Rex."))
        # A kill would leave a batch in doubt for longer than this test waits.
        eventually(lambda: sidecar.undelivered() == 0)
        nobody: dict[str, Any] = {"id": "call-2", "type": "inboundPhoneCall"}
        history = history_of((("user", "I live in Lyon."), ("bot", "nice"), ("user", "Hm.")))
        for killed in (False, True):
            if killed:
                sidecar.kill()
                sidecar.start()
            tell(sidecar, "conversation-update", call=nobody, messages=history)
            ask(sidecar, body(messages=history, call=nobody, customer={}))
            assert "Rex" not in json.dumps(model.prompts()[-1])
        for spelled in (ADA, "+1 (415) 555-0123", "4155550123", "sip:+14155550123@carrier.example"):
            named = body(messages=history, call=nobody, customer={"number": spelled})
            ask(sidecar, named)
            assert "Rex" in model.prompts()[-1]["messages"][-2]["content"]
        eventually(lambda: len(stored(sidecar, "call-2")) == 2)
        ask(sidecar, body(messages=history, call=nobody, customer={}))
        assert "Rex" not in json.dumps(model.prompts()[-1])
        lines = (("user", "I live in Lyon."), ("bot", "nice"), ("user", "Hm."))
        assert report(sidecar, *lines, call_id="call-2") == 200
        eventually(lambda: sidecar.undelivered() == 0)
        ask(sidecar, body("Where do I live?", call_id="call-3"))
        assert "Lyon" in model.prompts()[-1]["messages"][-2]["content"]

    def test_what_no_history_holds_is_stored(self, tmp_path: Path, model: Model) -> None:
        """Without a report, a greeting, a final transcript and a voicemail are stored."""
        keys = {
            "SIDECAR_VAPI_KEY": KEY,
            "SIDECAR_VAPI_SECRET": SECRET,
            "SIDECAR_VAPI_REPORT_S": "1",
        }
        with SidecarProcess(tmp_path / "data", settings(model, **keys)) as process:
            greeting = spoken(ask(process, body(messages=[SYSTEM]))[1])
            said = {"role": "user", "transcript": "And I live in Lyon."}
            kind = "transcript[transcriptType='final']"
            assert tell(process, kind, timestamp=0, **said) == (200, {})
            tell(process, "status-update", status="ended")
            ask(process, body(messages=history_of((("user", "Hello."),)), call_id="call-2"))
            ended = {"status": "ended", "endedReason": "voicemail"}
            tell(process, "status-update", call_id="call-2", **ended)
            eventually(lambda: process.readiness()["live_calls"] == 0)
            assert greeting in stored(process)[0]
            assert stored(process)[-1] == "And I live in Lyon."
            assert stored(process, "call-2")[0].startswith("[a voicemail's greeting")

    def test_a_call_survives_a_kill(self, sidecar: SidecarProcess) -> None:
        """A call goes on after a kill, and its report stores every word once."""
        ask(sidecar, body("My name is Ada."))
        history = [
            SYSTEM,
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "hello ada"},
            {"role": "user", "content": "I live in Lyon."},
        ]
        ask(sidecar, body(messages=history))
        eventually(lambda: sidecar.undelivered() == 2)
        sidecar.kill()
        sidecar.start()
        ask(sidecar, body(messages=history))
        lines = [
            ("user", "My name is Ada."),
            ("bot", "hello ada"),
            ("user", "I live in Lyon."),
            ("bot", "nice"),
        ]
        assert report(sidecar, *lines) == 200
        assert report(sidecar, *lines) == 200
        eventually(lambda: sidecar.undelivered() == 0)

    def test_a_reported_call_stays_as_reported(self, sidecar: SidecarProcess, model: Model) -> None:
        """Late requests and histories change no reported call, before or after a kill."""
        lines = (
            ("user", "My name is Ada."),
            ("bot", "hello ada"),
            ("user", "I live in Lyon."),
            ("bot", "nice"),
        )
        ask(sidecar, body(messages=history_of(lines[:3])))
        assert report(sidecar, *lines) == 200
        for killed in (False, True):
            if killed:
                sidecar.kill()
                sidecar.start()
            late = (*lines[:2], ("user", "I live in Oslo."), ("bot", "no"), ("user", "Bye."))
            for said in (lines[:1], lines[2:3], late):
                assert spoken(ask(sidecar, body(messages=history_of(said)))[1])
                tell(sidecar, "conversation-update", messages=history_of(said))
            eventually(lambda: sidecar.undelivered() == 0)
            assert sidecar.readiness()["live_calls"] == 0
            assert stored(sidecar) == [text for _, text in lines]


class TestFaultsOfTheModel:
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("faults", [{"fail": 1}, {"hang": True}, {"first_token_delay_s": 60.0}])
    def test_the_call_goes_on(
        self, sidecar: SidecarProcess, model: Model, faults: dict[str, object], stream: bool
    ) -> None:
        """If the model fails, hangs or is slow, the answer is 200 with a sentence to speak."""
        if not stream and "first_token_delay_s" in faults:
            faults = {"delay_s": 60.0}
        model.faults(**faults)
        status, raw = ask(sidecar, body("Hello", stream=stream))
        assert status == 200
        text = spoken(raw) if stream else json.loads(raw)["choices"][0]["message"]["content"]
        assert "lost my thread" in text
        model.faults(hang=False)

    def test_cut_in_the_middle(self, sidecar: SidecarProcess, model: Model) -> None:
        """A stream that breaks off ends with the fallback, and the turn is recorded."""
        model.faults(fail_mid_stream=1)
        text = spoken(ask(sidecar, body("My name is Ada."))[1])
        assert text.endswith("Could you say that again?")
        history = [
            SYSTEM,
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": text},
            {"role": "user", "content": "Sure."},
        ]
        ask(sidecar, body(messages=history))
        for event in ("reply_failed", "turn_recorded"):
            eventually(lambda event=event: sidecar.has_logged(event))

    def test_a_client_that_goes_ends_the_models_stream(
        self, sidecar: SidecarProcess, model: Model
    ) -> None:
        """When VAPI closes a request, the model's stream is closed and nothing of it is stored."""
        model.faults(token_delay_s=0.2)
        raw = json.dumps(body("My name is Ada and I live in Lyon.")).encode()
        connection = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=10)
        connection.request(
            "POST", "/vapi/chat/completions", raw, {"Authorization": f"Bearer {KEY}"}
        )
        connection.getresponse().readline()
        connection.sock.close() if connection.sock else None
        connection.close()
        eventually(lambda: any('"client gone"' in line for line in sidecar.log))
        assert sidecar.undelivered() == 0

    def test_longer_words_supersede(self, sidecar: SidecarProcess, model: Model) -> None:
        """A request with more of the caller's words ends the one before it."""
        model.faults(token_delay_s=0.3)
        raw = json.dumps(body("My name")).encode()
        connection = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=10)
        connection.request(
            "POST", "/vapi/chat/completions", raw, {"Authorization": f"Bearer {KEY}"}
        )
        response = connection.getresponse()
        response.readline()
        model.faults(token_delay_s=0.0)
        assert "Ada" in spoken(ask(sidecar, body("My name is Ada."))[1])
        response.read()
        connection.close()
        eventually(lambda: any('"superseded"' in line for line in sidecar.log))


class TestWebhooks:
    def test_every_type_is_acknowledged(self, sidecar: SidecarProcess) -> None:
        """Known and unknown message types get 200."""
        for kind in ("hang", "model-output", "session.created", "assistant.started", "from-2031"):
            assert tell(sidecar, kind) == (200, {})

    def test_tools_in_every_shape_once_per_id(self, sidecar: SidecarProcess) -> None:
        """`recall` answers every shape of call, and a repeated id gets the same answer."""
        ask(sidecar, body("My dog is called Rex."))
        shapes = [
            {
                "id": "a",
                "type": "function",
                "function": {"name": "recall", "arguments": '{"query":"dog"}'},
            },
            {
                "id": "b",
                "type": "function",
                "function": {"name": "recall", "arguments": {"query": "dog"}},
            },
            {"id": "c", "name": "recall", "parameters": {"query": "dog"}},
            {"id": "d", "name": "launchRockets", "arguments": "{"},
        ]
        status, answered = tell(sidecar, "tool-calls", toolCallList=shapes)
        assert status == 200
        results = {one["toolCallId"]: one for one in answered["results"]}
        assert all("Rex" in results[name]["result"] for name in "abc")
        assert "error" in results["d"]
        ask(sidecar, body("My dog is called Max."))
        assert tell(sidecar, "tool-calls", toolCallList=shapes[:1])[1]["results"] == [results["a"]]

    def test_archival_memory_is_looked_into(self, tmp_path: Path, model: Model) -> None:
        """The knowledge base and `recall` search Letta's archive, and prompts never do."""
        with LettaProcess() as letta:
            agent = letta.agent("shared", chars=100)
            letta.archive(agent, "Her boat is called Moewe.")
            env = settings(model, LETTA_BASE_URL=letta.url, SIDECAR_AGENT_ID=agent)
            with SidecarProcess(tmp_path / "data", env) as process:
                shown = {"secret": process.link_token}
                ask(process, body("Hello"), key=process.link_token)
                eventually(lambda: process.has_logged("memory_read"))
                assert not any('"archive_' in line for line in process.log)
                history = [{"role": "user", "message": "Which boat do I have?"}]
                answered = tell(process, "knowledge-base-request", messages=history, **shown)[1]
                (document,) = [d for d in answered["documents"] if "boat" in d["content"]]
                assert document["uuid"].startswith("passage-")
                call = {"id": "a", "name": "recall", "parameters": {"query": "boat"}}
                answered = tell(process, "tool-calls", toolCallList=[call], **shown)[1]
                assert '"archive", "text": "Her boat' in answered["results"][0]["result"]
                letta.fault({"reads": {"chances": {"hang": 1.0}}})
                history = [{"role": "user", "message": "And what is in my archive?"}]
                assert tell(process, "knowledge-base-request", messages=history, **shown)[0] == 200
                letta.fault({"reads": {"chances": {}}})

    def test_a_call_without_a_report_ends_by_itself(self, tmp_path: Path, model: Model) -> None:
        """Without a report, the last words are stored and the reply is marked as unconfirmed."""
        env = settings(model, SIDECAR_VAPI_REPORT_S="0.5", SIDECAR_LOG_TEXT="1")
        with SidecarProcess(tmp_path / "data", env) as process:
            ask(process, body("My name is Ada."), key=process.link_token)
            tell(process, "status-update", status="ended", secret=process.link_token)
            eventually(lambda: process.readiness()["live_calls"] == 0)
            eventually(lambda: process.undelivered() == 0)
            eventually(lambda: any("not confirmed as heard" in line for line in process.log))

    def test_an_assistant_request_does_not_wait_for_letta(
        self, tmp_path: Path, model: Model
    ) -> None:
        """With a Letta that hangs, assistant requests are answered without waiting for it."""
        hung = socket.socket()
        hung.bind(("127.0.0.1", 0))
        hung.listen()
        env = settings(
            model,
            LETTA_BASE_URL=f"http://127.0.0.1:{hung.getsockname()[1]}",
            SIDECAR_VAPI_ASSISTANT_ID="5b0a4a08",
            SIDECAR_READ_TIMEOUT_S="60",
        )
        with hung, SidecarProcess(tmp_path / "data", env) as process:
            for number in range(5):
                shown = {"call_id": f"call-{number}", "secret": process.link_token}
                status, answered = tell(process, "assistant-request", **shown)
                assert status == 200
                assert answered["assistantId"] == "5b0a4a08"
                assert "letta_memory" in answered["assistantOverrides"]["variableValues"]


class TestWhoBelongs:
    def test_keys(self, sidecar: SidecarProcess, model: Model) -> None:
        """Both keys of a rotation are accepted, no other is, and a refusal asks no model."""
        for key in (KEY, OLD_KEY):
            assert ask(sidecar, body(), key=key)[0] == 200
        before = len(model.prompts())
        for key in ("", "wrong", SECRET, KEY[:-1], "é"):
            assert ask(sidecar, body(), key=key)[0] == 401
        assert len(model.prompts()) == before

    def test_signatures(self, sidecar: SidecarProcess) -> None:
        """A signature counts for exactly its bytes, within its time, with either secret."""
        raw = json.dumps({"message": {"type": "hang", "call": {"id": "call-1"}}}).encode()
        now = str(int(time.time()))

        def signed(content: bytes, stamp: str, secret: str = SECRET) -> int:
            mac = hmac.new(secret.encode(), stamp.encode() + b"." + raw, hashlib.sha256)
            headers = {"x-signature": mac.hexdigest(), "x-timestamp": stamp}
            return post(sidecar, "/vapi/webhook", content, headers)[0]

        assert signed(raw, now) == 200
        assert signed(raw, now, OLD_SECRET) == 200
        assert signed(raw, str(int(time.time() * 1_000))) == 200
        assert signed(raw.replace(b"hang", b"hanG"), now) == 401
        assert signed(json.dumps(json.loads(raw), indent=1).encode(), now) == 401
        assert signed(raw, str(int(time.time()) - 400)) == 401
        assert signed(raw, now, "another-secret-0123") == 401

    def test_the_machines_clock_is_set(self, tmp_path: Path, model: Model) -> None:
        """VAPI is still admitted while the clock is set by hours and years, either way."""
        clock = tmp_path / "clock"
        clock.write_text("0")
        env = settings(
            model,
            SIDECAR_VAPI_KEY=KEY,
            SIDECAR_VAPI_SECRET=SECRET,
            SIDECAR_VAPI_DAY_TOKENS="400",
            SIDECAR_VAPI_MAX_TOKENS="100",
            CLOCK_FILE=str(clock),
        )
        command = (sys.executable, "-m", "tests.moved_clock", "run")
        with SidecarProcess(tmp_path / "data", env, command=command) as process:
            for number, ahead_s in enumerate((0, 3_600, -3_600, 10 * 365 * 86_400, 0)):
                clock.write_text(str(ahead_s))
                now_s = time.time() + ahead_s
                assert signed_status(process, f"call-{number}", now_s) == 200
                assert signed_status(process, f"call-{number}", now_s - 301) == 401
            # A day's budget also follows the new time.
            assert until_refused(process)
            clock.write_text("86400")
            assert "call again" not in spoken(ask(process, body("Hello", call_id="d"))[1])

    def test_a_delivery_is_known_after_a_restart(self, tmp_path: Path, model: Model) -> None:
        """Memory is sent once for each signature, even if the sidecar is killed in between."""
        env = settings(model, SIDECAR_VAPI_KEY=KEY, SIDECAR_VAPI_SECRET=SECRET)
        env["SIDECAR_VAPI_ASSISTANT_ID"] = "5b0a4a08"
        process = SidecarProcess(tmp_path / "data", env)
        now_s = time.time()
        try:
            for number in range(3):
                process.start()
                for earlier in range(number):
                    assert signed_status(process, f"call-{earlier}", now_s) == 401
                assert signed_status(process, f"call-{number}", now_s) == 200
                assert signed_status(process, f"call-{number}", now_s) == 401
                process.kill()
        finally:
            process.stop()

    def test_without_keys_the_made_token_opens(self, tmp_path: Path, model: Model) -> None:
        """Without keys only the user's link token is accepted, even from this machine."""
        with SidecarProcess(tmp_path / "data", settings(model)) as process:
            raw = json.dumps(body()).encode()
            report = json.dumps({"message": {"type": "hang", "call": {"id": "call-1"}}}).encode()
            for path, sent in (("/vapi/chat/completions", raw), ("/vapi/webhook", report)):
                for header in (
                    {},
                    {"Authorization": "Bearer "},
                    {"Authorization": "Bearer made-up-0123456789"},
                    {"X-Forwarded-For": "203.0.113.9"},
                    {"Host": "abc.ngrok.app"},
                    {"Origin": "http://evil.example"},
                ):
                    assert post(process, path, sent, header)[0] == 401
                assert post(process, path, sent, process.bearer)[0] == 200
            token = process.link_token
        assert token not in "".join([process.banner, *process.log])

    def test_bounds(self, sidecar: SidecarProcess) -> None:
        """A body that is too large gets 413, and one without JSON or messages gets 400."""
        headers = {"Authorization": f"Bearer {KEY}"}
        path = "/vapi/chat/completions"
        # The body itself is not sent: the connection is cut off with the answer.
        assert post(sidecar, path, b"", {**headers, "Content-Length": str((1 << 20) + 1)})[0] == 413
        for bad in (b"{", b"[]", b'{"messages": []}', b'{"messages": ["x"]}', b"\xff"):
            assert post(sidecar, path, bad, headers)[0] == 400

    def test_a_budget_is_spoken(self, tmp_path: Path, model: Model) -> None:
        """A call that used its budget up is told so, and the model is not asked."""
        env = settings(model, SIDECAR_VAPI_CALL_TOKENS="400", SIDECAR_VAPI_MAX_TOKENS="100")
        with SidecarProcess(tmp_path / "data", env) as process:
            asked = until_refused(process, call_id="call-1")
            assert len(model.prompts()) == asked
            other = ask(process, body("Hello", call_id="call-2"), key=process.link_token)
            assert "call again" not in spoken(other[1])

    def test_at_the_same_moment_a_day_is_spent_once(self, tmp_path: Path, model: Model) -> None:
        """A hundred requests at once get no more replies than the day's budget allows."""
        limits = {"SIDECAR_VAPI_DAY_TOKENS": "2000", "SIDECAR_VAPI_MAX_TOKENS": "800"}
        env = settings(model) | limits | {"SIDECAR_VAPI_FALLBACK_S": "15"}
        model.faults(hang=True)
        with SidecarProcess(tmp_path / "data", env) as process, ThreadPoolExecutor(100) as callers:
            key = process.link_token
            bodies = [body("Hello", call_id=f"call-{number}") for number in range(100)]
            asked = [callers.submit(ask, process, one, key=key) for one in bodies]
            eventually(lambda: sum(one.done() for one in asked) == 98)
            model.faults(hang=False)
            texts = [spoken(one.result()[1]) for one in asked]
        assert sum("call again later" in text for text in texts) == 98
        assert len(model.prompts()) == 2

    def test_nothing_private_is_logged(self, sidecar: SidecarProcess, model: Model) -> None:
        """Whatever happens, the log has no word, number, key, secret or control URL."""
        control = "https://phone.vapi.ai/canary-control/control"
        monitored = {
            "id": "call-9",
            "customer": {"number": ADA},
            "monitor": {"controlUrl": control},
        }
        ask(sidecar, body("canary-words", call=monitored))
        ask(sidecar, body("canary-words"), key="wrong-canary-key")
        model.faults(fail=1)
        ask(sidecar, body("canary-words more"))
        report(sidecar, ("user", "canary-words"))
        sidecar.stop()
        assert sidecar.has_logged("vapi_reported")
        log = "".join(sidecar.log)
        for secret in ("canary", ADA, KEY, SECRET, OLD_KEY):
            assert secret not in log
