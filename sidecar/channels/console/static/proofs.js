// Two faults to try for yourself, both real: Letta out of reach, and the process killed.

import { tally, unanswered } from "./calls.js";
import { bolt, plug } from "./icons.js";
import { change, state } from "./store.js";
import { html } from "./vendor/htm-preact.js";
import { counted, seconds } from "./words.js";
import { receive, send } from "./wire.js";

receive({
  plug(frame) {
    if (frame.pulled && !state.plug)
      state.plugged = { pulledMs: performance.now(), restoredMs: null, drainedMs: null, most: 0 };
    if (!frame.pulled && state.plug && state.plugged) state.plugged.restoredMs = performance.now();
    state.plug = frame.pulled;
  },
});

function pull() {
  send({ type: "plug", pulled: !state.plug });
}

function kill() {
  state.killed = { atMs: performance.now(), pid: state.pid, backMs: null, lost: null };
  send({ type: "kill" });
  change();
}

// Looked at whenever the page is drawn.
function follow() {
  const { plugged, killed, outbox } = state;
  if (plugged && outbox) {
    plugged.most = Math.max(plugged.most, outbox.undelivered);
    if (plugged.restoredMs && !plugged.drainedMs && outbox.undelivered === 0)
      plugged.drainedMs = performance.now();
  }
  if (killed && !killed.backMs && state.link === "open" && state.pid !== killed.pid)
    killed.backMs = performance.now();
  if (killed?.backMs && killed.lost === null && !unanswered()) {
    const { said, stored } = tally();
    Object.assign(killed, { said, stored, lost: said - stored });
  }
}

const took = (from, to) => `${((to - from) / 1000).toFixed(1)} s`;

function plugWords() {
  const { plugged, outbox } = state;
  if (state.plug) {
    // What ticks is not read out each second.
    const since =
      plugged &&
      html`<span aria-hidden="true">
        for ${seconds((performance.now() - plugged.pulledMs) / 1000)}</span
      >`;
    return html`Letta is out of reach${since}. Calls go on;
    ${counted(outbox?.undelivered ?? 0, "turn")} ${outbox?.undelivered === 1 ? "waits" : "wait"}
    here.`;
  }
  if (!plugged?.restoredMs) return "";
  if (!plugged.drainedMs) return "Letta is back. The outbox drains with the next try.";
  const drained = took(plugged.restoredMs, plugged.drainedMs);
  const waited = `Letta was away; ${counted(plugged.most, "turn")} waited.`;
  return `${waited} All were delivered ${drained} after it came back.`;
}

function killWords() {
  const { killed } = state;
  if (!killed) return "";
  if (!killed.backMs) return "Killed. Waiting for the next process …";
  const later = took(killed.atMs, killed.backMs);
  const back = `Process ${killed.pid} was killed; ${state.pid} took over ${later} later.`;
  if (killed.lost === null) return `${back} Counting …`;
  return `${back} ${killed.stored} of ${counted(killed.said, "turn")} stored, ${killed.lost} lost.`;
}

export function Proofs() {
  follow();
  return html`
    <div class="proofs">
      <div class="row">
        <button
          type="button"
          class=${state.plug ? "proof pulled" : "proof"}
          id="plug"
          aria-pressed=${state.plug ? "true" : "false"}
          disabled=${state.link !== "open"}
          onClick=${pull}
        >
          ${plug}${state.plug ? "Plug Letta in again" : "Pull Letta’s plug"}
        </button>
        <button
          type="button"
          class="proof"
          id="kill"
          disabled=${state.link !== "open" || !state.restarts}
          onClick=${kill}
          aria-describedby="kill-note"
        >
          ${bolt}kill −9 the sidecar
        </button>
      </div>
      <p class="small quiet" id="kill-note" hidden=${state.restarts || state.link !== "open"}>
        To try this, start the sidecar with <code>sidecar run --restart</code>, as
        ${" "}<code>make run</code> does: it is restarted when it is killed.
      </p>
      <div role="status" class="outcome small">
        <p>${plugWords()}</p>
        <p>${killWords()}</p>
      </div>
    </div>
  `;
}
