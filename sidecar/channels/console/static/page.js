// The page: what it is made of, and its start.

import { wave } from "./icons.js";
import { Memory } from "./memory.js";
import { Outbox } from "./outbox.js";
import { Rail } from "./rail.js";
import { change, complain, drawWith, state } from "./store.js";
import { Talk } from "./talk.js";
import { html, render } from "./vendor/htm-preact.js";
import { connect } from "./wire.js";

const LINKS = {
  connecting: "connecting",
  open: "connected",
  lost: "reconnecting",
  refused: "not connected",
};
const VIEWS = { talk: "Call", memory: "Memory", outbox: "Outbox", calls: "Calls" };

function Page() {
  const { letta, llm } = state.summary;
  return html`
    <a class="skip" href="#talk" onClick=${skip}>Skip to the conversation</a>
    <header class="top">
      ${wave}
      <h1>Voice sidecar</h1>
      ${
        letta &&
        html`<p class="parts quiet small">
          <span>replies by <b>${llm}</b></span
          ><span>memory by <b>${letta}</b></span>
        </p>`
      }
      <p class=${`link ${state.link}`} role="status">
        <span class="dot" aria-hidden="true"></span>${LINKS[state.link]}
      </p>
    </header>
    ${
      state.notice &&
      html`<p class="notice" role="alert">
        ${state.notice}<button type="button" class="small" onClick=${() => complain("")}>
          Dismiss
        </button>
      </p>`
    }
    <nav class="views" aria-label="Parts of the page">
      ${Object.entries(VIEWS).map(
        ([view, name]) =>
          html`<button
            type="button"
            key=${view}
            data-view=${view}
            aria-current=${state.view === view ? "true" : "false"}
            onClick=${() => go(view)}
          >
            ${name}${badge(view)}
          </button>`,
      )}
    </nav>
    <main class=${`shows-${state.view}`}>
      <${Rail} />
      <${Talk} />
      <${Memory} />
      <${Outbox} />
    </main>
  `;
}

function badge(view) {
  const n = { outbox: state.outbox?.undelivered ?? 0, calls: state.live.length }[view];
  return n ? html` <span class="count">${n}</span>` : "";
}

function go(view) {
  state.view = view;
  change();
}

// By hand: the fragment of this page's address is its token.
function skip(event) {
  event.preventDefault();
  (document.getElementById("said") ?? document.getElementById("talk")).focus();
}

const root = document.getElementById("page");
root.replaceChildren();
drawWith(() => render(html`<${Page} />`, root));
connect();
