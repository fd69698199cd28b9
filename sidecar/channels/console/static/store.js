// What the page knows, and when it is drawn: at most once a frame, however much has arrived.

export const state = {
  link: "connecting", // connecting | open | lost | refused
  lostAtMs: null,
  summary: {},
  tenant: "",
  pid: 0,
  plug: false,
  restarts: false,
  mine: new Map(), // key -> a call this page holds or held; see calls.js
  live: [], // live calls of every channel, as the sidecar tells them
  past: [],
  watched: null, // { call, live, turns, earlier }: a call that is not this page's
  selected: "", // key of the call that is shown
  memory: new Map(), // key -> memory of a call; see memory.js
  outbox: null,
  prompts: new Map(), // turn -> messages of its prompt, null: no longer held
  notice: "",
  view: "talk", // what a phone shows: talk | memory | outbox | calls
  plugged: null, // how pulling the plug went; see proofs.js
  killed: null, // how kill -9 went
};

let draw = () => {};
let drawing = false;

export function drawWith(drawer) {
  draw = drawer;
  change();
}

export function change() {
  if (drawing) return;
  drawing = true;
  const go = () => {
    if (!drawing) return;
    drawing = false;
    draw();
  };
  // A hidden page gets no frames, and its calls go on.
  if (document.hidden) setTimeout(go, 50);
  else requestAnimationFrame(go);
}

export function complain(text) {
  state.notice = text;
  change();
}

export function announce(text) {
  document.getElementById("announce").textContent = text;
}

// Ages grow by themselves.
setInterval(() => {
  if (!document.hidden) change();
}, 1000);
