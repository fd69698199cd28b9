"""Every body that VAPI's routes take or give, checked by VAPI's own types and OpenAI's.

The types of vapi-server-sdk 3.0.0 are in a separate venv and check bodies in a separate process;
see tests/vapi/judge.py. A model endpoint takes and gives OpenAI's bodies, so those are checked by
the types of `openai`.
"""

import copy
import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pydantic
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParams

from sidecar.channels.vapi.control import Control
from sidecar.telemetry import Telemetry
from tests.sidecar_process import SidecarProcess, eventually
from tests.vapi.api import Api
from tests.vapi.bodies import ASSISTANT_REQUEST, SENT, model_request
from tests.vapi.model import Model

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "vapi"
# The published OpenAPI types this as an object; the API accepts and returns strings.
KNOWN_GAP = "backoffPlan.type: Input should be a valid dictionary"


def judged(python: Path, asked: Mapping[str, tuple[str, object]]) -> dict[str, list[str]]:
    """Return VAPI's complaints about bodies, by name. One process checks them all."""
    sent = [{"name": name, "type": kind, "body": body} for name, (kind, body) in asked.items()]
    done = subprocess.run(
        [str(python), str(ROOT / "tests" / "vapi" / "judge.py")],
        input=json.dumps(sent),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


def post(process: SidecarProcess, path: str, body: object) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=20)
    try:
        headers = {"Content-Type": "application/json", **process.bearer}
        connection.request("POST", path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@contextmanager
def serving(directory: Path, **settings: str) -> Generator[SidecarProcess]:
    with Model() as model:
        env = {"LLM_BASE_URL": f"{model.url}/v1", "LLM_MODEL": "demo", **settings}
        with SidecarProcess(directory, env) as process:
            yield process


def answer_to(process: SidecarProcess, message: Mapping[str, Any]) -> object:
    status, raw = post(process, "/vapi/webhook", {"message": message})
    assert status == 200
    return json.loads(raw)


@pytest.fixture(scope="module")
def judge() -> Path:
    python = ROOT / ".vapi-types-venv" / "bin" / "python"
    if not python.exists():
        pytest.skip("VAPI's types are not installed: make .vapi-types-venv/.installed")
    return python


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, object]]:
    """What a real sidecar answered to each server message, with VAPI's type of the answer."""
    directory = tmp_path_factory.mktemp("answers")
    found: dict[str, tuple[str, object]] = {}
    settings: Mapping[str, Mapping[str, str]] = {
        "none": {},
        "transient": {"SIDECAR_VAPI_ASSISTANT": str(EXAMPLE / "assistant.json")},
        "named": {"SIDECAR_VAPI_ASSISTANT_ID": "5b0a4a08-133c-4146-9315-0984f8c6be80"},
    }
    for name, more in settings.items():
        with serving(directory / "data", **more) as process:
            if name == "none":  # an earlier call, so that there is something to remember
                report = SENT["end-of-call-report"].message
                answer_to(process, {**report, "call": {**report["call"], "id": "earlier"}})
                eventually(lambda: process.undelivered() == 0)
            answer = answer_to(process, ASSISTANT_REQUEST.message)
            found[f"assistant-request, {name}"] = ASSISTANT_REQUEST.answer, answer
            if name != "named":
                continue
            for kind, sent in SENT.items():
                answer = answer_to(process, sent.message)
                if sent.answer:
                    found[kind] = sent.answer, answer
                else:
                    assert answer == {}
    return found


@pytest.fixture(scope="module")
def commands() -> dict[str, tuple[str, object]]:
    """Every command into a live call, as it goes to the control URL."""
    posted: list[Mapping[str, Any]] = []

    async def post(_: str, command: Mapping[str, Any]) -> int:
        posted.append(command)
        return 200

    async def run() -> None:
        control = Control(emit=Telemetry().emit, post=post)
        url = "https://phone.vapi.ai/1/control"
        await control.guide("acme/1", url, "She was promised a call back.")
        await control.say("acme/1", url, "One moment.", then_end=True)
        await control.end_call("acme/1", url)

    anyio.run(run)
    kinds = {"add-message": "AddMessage", "say": "Say", "end-call": "EndCall"}
    module = "client_inbound_message_message"
    return {
        f"command {one['type']}": (
            f"{module}:ClientInboundMessageMessage_{kinds[one['type']]}",
            dict(one),
        )
        for one in posted
    }


@pytest.fixture(scope="module")
def created(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, object]]:
    """What the example's script sends to VAPI's API."""
    directory = tmp_path_factory.mktemp("created")
    for name in ("assistant.py", "assistant.json"):
        (directory / name).write_text((EXAMPLE / name).read_text())
    with Api() as api:
        threading.Thread(target=api.serve_forever, daemon=True).start()
        keys = {"VAPI_API_KEY": "k", "SIDECAR_VAPI_KEY": "new,old", "SIDECAR_VAPI_SECRET": "s"}
        env = os.environ | keys | {"VAPI_API_URL": f"http://127.0.0.1:{api.server_port}"}
        command = [sys.executable, str(directory / "assistant.py"), "https://tunnel.example/"]
        for _ in range(2):
            subprocess.run(command, env=env, check=True, timeout=20, capture_output=True)
        api.shutdown()
    model, server, assistant, update = (body for _, _, body in api.asked)
    kind = "create_custom_llm_credential_dto:CreateCustomLlmCredentialDto"
    hook = "create_webhook_credential_dto:CreateWebhookCredentialDto"
    assert (model.pop("provider"), server.pop("provider")) == ("custom-llm", "webhook")
    return {
        "model credential": (kind, model),
        "server credential": (hook, server),
        "assistant": ("create_assistant_dto:CreateAssistantDto", assistant),
        "assistant update": ("create_assistant_dto:CreateAssistantDto", update),
    }


@pytest.fixture(scope="module")
def verdicts(
    judge: Path,  # first, as it may skip the test
    answers: dict[str, tuple[str, object]],
    commands: dict[str, tuple[str, object]],
    created: dict[str, tuple[str, object]],
) -> dict[str, list[str]]:
    """All complaints about this module's bodies, from one run of the judge."""
    taken = {f"taken {name}": (sent.type, sent.message) for name, sent in SENT.items()}
    asked = model_request(stream=True)
    parts = {
        "request call": ("call:Call", asked["call"]),
        "request customer": ("create_customer_dto:CreateCustomerDto", asked["customer"]),
    }
    given = {f"given {name}": one for name, one in answers.items()}
    return judged(
        judge, {**taken, **parts, **given, **commands, **created, **_spoilt(answers, commands)}
    )


def _spoilt(
    answers: Mapping[str, tuple[str, object]], commands: Mapping[str, tuple[str, object]]
) -> dict[str, tuple[str, object]]:
    """Bodies with one mistake each, to prove that the judge finds it."""

    def spoil(one: tuple[str, object], change: Callable[[Any], object]) -> tuple[str, object]:
        body = copy.deepcopy(one[1])
        change(body)
        return one[0], body

    tools, documents = answers["tool-calls"], answers["knowledge-base-request"]
    update = SENT["status-update, ended"]
    return {
        "spoilt: a result without its id": spoil(
            tools, lambda b: b["results"][0].pop("toolCallId")
        ),
        "spoilt: a result as an object": spoil(tools, lambda b: b["results"][0].update(result={})),
        "spoilt: a field nobody knows": spoil(tools, lambda b: b["results"][0].update(answer="x")),
        "spoilt: a document without text": spoil(
            documents, lambda b: b["documents"][0].pop("content")
        ),
        "spoilt: a document's score in words": spoil(
            documents, lambda b: b["documents"][0].update(similarity="high")
        ),
        "spoilt: snake case": spoil(
            answers["assistant-request, named"],
            lambda b: b.update(assistant_id=b.pop("assistantId")),
        ),
        "spoilt: a status nobody knows": spoil(
            (update.type, dict(update.message)), lambda b: b.update(status="over")
        ),
        "spoilt: guidance without a message": spoil(
            commands["command add-message"], lambda b: b.pop("message")
        ),
    }


@pytest.mark.parametrize("name", SENT)
def test_what_is_taken_is_what_vapi_sends(name: str, verdicts: dict[str, list[str]]) -> None:
    """Each server message that the tests send has the shape of VAPI's own type."""
    assert verdicts[f"taken {name}"] == []


def test_requests_name_the_call_as_vapi_does(verdicts: dict[str, list[str]]) -> None:
    """`call` and `customer` of a model request have the shape of VAPI's own types."""
    assert verdicts["request call"] == verdicts["request customer"] == []


def test_what_is_given_is_what_vapi_reads(
    verdicts: dict[str, list[str]], answers: dict[str, tuple[str, object]]
) -> None:
    """Each answer of a real sidecar has VAPI's shape, and holds something."""
    complaints = {name: verdicts[f"given {name}"] for name in answers}
    complaints["assistant-request, transient"] = [
        one for one in complaints["assistant-request, transient"] if not one.endswith(KNOWN_GAP)
    ]
    assert {name: one for name, one in complaints.items() if one} == {}
    (result,) = answers["tool-calls"][1]["results"]  # type: ignore[index]
    assert "Rex" in result["result"]
    (strange,) = answers["tool-calls, unknown tool"][1]["results"]  # type: ignore[index]
    assert "recall" in strange["error"]
    assert answers["knowledge-base-request"][1]["documents"]  # type: ignore[index]


def test_commands_into_a_call(
    verdicts: dict[str, list[str]], commands: dict[str, tuple[str, object]]
) -> None:
    """Guidance, speech and hang-up are the messages that VAPI's control URL takes."""
    assert set(commands) == {"command add-message", "command say", "command end-call"}
    assert [verdicts[name] for name in commands] == [[], [], []]


def test_what_the_script_creates(
    verdicts: dict[str, list[str]], created: dict[str, tuple[str, object]]
) -> None:
    """Both credentials and the assistant of the example have the shape of VAPI's API."""
    complaints = [one for name in created for one in verdicts[name]]
    assert [one for one in complaints if not one.endswith(KNOWN_GAP)] == []


def test_the_judge_can_complain(verdicts: dict[str, list[str]]) -> None:
    """The judge names a single mistake in a body."""
    spoilt = {name: found for name, found in verdicts.items() if name.startswith("spoilt")}
    assert len(spoilt) == 8
    assert {name for name, found in spoilt.items() if not found} == set()


def test_the_model_endpoint_speaks_openai(tmp_path: Path) -> None:
    """Requests without VAPI's fields, answers, chunks and fallbacks have OpenAI's types."""
    with serving(tmp_path / "data", SIDECAR_VAPI_FALLBACK_S="1") as process:
        asked = model_request(stream=False)
        vapis = {"timestamp", "metadata", "call", "phoneNumber", "customer"}
        plain = {name: value for name, value in asked.items() if name not in vapis}
        pydantic.TypeAdapter(CompletionCreateParams).validate_python(plain)
        status, whole = post(process, "/vapi/chat/completions", asked)
        assert status == 200
        assert ChatCompletion.model_validate_json(whole, strict=True).choices[0].message.content
        status, stream = post(process, "/vapi/chat/completions", model_request(stream=True))
        assert status == 200
        assert _chunks(stream)
    with SidecarProcess(tmp_path / "none", {"LLM_BASE_URL": "http://127.0.0.1:9/v1"}) as process:
        stream = post(process, "/vapi/chat/completions", model_request(stream=True))[1]
        assert "lost my thread" in "".join(
            c.choices[0].delta.content or "" for c in _chunks(stream)
        )
        whole = post(process, "/vapi/chat/completions", asked)[1]
        answer = ChatCompletion.model_validate_json(whole, strict=True)
        assert "lost my thread" in str(answer.choices[0].message.content)


def _chunks(stream: bytes) -> list[ChatCompletionChunk]:
    frames = [frame.removeprefix(b"data: ") for frame in stream.split(b"\n\n") if frame]
    assert frames.pop() == b"[DONE]"
    return [ChatCompletionChunk.model_validate_json(frame, strict=True) for frame in frames]
