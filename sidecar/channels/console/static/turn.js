// One exchange: what the caller said, what was replied, and where the time went.

import { mine, showPrompt } from "./calls.js";
import { change, state } from "./store.js";
import { Component, html } from "./vendor/htm-preact.js";
import { chevron } from "./icons.js";
import { millis, SERVED, seconds } from "./words.js";

// The legs from the end of the caller's speech to the first word of the reply, in seconds.
// `whose`: ours (the sidecar), model, or page (this browser and the way to it).
export function legsOf({ marks, timing }) {
  if (!timing || marks.first === null) return null;
  const legs = [];
  if (marks.speechEnd !== null)
    legs.push({
      name: "Speech recognised",
      whose: "page",
      took: (marks.sent - marks.speechEnd) / 1000,
    });
  const away = (marks.lastSent - marks.sent) / 1000;
  if (away > 0) legs.push({ name: "Sidecar down", whose: "ours", took: away });
  legs.push(
    { name: "Turn stored on disk", whose: "ours", took: timing.store_s },
    { name: "Wait for memory", whose: "ours", took: timing.memory_wait_s ?? 0 },
    { name: "Prompt built", whose: "ours", took: timing.prompt_s ?? 0 },
    { name: "First token", whose: "model", took: timing.first_token_s ?? 0 },
  );
  const known = legs.filter((leg) => leg.whose !== "page").reduce((sum, leg) => sum + leg.took, 0);
  const round = (marks.first - marks.sent) / 1000; // with `away`, which is in `known`
  const drawn = marks.drawn ? (marks.drawn - marks.first) / 1000 : 0;
  legs.push({
    name: "First word on the page",
    whose: "page",
    took: Math.max(0, round - known) + drawn,
  });
  let from = 0;
  for (const leg of legs) {
    leg.took = Math.max(0, leg.took);
    leg.from = from;
    from += leg.took;
  }
  return {
    legs,
    total: from,
    share: (whose) =>
      legs.filter((leg) => leg.whose === whose).reduce((sum, leg) => sum + leg.took, 0),
  };
}

export class Exchange extends Component {
  shouldComponentUpdate(next, has) {
    const { exchange, prompt, live } = this.props;
    return (
      exchange !== next.exchange ||
      prompt !== next.prompt ||
      live !== next.live ||
      has.open !== this.state.open
    );
  }

  toggle = () => {
    const open = !this.state.open;
    if (open) showPrompt(mine(this.props.callKey), this.props.exchange.id);
    this.setState({ open });
  };

  render({ exchange, live, prompt }, { open }) {
    return html`
      <li class="exchange">
        ${
          exchange.said &&
          html`<div class="said">
            <p class="bubble">${exchange.said}</p>
            <p class="fate">${fate(exchange)}</p>
          </div>`
        }
        ${
          (exchange.reply || (live && !exchange.over)) &&
          html`<div class="replied">
            <p class=${exchange.over ? "reply" : "reply speaking"}>
              ${exchange.reply}${
                exchange.interrupted && exchange.over
                  ? html` <span class="tag">interrupted</span>`
                  : ""
              }
            </p>
            ${
              exchange.said &&
              html`<${Meta} exchange=${exchange} open=${open} toggle=${this.toggle} />`
            }
            ${open && html`<${Detail} exchange=${exchange} prompt=${prompt} />`}
          </div>`
        }
      </li>
    `;
  }
}

function fate(exchange) {
  if (!exchange.kept) return "not kept";
  return exchange.stored ? "stored" : "not stored yet";
}

function hadMemory(served, ageS) {
  if (served === "none") return "no memory";
  return `memory ${SERVED[served].word}${ageS === null ? "" : `, ${seconds(ageS)} old`}`;
}

function Meta({ exchange, open, toggle }) {
  const timed = legsOf(exchange);
  if (!timed) return null;
  const { memory } = exchange;
  return html`
    <button type="button" class="meta" aria-expanded=${open ? "true" : "false"} onClick=${toggle}>
      <${Bar} timed=${timed} />
      <span>${millis(timed.total)} to the first word</span>
      <span class="ours">sidecar ${millis(timed.share("ours"))}</span>
      ${memory && html`<span>${hadMemory(memory.served, memory.age_s)}</span>`} ${chevron}
    </button>
  `;
}

function Bar({ timed }) {
  const scale = 100 / Math.max(timed.total, 1e-6);
  return html`<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
    ${timed.legs.map(
      (leg) =>
        html`<rect
          class=${leg.whose}
          x=${leg.from * scale}
          width=${leg.took * scale}
          height="6"
        />`,
    )}
  </svg>`;
}

function Detail({ exchange, prompt }) {
  const timed = legsOf(exchange);
  const scale = 100 / Math.max(timed.total, 1e-6);
  return html`
    <div class="detail">
      <table class="waterfall">
        <caption>
          From ${exchange.marks.speechEnd === null ? "“send”" : "the end of speech"} to the first
          word: ${millis(timed.total)}. The sidecar’s share is ${millis(timed.share("ours"))}, the
          model’s ${millis(timed.share("model"))}.
        </caption>
        <thead class="unseen">
          <tr>
            <th scope="col">Step</th>
            <th scope="col">When</th>
            <th scope="col">Took</th>
          </tr>
        </thead>
        <tbody>
          ${timed.legs.map(
            (leg) =>
              html`<tr key=${leg.name}>
                <th scope="row">
                  <span class=${`key ${leg.whose}`} aria-hidden="true"></span>${leg.name}<span
                    class="unseen"
                    >, ${WHOSE[leg.whose]}</span
                  >
                </th>
                <td class="track">
                  <svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
                    <rect
                      class=${leg.whose}
                      x=${Math.min(99, leg.from * scale)}
                      width=${Math.max(1, leg.took * scale)}
                      height="8"
                      rx="1"
                    />
                  </svg>
                </td>
                <td class="took">${millis(leg.took)}</td>
              </tr>`,
          )}
        </tbody>
      </table>
      <p class="legend quiet small">
        ${Object.entries(WHOSE).map(
          ([whose, name]) =>
            html`<span key=${whose}
              ><span class=${`key ${whose}`} aria-hidden="true"></span>${name}</span
            >`,
        )}
      </p>
      <h3>The exact prompt</h3>
      ${prompt === undefined && html`<p class="quiet small">Loading …</p>`}
      ${
        prompt === null &&
        html`<p class="quiet small">
          No longer available: the sidecar keeps the latest twenty, until it restarts.
        </p>`
      }
      ${
        prompt &&
        html`<div class="prompt" tabindex="0" role="region" aria-label="Messages of the prompt">
          <ol>
            ${prompt.map(
              (message, i) =>
                html`<li key=${i}>
                  <span class="role">${message.role}</span>
                  <pre>${message.content}</pre>
                </li>`,
            )}
          </ol>
        </div>`
      }
    </div>
  `;
}

const WHOSE = { ours: "the sidecar", model: "the model", page: "this browser" };

// The legs that a LiveKit worker measured for a turn of the agent, in seconds. Its model's time
// begins before the memory wait, which is told apart.
function measured(metrics) {
  const wait = metrics.memory_wait_s ?? 0;
  const legs = [
    { whose: "ours", took: wait },
    { whose: "model", took: Math.max(0, (metrics.llm_node_ttft ?? 0) - wait) },
    { whose: "page", took: metrics.tts_node_ttfb ?? 0 },
  ];
  let from = 0;
  for (const leg of legs) {
    leg.from = from;
    from += leg.took;
  }
  return { legs, total: from };
}

// A turn of a call that is not this page's.
export class Heard extends Component {
  shouldComponentUpdate(next) {
    return (
      this.props.turn.text !== next.turn.text ||
      this.props.turn.interrupted !== next.turn.interrupted
    );
  }

  render({ turn: { speaker, text, interrupted, metrics } }) {
    const tag = interrupted && html` <span class="tag">interrupted</span>`;
    if (speaker === "caller")
      return html`<li class="exchange">
        <div class="said"><p class="bubble">${text}${tag}</p></div>
      </li>`;
    const served = Object.keys(SERVED).find((word) => `memory_served_${word}` in metrics);
    return html`<li class="exchange">
      <div class="replied">
        <p class="reply">${text}${tag}</p>
        ${
          served &&
          html`<p class="meta">
            ${metrics.llm_node_ttft && html`<${Bar} timed=${measured(metrics)} />`}
            ${
              metrics.e2e_latency &&
              html`<span>${millis(metrics.e2e_latency)} to the first word</span>`
            }
            <span class="ours">sidecar ${millis(metrics.memory_wait_s ?? 0)}</span>
            ${
              metrics.llm_node_ttft &&
              html`<span>model ${millis(measured(metrics).legs[1].took)}</span>`
            }
            ${metrics.tts_node_ttfb && html`<span>voice ${millis(metrics.tts_node_ttfb)}</span>`}
            <span>${hadMemory(served, metrics.memory_age_s ?? null)}</span>
          </p>`
        }
      </div>
    </li>`;
  }
}
