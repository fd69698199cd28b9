// The console page: one WebSocket to the sidecar, frames as in session.py beside this folder.
// Everything that was said or remembered is put into the page as text, never as markup.

const $ = (id) => document.getElementById(id);
const token = decodeURIComponent(location.hash.slice(1));
const BACKOFF_MS = [500, 1000, 2000, 5000];
const SERVED = {
  fresh: "fresh: just read from Letta",
  stale: "kept: the last good read",
  disk: "from disk: not read again yet",
  none: "no memory at hand",
};

const state = {
  socket: null,
  failures: 0,
  live: false,
  caller: "",
  agentTurn: null, // the list item a reply streams into
  readAtMs: null, // when the memory shown was read, on this page's clock
  shown: new Map(), // caller -> label -> lines, as last shown
  prefetched: false, // this utterance has announced itself
};

// The socket ------------------------------------------------------------------------------------

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(`${scheme}//${location.host}/console/ws`);
  state.socket = socket;
  socket.addEventListener("open", () => send({ type: "hello", token }));
  socket.addEventListener("message", (event) => receive(JSON.parse(event.data)));
  socket.addEventListener("close", (event) => lost(socket, event.code));
}

function send(frame) {
  if (state.socket?.readyState === WebSocket.OPEN) {
    state.socket.send(JSON.stringify(frame));
    return true;
  }
  return false;
}

function lost(socket, code) {
  if (socket !== state.socket) return;
  if (state.live) mark("The connection was lost; the sidecar ended this call.");
  showCall(false);
  $("start").disabled = true;
  badge("not connected", "lost");
  if (code === 4401) {
    complain("This link is out of date. Open the one that the sidecar printed when it started.");
    return;
  }
  const wait = BACKOFF_MS[Math.min(state.failures, BACKOFF_MS.length - 1)];
  state.failures += 1;
  setTimeout(connect, wait);
}

const receivers = {
  ready(frame) {
    state.failures = 0;
    complain("");
    badge("connected", "");
    const { letta = "?", llm = "?" } = frame.summary;
    $("parts").textContent = `Replies by ${llm} · memory by ${letta}`;
    $("start").disabled = false;
  },
  call(frame) {
    if (frame.live) {
      state.caller = frame.caller;
      clearMemory();
      mark(frame.caller ? `${frame.caller} is calling` : "Somebody without a name is calling");
    } else if (state.live) {
      mark("The call has ended");
    }
    showCall(frame.live);
  },
  "reply.delta"(frame) {
    state.agentTurn ??= addTurn("agent", "");
    state.agentTurn.text.textContent += frame.text;
    scrollDown();
  },
  "reply.end"(frame) {
    const turn = state.agentTurn;
    state.agentTurn = null;
    if (!turn) return;
    turn.item.classList.remove("speaking");
    const said = turn.text.textContent;
    if (frame.interrupted) turn.who.textContent += ", interrupted";
    else readAloud(said);
    $("announce").textContent = `Agent: ${said}`;
  },
  memory: showMemory,
  outbox(frame) {
    const dead = frame.dead ? `, ${frame.dead} given up` : "";
    $("undelivered").textContent = `${frame.undelivered} turns${dead}`;
    $("undelivered").classList.toggle("behind", frame.dead > 0);
  },
  error(frame) {
    complain(frame.message);
  },
};

function receive(frame) {
  receivers[frame.type]?.(frame);
}

// The call --------------------------------------------------------------------------------------

$("call").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.live) return;
  complain("");
  $("turns").replaceChildren();
  send({ type: "call.start", caller: $("caller").value.trim() });
});

$("end").addEventListener("click", () => {
  hush();
  send({ type: "call.end" });
});

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  say($("said").value);
});

// What is typed is prefetched for as speech would be: at its first letter.
$("said").addEventListener("input", announceSpeech);

function announceSpeech() {
  if (!state.prefetched && state.live) state.prefetched = send({ type: "speech.started" });
}

function say(raw) {
  const text = raw.trim();
  if (!text || !state.live) return;
  hush();
  if (!send({ type: "say", text })) return;
  $("said").value = "";
  state.prefetched = false;
  complain("");
  addTurn("caller", text);
}

function showCall(live) {
  state.live = live;
  state.prefetched = false;
  if (!live) {
    state.agentTurn?.item.classList.remove("speaking");
    state.agentTurn = null;
    recognizer?.abort();
  }
  $("start").hidden = live;
  $("end").hidden = !live;
  $("caller").disabled = live;
  for (const id of ["said", "send", "listen"]) $(id).disabled = !live;
  badge(live ? "in a call" : "connected", live ? "live" : "");
  (live ? $("said") : $("caller")).focus();
}

function addTurn(speaker, said) {
  const item = document.createElement("li");
  const who = document.createElement("span");
  const text = document.createElement("span");
  item.className = speaker;
  who.className = "who";
  who.textContent = speaker === "caller" ? state.caller || "caller" : "agent";
  text.textContent = said;
  item.append(who, text);
  if (speaker === "agent") item.classList.add("speaking");
  $("turns").append(item);
  $("empty").hidden = true;
  scrollDown();
  return { item, who, text };
}

function mark(text) {
  const item = document.createElement("li");
  item.className = "mark";
  item.textContent = text;
  $("turns").append(item);
  $("empty").hidden = true;
  $("announce").textContent = text;
  scrollDown();
}

function scrollDown() {
  $("turns").scrollTop = $("turns").scrollHeight;
}

function badge(text, kind) {
  $("connection").textContent = text;
  $("connection").className = `badge ${kind}`;
}

function complain(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// The memory ------------------------------------------------------------------------------------

function clearMemory() {
  state.readAtMs = null;
  $("served").textContent = $("version").textContent = $("age").textContent = "–";
  $("blocks").replaceChildren(quietly("Reading the memory …"));
  $("prompt-part").hidden = true;
}

function showMemory(frame) {
  state.readAtMs = frame.age_s === null ? null : Date.now() - frame.age_s * 1000;
  $("served").textContent = SERVED[frame.served] ?? frame.served;
  $("version").textContent = frame.version ? frame.version.slice(0, 8) : "–";
  $("prompt").textContent = frame.text;
  $("prompt-part").hidden = !frame.text;
  showAge();
  const before = state.shown.get(state.caller);
  const now = new Map(frame.blocks.map((block) => [block.label, linesOf(block.value)]));
  const changed = !before || JSON.stringify([...before]) !== JSON.stringify([...now]);
  if (!changed && $("blocks").querySelector(".block")) return;
  state.shown.set(state.caller, now);
  const shown = frame.blocks.map((block) => showBlock(block, before?.get(block.label)));
  $("blocks").replaceChildren(...(shown.length ? shown : [quietly("There is no memory yet.")]));
  if (before && changed) $("announce").textContent = "The memory has changed.";
}

function showBlock(block, before) {
  const part = document.createElement("div");
  const title = document.createElement("h3");
  const list = document.createElement("ul");
  part.className = "block";
  title.textContent = block.label;
  part.append(title);
  if (block.description) part.append(quietly(block.description));
  const now = linesOf(block.value);
  for (const line of before?.filter((old) => !now.includes(old)) ?? []) {
    list.append(lineOf(line, "gone", "was"));
  }
  for (const line of now) {
    list.append(before && !before.includes(line) ? lineOf(line, "new", "new") : lineOf(line, "", ""));
  }
  if (!now.length) list.append(lineOf("(empty)", "", ""));
  part.append(list);
  return part;
}

function lineOf(text, kind, tag) {
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = text;
  if (tag) {
    const label = document.createElement("span");
    label.className = "tag";
    label.textContent = tag;
    item.append(label);
  }
  return item;
}

function linesOf(value) {
  return value.split("\n").filter((line) => line.trim());
}

function quietly(text) {
  const part = document.createElement("p");
  part.className = "quiet";
  part.textContent = text;
  return part;
}

function showAge() {
  if (state.readAtMs === null) return;
  const seconds = Math.max(0, Math.round((Date.now() - state.readAtMs) / 1000));
  $("age").textContent = seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
}
setInterval(showAge, 1000);

// Speech ----------------------------------------------------------------------------------------

const Recognition = window.SpeechRecognition ?? window.webkitSpeechRecognition;
const recognizer = Recognition ? new Recognition() : null;

if (recognizer) {
  recognizer.lang = navigator.language;
  recognizer.interimResults = true;
  $("listen").hidden = $("listen-note").hidden = false;
  $("listen").addEventListener("click", () => {
    if ($("listen").getAttribute("aria-pressed") === "true") recognizer.stop();
    else recognizer.start();
  });
  recognizer.addEventListener("start", () => $("listen").setAttribute("aria-pressed", "true"));
  recognizer.addEventListener("end", () => $("listen").setAttribute("aria-pressed", "false"));
  recognizer.addEventListener("speechstart", () => {
    hush();
    announceSpeech();
  });
  recognizer.addEventListener("result", (event) => {
    const heard = [...event.results].map((result) => result[0].transcript).join("");
    $("said").value = heard;
    if (event.results[event.results.length - 1].isFinal) say(heard);
  });
  recognizer.addEventListener("error", (event) => {
    if (!["aborted", "no-speech"].includes(event.error)) {
      complain(`Speech recognition failed: ${event.error}. You can type instead.`);
    }
  });
}

if ("speechSynthesis" in window) $("aloud-row").hidden = false;

function readAloud(text) {
  if (!$("aloud").checked || !text || !("speechSynthesis" in window)) return;
  speechSynthesis.speak(new SpeechSynthesisUtterance(text));
}

function hush() {
  if ("speechSynthesis" in window) speechSynthesis.cancel();
}

if (token) {
  connect();
} else {
  badge("not connected", "lost");
  complain("Open the link that the sidecar printed when it started; it ends in a token.");
}
