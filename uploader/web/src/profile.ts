// The page of a profile: flame graph, search, top table.

import { palette } from "./colour";
import { byId, make, perFrame, setText } from "./dom";
import { Graph } from "./graph";
import { Loader, LoadError } from "./load";
import { TopTable } from "./table";
import { duration, integer, moment, percent } from "./text";
import type { Profile } from "./tree";

/** Breadcrumbs shown beside the first; the ones between are a "…". */
const CRUMBS = 4;
/** How often an empty wait is repeated by itself. */
const MAX_WAITS = 30;

const main = byId("profile");
const view = byId("view");
const notes = byId("notes");
const search = byId<HTMLInputElement>("search");
const matched = byId("matched");
const reset = byId<HTMLButtonElement>("reset");
const crumbs = byId("crumbs");
const detail = byId("detail");
const tip = byId("tip");
const colour = byId<HTMLSelectElement>("colour");
const next = byId<HTMLButtonElement>("next");
const dark = window.matchMedia("(prefers-color-scheme: dark)");

const loader = new Loader(decodeURIComponent(main.dataset.query ?? ""), Number(main.dataset.windowMs) || 10_000);
const graph = new Graph(byId("graph"), byId("spacer"), byId<HTMLCanvasElement>("canvas"), {
  zoomed: showZoom,
  selected: (node) => profile && setText(detail, describe(profile, node).join(" · ")),
  hovered: showTip,
});
const top = new TopTable(focusFunction);

let profile: Profile | undefined;
let zoomed = 0;
let focused = -1;

function describe(profile: Profile, node: number): string[] {
  const own = profile.self[node];
  const total = profile.value[node];
  const time = profile.milliseconds(total);
  const lines = [profile.name(node)];
  const place = profile.place(node);
  if (place) lines.push(place);
  const binary = profile.binaries[profile.function[node]];
  if (binary) lines.push(binary);
  lines.push(
    `total ${integer(total)} (${percent(total, profile.total)})${time === undefined ? "" : `, ${duration(time)}`}`,
    `self ${integer(own)} (${percent(own, profile.total)})`,
  );
  return lines;
}

function showTip(node: number, x: number, y: number): void {
  tip.hidden = node < 0 || !profile;
  if (node < 0 || !profile) return;
  const [name, ...rest] = describe(profile, node);
  tip.replaceChildren(make("b", "", name), ...rest.map((line) => make("div", "", line)));
  const width = tip.offsetWidth;
  const height = tip.offsetHeight;
  const left = Math.max(4, Math.min(x + 14, document.documentElement.clientWidth - width - 8));
  const below = y + 18 + height < window.innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${Math.max(4, below ? y + 18 : y - height - 12)}px`;
}

function showZoom(node: number): void {
  zoomed = node;
  reset.disabled = node === 0;
  if (!profile) return;
  const path = profile.ancestors(node);
  const items: Node[] = [];
  path.forEach((ancestor, position) => {
    const hidden = position > 0 && position < path.length - CRUMBS;
    if (hidden) {
      if (position === 1) items.push(make("span", "muted", `… ${path.length - CRUMBS - 1} more …`));
      return;
    }
    const button = make("button", "crumb", profile!.name(ancestor));
    button.type = "button";
    button.title = profile!.name(ancestor);
    if (ancestor === node) button.setAttribute("aria-current", "location");
    button.addEventListener("click", () => graph.zoomTo(ancestor));
    items.push(button);
  });
  crumbs.replaceChildren(...items);
  showMatches();
}

const searched = perFrame(showMatches);

function showMatches(): void {
  if (!profile) return;
  const text = search.value;
  if (!text) {
    setText(matched, "");
    graph.highlight(undefined);
    return;
  }
  let found;
  if (focused >= 0) {
    found = new Uint8Array(profile.functions);
    found[focused] = 1;
  } else {
    found = profile.search(text);
  }
  graph.highlight(found);
  const all = profile.matched(found, 0);
  let share = `${percent(all.value, profile.total)} matched (${integer(all.value)})`;
  if (zoomed !== 0) {
    const here = profile.matched(found, zoomed);
    share += `, ${percent(here.value, profile.value[zoomed])} of what is zoomed`;
  }
  setText(matched, all.nodes === 0 ? "no match" : share);
}

function focusFunction(index: number): void {
  if (!profile) return;
  focused = index;
  search.value = profile.names[index];
  top.mark(index);
  graph.zoomTo(profile.commonAncestor(index));
  byId("graph").scrollIntoView({ block: "nearest" });
}

function note(text: string, className = "note"): void {
  const element = make("p", className, text);
  element.setAttribute("role", "note");
  notes.append(element);
}

/** The profile's own notes: the first sentence says how many stacks are complete. */
function showNotes(profile: Profile): void {
  notes.replaceChildren();
  for (const text of profile.notes) {
    const [, complete, all] = /^(\d+) of (\d+) /.exec(text) ?? [];
    note(text, complete !== undefined && complete === all ? "note good" : "note");
  }
  if (profile.smallest > 1) {
    note(
      `The profile is larger than can be drawn: frames with fewer than ${integer(profile.smallest)} samples are ` +
        "folded together. The table and the download have everything.",
    );
  }
}

function recolour(): void {
  if (!profile) return;
  const { of, legend } = palette(profile, colour.value, dark.matches);
  graph.recolour(of);
  const items = legend.map((entry) => {
    const swatch = make("span", "swatch");
    swatch.style.background = entry.colour;
    return make("li", "", swatch, entry.label);
  });
  byId("legend").replaceChildren(...items);
}

function show(loaded: Profile): void {
  profile = loaded;
  focused = -1;
  const end = loaded.timeMs > 0 ? moment(loaded.timeMs) : "";
  const cpu = loaded.milliseconds(loaded.total);
  const facts = [
    end && `${end}, ${duration(loaded.durationMs)}`,
    `${integer(loaded.total)} samples`,
    cpu === undefined ? "" : `${duration(cpu)} of CPU time`,
  ];
  setText(byId("when"), facts.filter(Boolean).join(" · "));
  showNotes(loaded);
  view.hidden = false;
  graph.show(loaded, palette(loaded, colour.value, dark.matches).of);
  recolour();
  top.show(loaded);
  graph.zoomTo(0);
  // For those who measure: the graph is on the canvas.
  performance.mark("graph drawn");
}

function fail(error: unknown): void {
  notes.replaceChildren();
  note(error instanceof Error ? error.message : String(error), "note bad");
}

/** Loads a profile into the page; says what went wrong if it does not come. */
async function load(get: () => Promise<Profile>): Promise<boolean> {
  next.disabled = true;
  try {
    show(await get());
    return true;
  } catch (error) {
    fail(error);
    if (!(error instanceof LoadError)) throw error;
    return error.status !== 404;
  } finally {
    next.disabled = false;
  }
}

async function start(): Promise<void> {
  if (await load(() => loader.last())) return;
  // No window of this target is finished yet.
  for (let waits = 0; waits < MAX_WAITS; waits++) {
    if (await load(() => loader.next())) return;
  }
}

search.addEventListener("input", () => {
  if (focused >= 0) {
    focused = -1;
    top.mark(-1);
  }
  searched();
});
search.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && search.value === "") search.blur();
});
reset.addEventListener("click", () => graph.zoomTo(0));
next.addEventListener("click", () => void load(() => loader.next()));
colour.addEventListener("change", recolour);
dark.addEventListener("change", recolour);
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLElement && /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    search.focus();
    search.select();
  }
});
void start();
