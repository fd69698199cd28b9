"""The local page as a person sees it, in a real browser.

Pictures of the main states are kept in `.screenshots/`.
"""

import json
import threading
import time
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typing_extensions import override
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from sidecar.wire.frames import SUBPROTOCOL
from tests.browser import Browser, Tab, chromium
from tests.ports import free_port
from tests.sidecar_process import RESTARTED, SidecarProcess

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / ".screenshots"
AXE = (ROOT / "tests/axe/axe.min.js").read_text()
NEW_LINES = "[...document.querySelectorAll('.lines .new')].map((e) => e.innerText).join()"
PHONE = {"width": 390, "height": 844}

# Stand-ins for what headless Chromium lacks: a microphone with a recogniser, and a voice.
SPEECH = """
window.webkitSpeechRecognition = class extends EventTarget {
  constructor() { super(); window.recognizer = this; this.on = false; }
  start() { if (this.on) throw new Error("started"); this.on = true; }
  abort() { this.on = false; }
  hear(text) {
    this.dispatchEvent(new Event("speechstart"));
    this.dispatchEvent(new Event("speechend"));
    const result = Object.assign([{ transcript: text }], { isFinal: true });
    this.on = false;
    this.dispatchEvent(Object.assign(new Event("result"), { results: [result] }));
    this.dispatchEvent(new Event("end"));
  }
};
window.SpeechRecognition = window.webkitSpeechRecognition;
window.utterances = [];
window.SpeechSynthesisUtterance = class extends EventTarget {
  constructor(text) { super(); this.text = text; }
};
Object.defineProperty(window, "speechSynthesis", { value: {
  getVoices: () => [{}], cancel() { window.cancelled = (window.cancelled ?? 0) + 1; },
  speak(utterance) { window.utterances.push(utterance); },
}});
"""


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    data = tmp_path_factory.mktemp("page") / "data"
    with SidecarProcess(data, port=free_port(), command=RESTARTED) as process:
        yield process


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@contextmanager
def page(browser: Browser, sidecar: SidecarProcess, *, before: str = "") -> Generator[Tab]:
    """The connected page; afterwards no script has failed and no other host was asked."""
    tab = browser.tab(before=before)
    tab.open(f"{sidecar.url}/#{sidecar.token}")
    tab.says("connected", within=".link")
    try:
        yield tab
    finally:
        tab.close()
    here = f"//127.0.0.1:{sidecar.port}/"
    elsewhere = [url for url in tab.asked if here not in url and url != "about:blank"]
    assert elsewhere == []
    # A browser logs each failed connection to an absent sidecar; nothing else may fail.
    assert [fault for fault in tab.faults if "ERR_CONNECTION_REFUSED" not in fault] == []


def call(tab: Tab, name: str) -> None:
    """Start a call under a name, with the keyboard."""
    tab.read(
        "(() => { const f = document.querySelector('input.caller'); f.focus(); f.select(); })()"
    )
    tab.type(name)
    tab.press("Enter")
    tab.shows(name, within="#talk-title")
    tab.until("Boolean(document.getElementById('said'))")


def say(tab: Tab, text: str) -> str:
    """Type something, and return the reply once it is whole."""
    before = tab.read("document.querySelectorAll('button.meta').length")
    tab.until("document.activeElement.id === 'said' || document.getElementById('said').focus()")
    tab.type(text)
    tab.press("Enter")
    tab.until(f"document.querySelectorAll('button.meta').length > {before}")
    return str(tab.read("[...document.querySelectorAll('.reply')].at(-1).innerText"))


def hang_up(tab: Tab) -> None:
    tab.click("button.end")
    tab.shows("The call has ended", within=".talk")


def undelivered(tab: Tab, expression: str, *, within_s: float = 30.0) -> None:
    shown = "parseInt(document.getElementById('undelivered').dataset.undelivered)"
    tab.until(f"{shown} {expression}", within_s=within_s)


def is_accessible(tab: Tab, name: str) -> None:
    """Axe finds no fault in the light or the dark page, and a picture of each is kept."""
    for dark in (False, True):
        tab.look(dark=dark)
        if not tab.read("'axe' in window"):
            tab.read(f"{AXE};true")
        found = tab.read(
            "axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations.map((v) =>"
            " [v.id, v.help, v.nodes.map((n) => n.html.slice(0, 160) + n.failureSummary)]))"
        )
        tab.save_picture(PICTURES / f"{name}-{'dark' if dark else 'light'}.png")
        assert found == [], json.dumps(found, indent=1)
    tab.look()


def test_the_first_minute(browser: Browser, sidecar: SidecarProcess) -> None:
    """A person gets from the printed link to a reply with the keyboard alone."""
    with page(browser, sidecar) as tab:
        tab.shows("demo model", within=".parts")
        is_accessible(tab, "first-run")
        steps = 0
        while not tab.read("document.activeElement.matches('input.caller')"):
            tab.press("Tab")
            steps += 1
            assert steps < 5
        tab.press("Enter")
        tab.until("document.activeElement.id === 'said'")
        tab.type("My name is Ines.")
        tab.press("Enter")
        tab.shows("Ines", within=".reply")
        tab.says("stored", within=".fate")
        is_accessible(tab, "in-a-call")


def test_a_fact_is_remembered_and_seen_to_be_learnt(
    browser: Browser, sidecar: SidecarProcess
) -> None:
    """A fact said in one call is shown as a change of memory and known in the next call."""
    with page(browser, sidecar) as tab:
        call(tab, "Ada")
        say(tab, "My name is Ada and I live in Lyon.")
        hang_up(tab)
        tab.shows("from this call, ", within=".memory")
        tab.shows("The call has ended. What Letta learns", within=".talk")
        tab.shows("Ada 2 turns", within=".lane.settled")
        assert "Lyon" in tab.read(NEW_LINES)
        is_accessible(tab, "learned")
        tab.click(".again button")
        tab.until("Boolean(document.getElementById('said'))")
        tab.shows("fresh", within=".served")
        assert "Ada" in say(tab, "What is my name?")
        tab.click("button.meta")
        tab.shows("First token", within=".waterfall")
        legs = tab.read(
            "[...document.querySelectorAll('.waterfall tbody th')].map((e) => e.innerText)"
        )
        assert [leg.splitlines()[0] for leg in legs] == [
            "Turn stored on disk",
            "Wait for memory",
            "Prompt built",
            "First token",
            "First word on the page",
        ]
        tab.shows("Home: Lyon", within=".prompt")
        tab.shows("What is my name?", within=".prompt")
        is_accessible(tab, "waterfall")
        say(tab, "My dog is called Rex.")
        hang_up(tab)
        tab.shows("Dog: Rex", within=".lines .new")
        assert "Lyon" not in tab.read(NEW_LINES)
        tab.click(".calls.past li:nth-child(2) button", text="Ada")
        tab.shows("as it was at", within=".memory")
        assert "Lyon" in tab.read(NEW_LINES)
        assert "Rex" not in tab.read("document.querySelector('.memory').innerText")
        tab.save_picture(PICTURES / "first-of-two-calls.png")


def test_a_call_that_is_not_to_be_kept_leaves_nothing(
    browser: Browser, sidecar: SidecarProcess
) -> None:
    """A call without consent is live and says so, and is in no list afterwards."""
    with page(browser, sidecar) as tab:
        undelivered(tab, "=== 0")
        stored = "document.getElementById('undelivered').dataset.stored"
        before = tab.read(stored)
        tab.click(".newcall input[type=checkbox]")
        call(tab, "Nobody-in-particular")
        tab.until("document.querySelectorAll('.calls:not(.past) li').length === 1")
        past = tab.read("document.querySelectorAll('.calls.past li').length")
        assert "Radia" in say(tab, "My name is Radia.")
        tab.says("not kept", within=".fate")
        hang_up(tab)
        tab.until("document.querySelectorAll('.calls:not(.past) li').length === 0")
        assert tab.read(stored) == before
        assert tab.read("document.querySelectorAll('.calls.past li').length") == past


def test_calls_go_on_while_lettas_plug_is_pulled(browser: Browser, sidecar: SidecarProcess) -> None:
    """While Letta is unplugged calls are answered and stored, and later all is delivered."""
    with page(browser, sidecar) as tab:
        undelivered(tab, "=== 0")
        tab.click("#plug")
        tab.shows("out of reach", within=".outcome")
        call(tab, "Grace")
        assert "Grace" in say(tab, "My name is Grace.")
        hang_up(tab)
        undelivered(tab, "=== 2")
        tab.until("Boolean(document.querySelector('.lane.sealed .card'))")
        is_accessible(tab, "plug-pulled")
        tab.click("#plug")
        undelivered(tab, "=== 0", within_s=60.0)
        tab.shows("All were delivered", within=".outcome")
        tab.shows("Grace", within=".lane.settled")
        tab.shows("Letta learned", within=".memory")
        tab.save_picture(PICTURES / "plug-restored.png")


def test_the_page_comes_back_from_a_kill_and_nothing_is_lost(
    browser: Browser, sidecar: SidecarProcess
) -> None:
    """After kill -9 the page takes its calls up again, and each turn is stored once."""
    with page(browser, sidecar) as tab:
        call(tab, "Joan")
        say(tab, "My name is Joan.")
        call(tab, "Hedy")
        say(tab, "My name is Hedy.")
        tab.until("document.getElementById('said').focus() || true")
        tab.click("#kill")
        tab.type("I live in Vienna.")
        tab.press("Enter")
        tab.shows(" 3 of 3 turns stored, 0 lost.", within=".outcome", within_s=60.0)
        tab.save_picture(PICTURES / "killed.png")
        tab.says("connected", within=".link")
        assert "Vienna" in say(tab, "Where do I live?")
        tab.click(".calls button", text="Joan")
        tab.shows("Joan", within="#talk-title")
        assert "Joan" in say(tab, "What is my name?")
        turns = tab.read("document.querySelectorAll('.bubble').length")
        assert turns == 2
    with page(browser, sidecar) as tab:
        tab.click(".calls.past button", text="Caller")
        tab.until("document.querySelectorAll('.turns .bubble').length > 0")
        said = tab.read("[...document.querySelectorAll('.turns .bubble')].map((e) => e.innerText)")
        assert len(said) == len(set(said))
        tab.save_picture(PICTURES / "past-call.png")


def test_a_wrong_token_is_told_what_to_do(browser: Browser, sidecar: SidecarProcess) -> None:
    """A page with a wrong or missing token says what to do, and does not try again."""
    for link in ("#wrong", ""):
        tab = browser.tab()
        tab.open(f"{sidecar.url}/{link}")
        tab.shows("Open the", within="[role=alert]")
        tab.says("not connected", within=".link")
        assert tab.read("document.querySelector('.start').disabled") is True
    tab.save_picture(PICTURES / "wrong-token.png")


def test_a_foreign_page_gets_nothing(browser: Browser, sidecar: SidecarProcess) -> None:
    """Another site in the browser can't read the page, frame it or open its socket."""
    with ThreadingHTTPServer(("127.0.0.1", 0), ForeignSite) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        tab = browser.tab()
        tab.open(f"http://localhost:{foreign.server_address[1]}/")
        tab.until("document.title === 'foreign'")
        here = f"127.0.0.1:{sidecar.port}"
        assert (
            tab.read(
                f"new Promise((done) => {{ const s = new WebSocket('ws://{here}/console/ws');"
                " s.onopen = () => done('open'); s.onclose = () => done('refused'); })"
            )
            == "refused"
        )
        assert tab.read(f"fetch('http://{here}/').then(() => 'read', () => 'refused')") == "refused"
        tab.read(
            "new Promise((done) => { const f = document.createElement('iframe');"
            f" f.src = 'http://{here}/#{sidecar.token}'; f.onload = done;"
            " document.body.append(f); })"
            ".then(() => true)"
        )
        assert any("frame-ancestors" in fault for fault in tab.faults)
        foreign.shutdown()


class ForeignSite(BaseHTTPRequestHandler):
    """Serves a page of another site."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>foreign</title>")

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_two_hundred_turns_are_no_heavier_than_twenty(
    browser: Browser, sidecar: SidecarProcess
) -> None:
    """The number of elements, and of changes per turn, does not grow with the call."""
    with page(browser, sidecar) as tab:
        call(tab, "Mary")
        tab.read(
            """(() => {
              window.changed = 0;
              new MutationObserver((all) => { window.changed += all.length; }).observe(
                document.body,
                { subtree: true, childList: true, characterData: true, attributes: true },
              );
              const draft = (text) => {
                const field = document.getElementById("said");
                field.value = text;
                field.dispatchEvent(new Event("input", { bubbles: true }));
                field.form.requestSubmit();
              };
              const frame = () => new Promise((done) => requestAnimationFrame(done));
              window.talk = async (from, until) => {
                const before = window.changed;
                for (let n = from; n < until; n += 1) {
                  draft(`This is turn ${n}.`);
                  const shown = () => [...document.querySelectorAll(".exchange")].at(-1);
                  const isDone = () => shown()?.innerText.includes(`turn ${n}.`)
                    && shown().querySelector("button.meta");
                  while (!isDone()) await frame();
                }
                return (window.changed - before) / (until - from);
              };
            })()"""
        )
        nodes = "document.querySelectorAll('*').length"
        tab.read("talk(0, 20)")
        tab.read("talk(20, 70)")
        early = tab.read("talk(70, 80)")
        nodes_early = tab.read(nodes)
        tab.read("talk(80, 130)")
        tab.read("talk(130, 190)")
        late = tab.read("talk(190, 200)")
        assert tab.read(nodes) <= nodes_early + 50
        assert late <= 2 * early, (early, late)
        tab.click("button.earlier")
        tab.until("document.querySelectorAll('.exchange').length === 120")


def test_it_fits_a_phone(browser: Browser, sidecar: SidecarProcess) -> None:
    """At a phone's width every view is reachable, fits the screen and has no axe fault."""
    with page(browser, sidecar) as tab:
        call(tab, "Dorothy-with-a-name-that-is-rather-long-for-a-telephone")
        say(tab, "https://example.org/" + "a-very-long-word" * 12)
        tab.click("button.meta")
        for dark in (False, True):
            tab.look(**PHONE, dark=dark)
            for view in ("talk", "memory", "outbox", "calls"):
                tab.click(f".views button[data-view={view}]")
                tab.until("document.documentElement.scrollWidth <= innerWidth")
                name = f"phone-{view}-{'dark' if dark else 'light'}.png"
                tab.save_picture(PICTURES / name)
                if not tab.read("'axe' in window"):
                    tab.read(f"{AXE};true")
                assert (
                    tab.read(
                        "axe.run().then((r) => r.violations.map((v) => v.id + v.nodes[0].html))"
                    )
                    == []
                )


def test_a_microphone_and_a_voice(browser: Browser, sidecar: SidecarProcess) -> None:
    """Spoken words are a turn, the reply is spoken, and typing cuts it off where it was heard."""
    with page(browser, sidecar, before=SPEECH) as tab:
        call(tab, "Alan")
        tab.shows("send the audio to their vendor", within="#audio-goes")
        tab.click(".composer input[type=checkbox]")
        tab.click("button.mic")
        tab.until("window.recognizer?.on === true")
        tab.read("recognizer.hear('My name is Alan.') ?? true")
        tab.until("window.utterances.length > 0")
        tab.shows("Alan", within=".reply")
        tab.read(
            "utterances[0].dispatchEvent(Object.assign(new Event('boundary'), {charIndex: 4})) && 1"
        )
        tab.click("#said")
        tab.type("W")
        tab.shows("interrupted", within=".replied")
        heard = tab.read("document.querySelector('.reply').firstChild.textContent")
        assert len(heard) <= 4, heard
        tab.type("hat is my name?")
        tab.press("Enter")
        tab.until("document.querySelectorAll('.reply').length === 2")
        tab.until("window.utterances.length > 1")
        tab.read("utterances.slice(1).forEach((u) => u.dispatchEvent(new Event('end'))) ?? true")
        tab.until("document.querySelectorAll('button.meta').length === 2")
        tab.click("button.meta")
        tab.shows("Speech recognised", within=".waterfall")


def call_by_vapi(sidecar: SidecarProcess) -> None:
    """Ask for the first reply of a call, as VAPI does."""
    asked = {
        "stream": True,
        "messages": [{"role": "user", "content": "I call by VAPI."}],
        "call": {"id": "vapi-1", "customer": {"number": "+14155550123"}},
    }
    request = urllib.request.Request(
        f"{sidecar.url}/vapi/chat/completions",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json", **sidecar.bearer},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert b"[DONE]" in answer.read()


def test_calls_of_every_channel_are_seen(browser: Browser, sidecar: SidecarProcess) -> None:
    """Live calls of several channels are shown at once, each with its transcript."""
    link = connect(
        sidecar.link_url,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        additional_headers=sidecar.bearer,
    )
    with link as worker, page(browser, sidecar) as tab:
        turn = {
            "item": "i1",
            "seq": 1,
            "speaker": "caller",
            "text": "I call by phone.",
            "at_s": time.time(),
        }
        for frame in (
            {"type": "hello", "worker": "w"},
            {
                "type": "call.open",
                "call": "room-1",
                "channel": "livekit",
                "hints": {"identity": "kay"},
                "opened_at_s": time.time() - 9,
            },
            {"type": "turn", "call": "room-1", **turn},
            {
                "type": "call.open",
                "call": "ivr-1",
                "channel": "constructor",  # every JavaScript object has a property of this name
                "hints": {"identity": "ruth"},
                "opened_at_s": time.time() - 5,
            },
        ):
            worker.send(json.dumps(frame))
        call(tab, "Edsger")
        say(tab, "My name is Edsger.")
        call(tab, "Barbara")
        tab.until("document.querySelectorAll('.calls:not(.past) li').length >= 4")
        tab.click(".calls button", text="constructor")
        tab.shows("Call via constructor", within="#talk-title")
        tab.click(".calls button", text="LiveKit")
        tab.shows("I call by phone.", within=".talk")
        tab.save_picture(PICTURES / "calls.png")
        call_by_vapi(sidecar)
        tab.click(".calls button", text="VAPI")
        tab.shows("Call via VAPI", within="#talk-title")
        worker.send(json.dumps({"type": "call.close", "call": "room-1", "reason": "hung up"}))
        tab.click(".calls button", text="Edsger")
        tab.shows("Edsger", within="#talk-title")
        tab.shows("My name is Edsger.", within=".talk")
        assert "Edsger" in say(tab, "What is my name?")


def test_a_dead_letter_is_replayed_or_dropped(browser: Browser, tmp_path: Path) -> None:
    """A dead letter is shown with its error, and can be replayed or dropped."""
    short = {"SIDECAR_GIVE_UP_S": "0.2"}
    with (
        SidecarProcess(tmp_path / "data", short) as sidecar,
        page(browser, sidecar) as tab,
    ):
        tab.click("#plug")
        for name in ("Ida", "Ruth"):
            call(tab, name)
            say(tab, f"My name is {name}.")
            hang_up(tab)
        tab.until("document.querySelectorAll('.lane.dead .card').length === 2", within_s=40.0)
        is_accessible(tab, "dead-letters")
        tab.click("#plug")
        tab.click(".lane.dead .card button", text="Replay")
        tab.until("document.querySelectorAll('.lane.dead .card').length === 1")
        tab.until("document.querySelectorAll('.lane.settled .card').length === 1", within_s=40.0)
        tab.click(".lane.dead .card button", text="Drop")
        tab.click(".lane.dead .card button", text="Drop it")
        tab.until("document.querySelectorAll('.lane.dead .card').length === 0")
        undelivered(tab, "=== 0")
