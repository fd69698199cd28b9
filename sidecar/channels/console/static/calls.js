// Calls: those this page holds, those of other channels, and past ones.

import { speaking, stopSpeaking, takePiece, takeWhole } from "./speech.js";
import { announce, change, complain, state } from "./store.js";
import { receive, send } from "./wire.js";

export const keyOf = (id) => `${state.tenant}/console-${id}`;
export const mine = (key = state.selected) => state.mine.get(key);

// An exchange is what the caller said and what was replied:
// { id, said, atS, stored, kept, marks, reply, replied, over, interrupted, replyStored, timing,
// memory }
// `marks` are moments on this page's clock, in ms: speechEnd, sent, lastSent (equals sent, unless
// a sidecar that was down had to be sent it again), first, drawn.

export function startCall(caller, consent) {
  const key = keyOf(crypto.randomUUID());
  const call = {
    key,
    caller,
    consent,
    live: false,
    opening: true,
    lane: "",
    kept: true,
    exchanges: [],
    draft: "",
    atS: Date.now() / 1000,
    heard: false,
  };
  if (!send({ type: "call.start", call: key, caller, consent })) {
    complain("The sidecar is not connected yet. Try again in a moment.");
    return;
  }
  state.mine.set(key, call);
  state.notice = "";
  select(key);
}

export function endCall(key) {
  stopSpeaking(key);
  send({ type: "call.end", call: key });
}

export function select(key) {
  state.selected = key;
  state.watched = null;
  state.view = "talk";
  send({ type: "call.watch", call: state.mine.has(key) ? "" : key });
  change();
}

export function startSpeaking(call) {
  if (call.live && !call.heard) call.heard = send({ type: "speech.started", call: call.key });
}

// The caller speaks or types while the agent speaks: it falls silent at once.
export function bargeIn(call) {
  if (!speaking(call.key)) return;
  send({ type: "reply.stop", call: call.key, heard_chars: stopSpeaking(call.key) });
}

export function say(call, raw, { speechEndMs = null } = {}) {
  const said = raw.trim();
  if (!said || !call.live) return false;
  bargeIn(call);
  const now = performance.now();
  const exchange = {
    id: crypto.randomUUID(),
    said,
    atS: Date.now() / 1000,
    stored: false,
    kept: call.kept,
    marks: { speechEnd: speechEndMs, sent: now, lastSent: now, first: null },
    reply: "",
    over: false,
    interrupted: false,
    replyStored: false,
    timing: null,
    memory: null,
  };
  call.exchanges.push(exchange);
  call.heard = false;
  state.notice = "";
  tell(call, exchange); // without a connection it is said when the page is back
  change();
  return true;
}

function tell(call, exchange) {
  const aloud = speaking.wanted();
  send({ type: "say", call: call.key, turn: exchange.id, text: exchange.said, aloud });
}

function put(call, id, news) {
  const at = call.exchanges.findLastIndex((one) => one.id === id);
  if (at < 0) return null;
  call.exchanges[at] = { ...call.exchanges[at], ...news };
  return call.exchanges[at];
}

export function showPrompt(call, id) {
  if (!state.prompts.has(id)) send({ type: "prompt.show", call: call.key, turn: id });
}

// What was said on this page and what of it is stored for sure.
export function tally() {
  let said = 0;
  let stored = 0;
  for (const call of state.mine.values()) {
    if (!call.kept) continue;
    said += call.exchanges.length;
    stored += call.exchanges.filter((one) => one.stored).length;
  }
  return { said, stored };
}

export const unanswered = () =>
  [...state.mine.values()].some((call) => call.live && call.exchanges.some((one) => !one.over));

receive({
  ready(frame) {
    Object.assign(state, {
      summary: frame.summary,
      tenant: frame.tenant,
      pid: frame.pid,
      plug: frame.plug,
      restarts: frame.restarts,
    });
    for (const call of state.mine.values()) {
      if (call.live || call.opening)
        send({ type: "call.start", call: call.key, caller: call.caller, consent: call.consent });
    }
    if (state.selected && !state.mine.has(state.selected))
      send({ type: "call.watch", call: state.selected });
  },

  call(frame) {
    const call = mine(frame.call);
    if (!call) return;
    const resumed = call.live;
    call.live = frame.live;
    call.opening = false;
    if (!frame.live) {
      stopSpeaking(call.key);
      call.endedS = Date.now() / 1000;
      announce("The call has ended.");
      return;
    }
    Object.assign(call, { lane: frame.lane, kept: frame.kept, heard: false });
    if (!resumed) {
      announce(`${call.caller || "A caller without a name"} is calling.`);
      return;
    }
    // Taken up again: what the sidecar holds decides what is stored, not what this page believes.
    const acked = new Set(frame.turns.map((turn) => turn.id));
    call.exchanges = call.exchanges.map((one) =>
      one.over
        ? { ...one, stored: acked.has(one.id) }
        : { ...one, stored: acked.has(one.id), reply: "", marks: { ...one.marks, first: null } },
    );
    for (const one of call.exchanges) {
      if (!one.said || (one.over && (!call.kept || one.stored))) continue;
      one.marks.lastSent = performance.now();
      tell(call, one);
    }
  },

  turn(frame) {
    const call = mine(frame.call);
    if (call) put(call, frame.turn, { stored: frame.stored });
  },

  "reply.delta"(frame) {
    const call = mine(frame.call);
    const before = call?.exchanges.findLast((one) => one.id === frame.turn);
    if (!before || before.over) return;
    const exchange = put(call, frame.turn, { reply: before.reply + frame.text });
    if (before.marks.first === null) {
      exchange.marks = { ...before.marks, first: performance.now() };
      requestAnimationFrame(() => {
        exchange.marks.drawn = performance.now();
      });
    }
    takePiece(call.key, frame.turn, frame.text);
  },

  "reply.spoken"(frame) {
    takeWhole(frame.call, frame.turn, () =>
      send({ type: "reply.heard", call: frame.call, turn: frame.turn }),
    );
  },

  "reply.end"(frame) {
    const call = mine(frame.call);
    if (!call) return;
    const news = {
      reply: frame.text,
      over: true,
      interrupted: frame.interrupted,
      replyStored: frame.stored,
    };
    if (frame.timing) Object.assign(news, { timing: frame.timing, memory: frame.memory });
    put(call, frame.turn, news);
    if (frame.text) announce(`Agent: ${frame.text}`);
  },

  // The sidecar's owner had the agent say something of its own accord.
  "agent.said"(frame) {
    const call = mine(frame.call);
    if (!call) return;
    const now = performance.now();
    call.exchanges.push({
      id: frame.turn,
      said: "",
      atS: Date.now() / 1000,
      stored: frame.stored,
      kept: call.kept,
      marks: { speechEnd: null, sent: now, lastSent: now, first: null },
      reply: frame.text,
      over: true,
      interrupted: false,
      replyStored: frame.stored,
      timing: null,
      memory: null,
    });
    takePiece(call.key, frame.turn, frame.text);
    announce(`Agent: ${frame.text}`);
    change();
  },

  prompt(frame) {
    state.prompts.set(frame.turn, frame.messages);
    while (state.prompts.size > 20) state.prompts.delete(state.prompts.keys().next().value);
  },

  calls(frame) {
    state.live = frame.live;
    state.past = frame.past;
  },

  transcript(frame) {
    if (frame.call === state.selected) state.watched = frame;
  },
});
