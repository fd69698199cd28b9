// The memory of each call, as it was when the call began and as it is now; and from which call what
// changed was learnt: the latest one of its agent that Letta has settled.

import { announce, state } from "./store.js";
import { receive } from "./wire.js";

export function laneOf(key) {
  const known = [...state.live, ...state.past].find((one) => one.call === key);
  return state.mine.get(key)?.lane || known?.lane || "";
}

function latestSettled(lane) {
  const settled = (state.outbox?.batches ?? []).filter(
    (one) => one.state === "settled" && lane && one.lane === lane,
  );
  settled.sort((a, b) => b.ended_s - a.ended_s);
  return settled[0]?.call ?? "";
}

const valuesOf = (blocks) => new Map(blocks.map((block) => [block.label, block.value]));

receive({
  memory(frame) {
    const before = state.memory.get(frame.call);
    if (before?.frozen) return;
    const over = state.mine.has(frame.call) && !state.mine.get(frame.call).live;
    // Changes are measured against the first read of a call. A call that ended before there was
    // one, since Letta was away, is measured against nothing.
    const late = over && before && !before.base && frame.content;
    const first = frame.read_at_s ? valuesOf(frame.blocks) : null;
    const base = before?.base ?? (late ? new Map() : first);
    // A sidecar that was just started holds no memory yet: that is no change of it.
    const content = frame.content || (before?.content ?? "");
    const changed = late || (Boolean(before?.content) && before.content !== content);
    const from = changed ? latestSettled(laneOf(frame.call)) : (before?.from ?? "");
    if (changed && over && from && from !== frame.call) {
      // Learnt from another call: what this one has changed is all there.
      state.memory.set(frame.call, { ...before, frozen: true });
      return;
    }
    if (changed && frame.call === state.selected) announce("The agent’s memory has changed.");
    const changedAtMs = changed ? Date.now() : before?.changedAtMs;
    state.memory.set(frame.call, { ...frame, content, base, from, changedAtMs });
  },
});
