// A few drawings; each stands beside a word or inside a labelled button.

import { html } from "./vendor/htm-preact.js";

const drawn = (paths) =>
  html`<svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false">${paths}</svg>`;

export const wave = html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
  <rect class="mark-ground" width="32" height="32" rx="9" />
  <path class="mark-line" d="M8 13.5v5M13.3 9v14M18.7 12v8M24 14.5v3" />
</svg>`;
export const mic = drawn(
  html`<rect x="7.2" y="2.5" width="5.6" height="9.5" rx="2.8" /><path
      d="M4 9.5a6 6 0 0 0 12 0M10 15.5v2.5"
    />`,
);
export const arrow = drawn(html`<path d="M10 16V4.5M5 9l5-5 5 5" />`);
export const chevron = drawn(html`<path d="M6 8l4 4 4-4" />`);
export const plug = drawn(
  html`<path d="M7 2.5v4M13 2.5v4M5 6.5h10v3a5 5 0 0 1-10 0zM10 14.5v3" />`,
);
export const bolt = drawn(html`<path d="M11 2.5L4.5 11.5H9.5L8.5 17.5L15.5 8.5H10.5z" />`);
export const phone = drawn(
  html`<path
    d="M4 4.5c0 6.5 5 11.5 11.5 11.5l.5-3.5-3.4-1.2-1.6 1.6A9 9 0 0 1 7 8.9l1.6-1.6L7.4 4z"
  />`,
);
