// The one WebSocket to the sidecar; frames as in session.py. A page whose socket is lost comes back
// by itself, takes its live calls up again, and says again what has no reply yet.

import { change, complain, state } from "./store.js";

const token = decodeURIComponent(location.hash.slice(1));
// Often while a new process may be starting, which is on this machine; then now and then.
const againMs = (failures) => (failures < 40 ? 250 : 2000);

let socket = null;
let failures = 0;
const receivers = {};

export function receive(kinds) {
  Object.assign(receivers, kinds);
}

export function send(frame) {
  if (state.link !== "open" || socket?.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(frame));
  return true;
}

export function connect() {
  if (!token) {
    state.link = "refused";
    complain("Open the link that the sidecar printed when it started; it ends in a token.");
    return;
  }
  const opened = new WebSocket(`ws://${location.host}/console/ws`);
  socket = opened;
  opened.addEventListener("open", () => opened.send(JSON.stringify({ type: "hello", token })));
  opened.addEventListener("message", (event) => take(JSON.parse(event.data)));
  opened.addEventListener("close", (event) => lost(opened, event.code));
}

function take(frame) {
  if (frame.type === "ready") {
    failures = 0;
    state.link = "open";
    state.lostAtMs = null;
    state.notice = "";
  }
  receivers[frame.type]?.(frame);
  change();
}

function lost(closed, code) {
  if (closed !== socket) return;
  if (code === 4401) {
    state.link = "refused";
    complain("This link is out of date. Open the one that the sidecar printed when it started.");
    return;
  }
  if (state.link === "open") state.lostAtMs = performance.now();
  state.link = "lost";
  change();
  setTimeout(connect, againMs(failures));
  failures += 1;
}

receive({
  error: (frame) => complain(frame.message),
});
