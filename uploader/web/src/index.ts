// The table of targets: filters itself as one types, and keeps itself up to date.

import { byId, make, setText } from "./dom";
import { ago, integer, visible } from "./text";

const REFRESH_MS = 5000;
/** Longest text of one label or error that is shown, in characters; as in pages.rs. */
const MAX_TEXT = 4096;

interface Target {
  labels: Record<string, string>;
  profile_type: string;
  last_profile: string | null;
  samples: number;
  complete: number | null;
  error: string | null;
  query: string;
}

const filter = byId<HTMLInputElement>("filter");
const count = byId("count");
const updated = byId("updated");
const empty = byId("empty");
const body = byId<HTMLTableElement>("targets").tBodies[0];

function shown(text: string): string {
  const cut = visible(text);
  return cut.length > MAX_TEXT ? `${cut.slice(0, MAX_TEXT)}…` : cut;
}

/** Rounded down, so that 100 % means all. */
function share(complete: number | null): string {
  return complete === null ? "" : `${(Math.floor(complete * 1000) / 10).toFixed(1)} %`;
}

function applyFilter(): void {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let visibleRows = 0;
  for (const row of body.rows) {
    const text = (row.textContent ?? "").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    if (!row.hidden) visibleRows++;
  }
  const all = body.rows.length;
  const targets = all === 1 ? "target" : "targets";
  setText(count, words.length > 0 ? `${integer(visibleRows)} of ${integer(all)} ${targets}` : `${integer(all)} ${targets}`);
}

/** Times with how long ago they were. */
function showAges(): void {
  const now = Date.now();
  for (const time of body.querySelectorAll("time")) {
    const then = Date.parse(time.dateTime);
    if (Number.isNaN(then)) continue;
    let age = time.nextElementSibling;
    if (!age) {
      age = make("span", "muted age");
      time.after(age);
    }
    setText(age, ago(then, now));
    setText(time, time.dateTime.replace("T", " ").replace(/(\.\d+)?Z$/, " UTC"));
  }
}

function rowOf(target: Target): HTMLTableRowElement {
  const labels = make("ul", "labels");
  for (const [name, value] of Object.entries(target.labels).sort(([a], [b]) => (a < b ? -1 : 1))) {
    labels.append(make("li", "", make("b", "", shown(name)), "=", make("bdi", "", shown(value))));
  }
  const link = make("a", "", "Show Profile");
  link.href = `/query?debug=1&query=${encodeURIComponent(target.query)}`;
  const taken = make("td", "");
  if (target.last_profile) {
    const time = make("time", "", shown(target.last_profile));
    time.dateTime = target.last_profile;
    taken.append(time);
  } else {
    taken.append(make("span", "muted", "none yet"));
  }
  return make(
    "tr",
    "",
    make("td", "", shown(target.profile_type)),
    make("td", "", labels),
    taken,
    make("td", "number", integer(target.samples)),
    make("td", "number", share(target.complete)),
    make("td", "error", shown(target.error ?? "")),
    make("td", "", link),
  );
}

function compare(a: Target, b: Target): number {
  const key = (target: Target) => Object.entries(target.labels).sort(([x], [y]) => (x < y ? -1 : 1)).flat();
  const [left, right] = [key(a), key(b)];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    if (left[i] !== right[i]) return left[i] < right[i] ? -1 : 1;
  }
  return left.length - right.length;
}

/** Puts the new rows in place of the old ones; the link that has the focus keeps it. */
function show(targets: Target[]): void {
  const href = document.activeElement?.closest("#targets a")?.getAttribute("href");
  body.replaceChildren(...targets.sort(compare).map(rowOf));
  empty.hidden = targets.length > 0;
  showAges();
  applyFilter();
  if (href) body.querySelector<HTMLElement>(`a[href="${CSS.escape(href)}"]`)?.focus({ preventScroll: true });
}

async function refresh(): Promise<void> {
  if (document.hidden) return;
  // Whoever marks text to copy it is not disturbed.
  const selection = window.getSelection();
  if (selection && !selection.isCollapsed && body.contains(selection.anchorNode)) return;
  try {
    const response = await fetch("/api/targets", { cache: "no-store" });
    if (!response.ok) throw new Error(`the uploader answered ${response.status}`);
    show((await response.json()) as Target[]);
    setText(updated, "");
  } catch {
    setText(updated, "The uploader does not answer: these are its last words.");
    showAges();
  }
}

filter.addEventListener("input", () => {
  applyFilter();
  const hash = filter.value ? `#filter=${encodeURIComponent(filter.value)}` : location.pathname;
  history.replaceState(null, "", hash);
});
document.addEventListener("visibilitychange", () => void refresh());
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== filter) {
    event.preventDefault();
    filter.focus();
  }
});

try {
  const kept = /^#filter=(.*)$/.exec(location.hash)?.[1];
  // A browser that goes back restores the field by itself.
  if (kept) filter.value = decodeURIComponent(kept);
} catch {
  // A broken address is no reason to show no table.
}
showAges();
applyFilter();
setInterval(() => void refresh(), REFRESH_MS);
