// What changed between two texts, line by line: [{ kind: "same" | "gone" | "new", text }]. Pure.

const LIMIT = 400; // lines; beyond, lines are compared as a set

const linesOf = (text) => text.split("\n").filter((line) => line.trim());

export function diffOf(before, now) {
  const a = linesOf(before);
  const b = linesOf(now);
  if (a.length > LIMIT || b.length > LIMIT) return asSets(a, b);
  // Longest common subsequence, from the end.
  const common = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      common[i][j] =
        a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const lines = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      lines.push({ kind: "same", text: a[i] });
      i += 1;
      j += 1;
    } else if (i < a.length && (j === b.length || common[i + 1][j] >= common[i][j + 1])) {
      lines.push({ kind: "gone", text: a[i] });
      i += 1;
    } else {
      lines.push({ kind: "new", text: b[j] });
      j += 1;
    }
  }
  return lines;
}

function asSets(a, b) {
  const had = new Set(a);
  const has = new Set(b);
  return [
    ...a.filter((line) => !has.has(line)).map((text) => ({ kind: "gone", text })),
    ...b.map((text) => ({ kind: had.has(text) ? "same" : "new", text })),
  ];
}

export const changes = (lines) => ({
  added: lines.filter((line) => line.kind === "new").length,
  gone: lines.filter((line) => line.kind === "gone").length,
});
