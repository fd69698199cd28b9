// The agent's blocks beside the call, with what changed since the call began.

import { changes, diffOf } from "./diff.js";
import { laneOf } from "./learned.js";
import { state } from "./store.js";
import { html } from "./vendor/htm-preact.js";
import { age, counted, moment, SERVED } from "./words.js";

export function Memory() {
  const memory = state.memory.get(state.selected);
  const mine = state.mine.get(state.selected);
  return html`
    <section class="panel memory" aria-labelledby="memory-title">
      <header class="panel-head">
        <h2 id="memory-title">Memory</h2>
        ${
          memory &&
          (memory.frozen
            ? frozenAt(memory)
            : html`<${Served} served=${memory.served} readAtS=${memory.read_at_s} />`)
        }
      </header>
      <div class="panel-body" tabindex="0" role="region" aria-label="The agent’s memory blocks">
        ${memory ? shown(memory, mine) : html`<p class="quiet">${notShown(mine)}</p>`}
      </div>
    </section>
  `;
}

function notShown(mine) {
  if (mine) return "Reading the memory …";
  return state.selected
    ? "The memory of a call is shown while it is live."
    : "The agent’s memory blocks are shown here once a call has started.";
}

function frozenAt({ changedAtMs, read_at_s: readAtS }) {
  const atS = changedAtMs ? changedAtMs / 1000 : readAtS;
  return html`<p class="quiet small">${atS ? `as it was at ${moment(atS)}` : "as it was"}</p>`;
}

export function Served({ served, readAtS }) {
  const { word, means } = SERVED[served];
  return html`<p class=${`served ${served}`} title=${means}>
    <span class="dot" aria-hidden="true"></span
    >${word}${readAtS ? html`<span class="quiet">, read ${age(readAtS)} ago</span>` : ""}
  </p>`;
}

function shown(memory, mine) {
  const parts = memory.blocks.map((block) => ({
    block,
    lines: diffOf(memory.base?.get(block.label) ?? "", block.value),
  }));
  for (const [label, value] of memory.base ?? []) {
    if (memory.blocks.length && !memory.blocks.some((block) => block.label === label)) {
      parts.push({
        block: { label, value: "", description: "This block was removed." },
        lines: diffOf(value, ""),
      });
    }
  }
  const sum = (kind) => parts.reduce((n, part) => n + changes(part.lines)[kind], 0);
  const learned = [
    sum("added") && `learned ${counted(sum("added"), "line")}`,
    sum("gone") && `removed ${counted(sum("gone"), "line")}`,
  ]
    .filter(Boolean)
    .join(" and ");
  const from = learnedFrom(memory, mine);
  const whence = ` from ${from}, ${age(memory.changedAtMs / 1000)} ago.`;
  return html`
    ${
      memory.changedAtMs &&
      learned &&
      html`<p class="learned" key=${memory.changedAtMs}>
        <strong>Letta ${learned}</strong>${whence}
      </p>`
    }
    ${mine && !mine.live && !memory.changedAtMs && html`<p class="quiet">${waiting(mine)}</p>`}
    ${parts.map((part) => html`<${Block} key=${part.block.label} ...${part} />`)}
    ${
      !memory.blocks.length &&
      html`<p class="quiet">
        ${
          mine && !mine.caller
            ? "A caller without a name has no memory."
            : "No memory yet. Letta creates it after reading the first call."
        }
      </p>`
    }
    ${
      !memory.frozen &&
      html`<details class="exact">
        <summary>The exact text for the next prompt</summary>
        <pre tabindex="0">${memory.text || "(nothing)"}</pre>
      </details>`
    }
  `;
}

function learnedFrom({ from }, mine) {
  if (from === state.selected) return "this call";
  if (from) return "an earlier call";
  return mine && !mine.live ? "this call" : "what was said since this call began";
}

function waiting(mine) {
  if (state.outbox?.batches.some((one) => one.call === mine.key && one.state === "dead"))
    return "Letta did not accept this call: it is in the outbox, under Dead.";
  const due =
    state.outbox &&
    (state.outbox.pending.some((one) => one.lane === laneOf(mine.key)) ||
      state.outbox.batches.some(
        (one) => one.call === mine.key && !["settled", "dead"].includes(one.state),
      ));
  if (!mine.kept) return "This call was not kept, so Letta learns nothing from it.";
  return due
    ? "Letta has not read this call yet."
    : "This call changed nothing in the blocks.";
}

function Block({ block, lines }) {
  const used = block.limit_chars ? Math.min(1, block.value.length / block.limit_chars) : 0;
  return html`
    <article class="block">
      <header>
        <h3>${block.label}</h3>
        ${block.read_only && html`<span class="tag">read only</span>`}
        ${
          used > 0 &&
          html`<span
            class="fill"
            title=${`${block.value.length} of ${block.limit_chars} characters`}
            ><svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
              <rect class="fill-all" width="100" height="4" rx="2" />
              <rect class="fill-used" width=${Math.max(2, used * 100)} height="4" rx="2" /></svg
          ></span>`
        }
      </header>
      ${block.description && html`<p class="quiet small">${block.description}</p>`}
      <ul class="lines">
        ${lines.map(
          (line, i) =>
            html`<li key=${`${line.kind}${i}${line.text}`} class=${line.kind}>
              ${
                line.kind !== "same" &&
                html`<span class="unseen">${line.kind === "new" ? "added: " : "removed: "}</span>`
              }${line.text}
            </li>`,
        )}
        ${!lines.length && html`<li class="quiet">empty</li>`}
      </ul>
    </article>
  `;
}
