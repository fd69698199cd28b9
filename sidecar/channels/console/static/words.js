// Times, counts and names as people read them.

export function seconds(value) {
  const s = Math.max(0, value);
  if (s < 1) return "<1 s";
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

export const age = (unixS) => seconds(Date.now() / 1000 - unixS);

export function millis(s) {
  const ms = s * 1000;
  if (ms < 1) return "<1 ms";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 10000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export const counted = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

export function moment(unixS) {
  const at = new Date(unixS * 1000);
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const today = at.toDateString() === new Date().toDateString();
  return today ? time : `${at.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

export const SERVED = {
  fresh: { word: "fresh", means: "just read from Letta" },
  stale: { word: "stale", means: "the last good read" },
  disk: { word: "from disk", means: "a copy from disk; Letta has not been read yet" },
  none: { word: "no memory yet", means: "nothing is known of this caller yet" },
};

// Channels are open ids: one called `constructor` is no property of every object.
export const CHANNELS = {
  __proto__: null,
  console: "local page",
  livekit: "LiveKit",
  vapi: "VAPI",
};
