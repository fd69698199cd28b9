// The call that is shown: its transcript, and the words for it.

import { bargeIn, endCall, mine, say, startCall, startSpeaking } from "./calls.js";
import { arrow, mic, phone, wave } from "./icons.js";
import { ear, listen, stopListening, voice } from "./speech.js";
import { change, state } from "./store.js";
import { Exchange, Heard } from "./turn.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";
import { CHANNELS, counted, moment, seconds } from "./words.js";

const SHOWN = 60; // exchanges drawn; earlier ones on demand

const WHERE_AUDIO_GOES = () =>
  ear.local
    ? "Your browser turns speech into text on this machine. The sidecar gets only the words."
    : "Your browser turns speech into text. Some browsers, including Chrome, send the audio to " +
      "their vendor for this. The sidecar gets only the words.";

export function Talk() {
  const call = mine();
  const body = call
    ? html`<${Mine} key=${call.key} call=${call} />`
    : state.selected
      ? html`<${Other} key=${state.selected} />`
      : html`<${Welcome} />`;
  return html`<section class="panel talk" id="talk" tabindex="-1" aria-labelledby="talk-title">
    ${body}
  </section>`;
}

function Welcome() {
  return html`
    <div class="welcome">
      ${wave}
      <h2 id="talk-title">A caller who is remembered</h2>
      <ol>
        <li><strong>Call</strong> under a name, and say something about yourself.</li>
        <li>
          <strong>Hang up.</strong> Letta reads the call and learns from it; you see what it
          learned.
        </li>
        <li>
          <strong>Call again</strong> and ask. Then pull Letta’s plug, or kill the sidecar, and try
          again.
        </li>
      </ol>
      <${NewCall} id="first" big=${true} />
    </div>
  `;
}

let lastCaller = "Ada";

export function NewCall({ id, big }) {
  const [caller, setCaller] = useState(lastCaller);
  const [agreed, setAgreed] = useState(true);
  const begin = (event) => {
    event.preventDefault();
    lastCaller = caller.trim();
    startCall(lastCaller, agreed ? "yes" : "no");
  };
  return html`
    <form class=${big ? "newcall big" : "newcall"} onSubmit=${begin} autocomplete="off">
      <label for=${`caller-${id}`}>Who is calling?</label>
      <div class="row">
        <input
          id=${`caller-${id}`}
          class="caller"
          maxlength="100"
          spellcheck=${false}
          autocapitalize="words"
          value=${caller}
          onInput=${(event) => setCaller(event.target.value)}
          aria-describedby=${`note-${id}`}
        />
        <button type="submit" class="primary start" disabled=${state.link !== "open"}>
          ${phone}Call
        </button>
      </div>
      <label class="check"
        ><input
          type="checkbox"
          checked=${agreed}
          onChange=${(event) => setAgreed(event.target.checked)}
        />
        Keep and learn from this call</label
      >
      <p class="quiet small" id=${`note-${id}`}>
        Each name has its own memory; a call without a name has none.
      </p>
    </form>
  `;
}

function Mine({ call }) {
  const [more, setMore] = useState(0);
  const bottom = useScrolledDown(call.exchanges.at(-1));
  const shown = call.exchanges.slice(-(SHOWN + more));
  const hidden = call.exchanges.length - shown.length;
  return html`
    <header class="panel-head">
      <div>
        <h2 id="talk-title">${call.caller || "A caller without a name"}</h2>
        <p class="quiet small">
          ${
            call.live
              ? onTheLine(call.atS)
              : call.opening
                ? "calling …"
                : `ended after ${counted(call.exchanges.length, "caller turn")}`
          }${call.kept ? "" : " · not kept"}
        </p>
      </div>
      ${
        call.live &&
        html`<button type="button" class="end" onClick=${() => endCall(call.key)}>
          ${phone}Hang up
        </button>`
      }
    </header>
    <div class="scroll" ref=${bottom} tabindex="0" role="region" aria-label="What was said">
      ${
        hidden > 0 &&
        html`<button type="button" class="earlier" onClick=${() => setMore(more + SHOWN)}>
          Show ${Math.min(SHOWN, hidden)} of ${hidden} earlier turns
        </button>`
      }
      <ol class="turns">
        ${shown.map(
          (one) =>
            html`<${Exchange}
              key=${one.id}
              exchange=${one}
              callKey=${call.key}
              live=${call.live}
              prompt=${state.prompts.get(one.id)}
            />`,
        )}
      </ol>
      ${call.live && !call.exchanges.length && html`<${Suggestions} call=${call} />`}
      ${!call.live && !call.opening && html`<${Again} call=${call} />`}
    </div>
    ${call.live && html`<${Composer} call=${call} />`}
  `;
}

function Suggestions({ call }) {
  const again = [...state.mine.values()].some(
    (other) => other !== call && other.caller === call.caller && other.exchanges.length,
  );
  const words = again
    ? ["What is my name?", "Where do I live?"]
    : [
        `My name is ${call.caller || "Ada"} and I live in Lyon.`,
        "I like jazz, and my dog is called Rex.",
      ];
  return html`
    <div class="suggestions">
      <p class="quiet">
        ${again ? "Ask about an earlier call:" : "Say something worth remembering:"}
      </p>
      ${words.map(
        (text) =>
          html`<button type="button" key=${text} onClick=${() => say(call, text)}>${text}</button>`,
      )}
    </div>
  `;
}

function Again({ call }) {
  return html`
    <div class="again">
      <p class="quiet">
        ${`The call has ended. ${
          call.kept ? "What Letta learns from it appears under Memory." : "Nothing of it was kept."
        }`}
      </p>
      <button
        type="button"
        class="primary"
        disabled=${state.link !== "open"}
        onClick=${() => startCall(call.caller, call.consent)}
      >
        ${phone}Call again ${call.caller ? `as ${call.caller}` : "without a name"}
      </button>
    </div>
  `;
}

function Composer({ call }) {
  const field = useRef(null);
  const listening = ear.open && ear.to?.key === call.key;
  useEffect(() => field.current?.focus({ preventScroll: true }), [call.key]);
  const submit = (event) => {
    event.preventDefault();
    if (say(call, call.draft)) call.draft = "";
    change();
  };
  const typed = (event) => {
    call.draft = event.target.value;
    // What is typed is prefetched for as speech would be, and silences the agent as speech would.
    bargeIn(call);
    startSpeaking(call);
    change();
  };
  const toggle = () => {
    if (listening) {
      stopListening();
      return;
    }
    listen({
      key: call.key,
      onSpeech() {
        bargeIn(call);
        startSpeaking(call);
      },
      onFinal: (text, speechEndMs) => say(call, text, { speechEndMs }),
    });
  };
  return html`
    <form class="composer" onSubmit=${submit} autocomplete="off">
      <label class="unseen" for="said">What you say</label>
      <div class="field">
        <input
          id="said"
          ref=${field}
          maxlength="8000"
          placeholder=${listening ? "Listening …" : "Say something"}
          value=${listening ? ear.heard || call.draft : call.draft}
          onInput=${typed}
          enterkeyhint="send"
        />
        ${
          ear.there &&
          html`<button
            type="button"
            class="round mic"
            aria-pressed=${listening ? "true" : "false"}
            aria-describedby="audio-goes"
            onClick=${toggle}
          >
            ${mic}<span class="unseen">Use the microphone</span>
          </button>`
        }
        <button type="submit" class="round primary">
          ${arrow}<span class="unseen">Send</span>
        </button>
      </div>
      <div class="below">
        ${
          voice.there &&
          html`<label class="check"
            ><input
              type="checkbox"
              checked=${voice.wanted}
              onChange=${(event) => {
                voice.wanted = event.target.checked;
                change();
              }}
            />
            Read replies aloud</label
          >`
        }
        <p class="quiet small" id="audio-goes">
          ${ear.there ? WHERE_AUDIO_GOES() : "This browser can’t recognise speech; type instead."}
        </p>
      </div>
    </form>
  `;
}

function onTheLine(sinceS) {
  const long = seconds(Date.now() / 1000 - sinceS);
  return html`<span class="pulse" aria-hidden="true"></span>on the line for ${long}`;
}

function whenItWas({ opened_at_s: openedS, closed_at_s: closedS }) {
  const long = closedS ? `, ${seconds(closedS - openedS)} long` : ", not closed yet";
  return `${moment(openedS)}${long}`;
}

function Other() {
  const live = state.live.find((one) => one.call === state.selected);
  const about = live ?? state.past.find((one) => one.call === state.selected);
  const { watched } = state;
  const bottom = useScrolledDown(watched?.turns.at(-1)?.id);
  return html`
    <header class="panel-head">
      <div>
        <h2 id="talk-title">
          ${about ? `Call via ${CHANNELS[about.channel] ?? about.channel}` : "A call"}
        </h2>
        <p class="quiet small">
          ${live ? onTheLine(live.opened_at_s) : about ? whenItWas(about) : ""}
        </p>
      </div>
    </header>
    <div class="scroll" ref=${bottom} tabindex="0" role="region" aria-label="What was said">
      ${
        watched?.earlier > 0 &&
        html`<p class="quiet small">${counted(watched.earlier, "earlier turn")} not shown.</p>`
      }
      ${
        watched &&
        !watched.turns.length &&
        html`<p class="quiet">No turn of this call is stored.</p>`
      }
      <ol class="turns">
        ${watched?.turns.map((turn) => html`<${Heard} key=${turn.id} turn=${turn} />`)}
      </ol>
    </div>
  `;
}

// Follows what is newest, unless the reader has scrolled up.
function useScrolledDown(newest) {
  const ref = useRef(null);
  const stays = useRef(true);
  useLayoutEffect(() => {
    const part = ref.current;
    const look = () => {
      stays.current = part.scrollHeight - part.scrollTop - part.clientHeight < 80;
    };
    part.addEventListener("scroll", look, { passive: true });
    return () => part.removeEventListener("scroll", look);
  }, []);
  useLayoutEffect(() => {
    if (stays.current) ref.current.scrollTop = ref.current.scrollHeight;
  }, [newest]);
  return ref;
}
