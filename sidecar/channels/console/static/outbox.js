// The outbox: what is on its way to Letta, by how far it has come.

import { nameOf } from "./rail.js";
import { Proofs } from "./proofs.js";
import { change, state } from "./store.js";
import { html, useState } from "./vendor/htm-preact.js";
import { age, counted } from "./words.js";
import { receive, send } from "./wire.js";

receive({
  outbox(frame) {
    state.outbox = frame;
  },
});

const LANES = [
  { name: "Pending", states: [], about: "stored, not yet in a batch" },
  { name: "Sealed", states: ["sealed", "retry", "unknown"], about: "waiting for the next try" },
  { name: "Sending", states: ["sending"], about: "being sent to Letta" },
  { name: "Settled", states: ["settled"], about: "Letta has read it" },
  { name: "Dead", states: ["dead"], about: "given up: replay or drop" },
];

const WORDS = { retry: "will be tried again", unknown: "in doubt: will be looked up first" };

export function Outbox() {
  const { outbox } = state;
  return html`
    <section class="panel outbox" aria-labelledby="outbox-title">
      <header class="panel-head">
        <div>
          <h2 id="outbox-title">Outbox</h2>
          <p
            class="quiet small"
            id="undelivered"
            data-undelivered=${outbox?.undelivered ?? ""}
            data-stored=${outbox?.turns ?? ""}
          >
            ${
              outbox
                ? html`<strong class="figure">${outbox.undelivered}</strong> of ${counted(
                    outbox.turns,
                    "turn",
                  )} not yet in Letta`
                : "…"
            }
          </p>
        </div>
        <${Proofs} />
      </header>
      <ol class="lanes">
        ${LANES.map((lane) => html`<${Lane} key=${lane.name} lane=${lane} />`)}
      </ol>
    </section>
  `;
}

function Lane({ lane }) {
  const { outbox } = state;
  const pending = lane.name === "Pending";
  const items = pending
    ? (outbox?.pending ?? [])
    : (outbox?.batches ?? []).filter((one) => lane.states.includes(one.state));
  const turns = items.reduce((sum, one) => sum + one.turns, 0);
  return html`
    <li class=${`lane ${lane.name.toLowerCase()}`} data-lane=${lane.name.toLowerCase()}>
      <h3>${lane.name}${lane.name !== "Settled" && html` <span class="count">${turns}</span>`}</h3>
      <p class="quiet small">${lane.about}</p>
      <ul>
        ${items.map(
          (one) => html`<${Card} key=${one.batch ?? one.lane} one=${one} lane=${lane.name} />`,
        )}
      </ul>
    </li>
  `;
}

function Card({ one, lane }) {
  const mine = state.mine.get(one.call);
  const since =
    { Pending: one.oldest_s, Settled: one.ended_s, Dead: one.ended_s }[lane] ?? one.sealed_at_s;
  const how = ["Settled", "Dead"].includes(lane) ? "ago" : "old";
  return html`
    <li class="card">
      <p>
        <span class="name">${mine ? mine.caller || "No name" : nameOf(one)}</span>
        <span class="quiet">${` ${counted(one.turns, "turn")}`}</span>
      </p>
      <p class="quiet small">
        ${since ? `${age(since)} ${how}` : ""}${
          one.attempt > 1 || one.state === "retry" ? `, ${one.attempt} tries` : ""
        }${WORDS[one.state] ? `, ${WORDS[one.state]}` : ""}
      </p>
      ${one.error && lane !== "Settled" && html`<p class="small error">${one.error}</p>`}
      ${lane === "Dead" && html`<${Dead} batch=${one.batch} />`}
    </li>
  `;
}

function Dead({ batch }) {
  const [sure, setSure] = useState(false);
  const act = (type) => () => {
    send({ type, batch });
    setSure(false);
    change();
  };
  if (sure) {
    return html`<p class="acts">
      <span class="small">Letta will never get it.</span
      ><button type="button" class="small danger" onClick=${act("outbox.drop")}>Drop it</button
      ><button type="button" class="small" onClick=${() => setSure(false)}>Cancel</button>
    </p>`;
  }
  return html`<p class="acts">
    <button type="button" class="small" onClick=${act("outbox.replay")}>Replay</button
    ><button type="button" class="small" onClick=${() => setSure(true)}>Drop …</button>
  </p>`;
}
