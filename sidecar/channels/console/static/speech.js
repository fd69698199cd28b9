// Speech in and out, by the browser's own means. The sidecar gets words, never audio.

import { change, complain, state } from "./store.js";

// Out -------------------------------------------------------------------------------------------

export const voice = { there: false, wanted: false };
let spoken = null; // { key, turn, text, said, heard, whole, waiting, done }

if ("speechSynthesis" in window) {
  const look = () => {
    voice.there = speechSynthesis.getVoices().length > 0;
    change();
  };
  look();
  speechSynthesis.addEventListener?.("voiceschanged", look);
}

export function speaking(key) {
  return spoken !== null && spoken.key === key;
}
speaking.wanted = () => voice.wanted && voice.there;

export function takePiece(key, turn, text) {
  if (!speaking.wanted()) return;
  if (spoken?.turn !== turn) {
    speechSynthesis.cancel();
    spoken = { key, turn, text: "", said: 0, heard: 0, whole: false, waiting: 0, done: null };
  }
  spoken.text += text;
  // Sentence by sentence, so that speech begins before the reply has ended.
  const whole = /^[\s\S]*[.!?…]\s/.exec(spoken.text.slice(spoken.said));
  if (whole) utter(spoken.said + whole[0].length);
}

export function takeWhole(key, turn, done) {
  if (spoken?.turn !== turn) {
    done();
    return;
  }
  spoken.whole = true;
  spoken.done = done;
  if (spoken.said < spoken.text.length) utter(spoken.text.length);
  finish();
}

function utter(until) {
  const mine = spoken;
  const from = mine.said;
  const utterance = new SpeechSynthesisUtterance(mine.text.slice(from, until));
  mine.said = until;
  mine.waiting += 1;
  utterance.addEventListener("boundary", (event) => {
    mine.heard = Math.max(mine.heard, from + event.charIndex);
  });
  const over = () => {
    mine.waiting -= 1;
    mine.heard = Math.max(mine.heard, until);
    if (mine === spoken) finish();
  };
  utterance.addEventListener("end", over);
  utterance.addEventListener("error", over);
  speechSynthesis.speak(utterance);
}

function finish() {
  if (!spoken.whole || spoken.waiting > 0) return;
  const { done } = spoken;
  spoken = null;
  done();
  listenAgain();
}

// Falls silent; returns how many characters of the reply were heard.
export function stopSpeaking(key) {
  if (!speaking(key)) return 0;
  const { heard } = spoken;
  spoken = null;
  speechSynthesis.cancel();
  return heard;
}

// In --------------------------------------------------------------------------------------------

const Recognition = window.SpeechRecognition ?? window.webkitSpeechRecognition;
export const ear = { there: Boolean(Recognition), open: false, heard: "", local: false, to: null };
let recognizer = null;
let speechEndMs = null;

// `to`: { onSpeech(), onWords(text), onFinal(text, speechEndMs) } of the call that listens.
export async function listen(to) {
  ear.to = to;
  ear.open = true;
  change();
  recognizer ??= prepared();
  await preferLocal();
  start();
}

export function stopListening() {
  ear.open = false;
  ear.heard = "";
  recognizer?.abort();
  change();
}

function listenAgain() {
  if (ear.open && state.link === "open") start();
}

function start() {
  try {
    recognizer.start();
  } catch {
    // It listens already.
  }
}

// Where the browser can recognise on this machine, the audio stays here.
async function preferLocal() {
  if (!("processLocally" in recognizer) || !Recognition.available) return;
  try {
    const how = { langs: [recognizer.lang], processLocally: true };
    ear.local = (await Recognition.available(how)) === "available";
    recognizer.processLocally = ear.local;
  } catch {
    ear.local = false;
  }
}

function prepared() {
  const made = new Recognition();
  made.lang = navigator.language;
  made.interimResults = true;
  made.addEventListener("speechstart", () => ear.to?.onSpeech());
  made.addEventListener("speechend", () => {
    speechEndMs = performance.now();
  });
  made.addEventListener("result", (event) => {
    const results = [...event.results];
    ear.heard = results.map((result) => result[0].transcript).join("");
    if (results.at(-1).isFinal) {
      const words = ear.heard;
      ear.heard = "";
      ear.to?.onFinal(words, speechEndMs ?? performance.now());
      speechEndMs = null;
    }
    change();
  });
  made.addEventListener("end", () => {
    // While the agent speaks, the microphone would hear it.
    if (ear.open && spoken === null) setTimeout(listenAgain, 250);
  });
  made.addEventListener("error", (event) => {
    if (["aborted", "no-speech"].includes(event.error)) return;
    ear.open = false;
    complain(`The browser's speech recognition failed (${event.error}). You can type instead.`);
  });
  return made;
}
