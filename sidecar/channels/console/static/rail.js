// All calls: live ones of every channel, and past ones.

import { select } from "./calls.js";
import { state } from "./store.js";
import { NewCall } from "./talk.js";
import { html } from "./vendor/htm-preact.js";
import { CHANNELS, counted, moment, seconds } from "./words.js";

export function Rail() {
  const live = state.live;
  const past = state.past;
  return html`
    <section class="rail" aria-labelledby="calls-title">
      <h2 id="calls-title" class="unseen">Calls</h2>
      ${(state.selected || live.length > 0) && html`<${NewCall} id="rail" />`}
      <h3>On the line <span class="count">${live.length}</span></h3>
      ${
        live.length
          ? html`<ul class="calls">
              ${live.map((one) => html`<${Row} key=${one.call} one=${one} live=${true} />`)}
            </ul>`
          : html`<p class="quiet small">
              No live calls. Calls via LiveKit and VAPI appear here, too.
            </p>`
      }
      <h3>Past calls</h3>
      ${
        past.length
          ? html`<ul class="calls past">
              ${past.map((one) => html`<${Row} key=${one.call} one=${one} />`)}
            </ul>`
          : html`<p class="quiet small">None yet.</p>`
      }
    </section>
  `;
}

function Row({ one, live }) {
  const mine = state.mine.get(one.call);
  const name = mine ? mine.caller || "No name" : nameOf(one);
  const channel = CHANNELS[one.channel] ?? one.channel;
  const turns = one.turns ? `${counted(one.turns, "turn")}, ` : "";
  const about = live
    ? `${channel}, ${turns}${seconds(Date.now() / 1000 - one.opened_at_s)}`
    : `${channel}, ${moment(one.opened_at_s)}`;
  return html`
    <li>
      <button
        type="button"
        aria-current=${state.selected === one.call ? "true" : "false"}
        onClick=${() => select(one.call)}
      >
        ${live && html`<span class="pulse" aria-hidden="true"></span>`}
        <span class="name">${name}</span>
        <span class="quiet small">${about}</span>
      </button>
    </li>
  `;
}

// A call of another page or channel has no name here: callers are known by a key alone.
export function nameOf(one) {
  for (const mine of state.mine.values())
    if (mine.lane && mine.lane === one.lane) return mine.caller;
  return `Caller ${one.lane.split("/").at(-1).slice(0, 6)}`;
}
