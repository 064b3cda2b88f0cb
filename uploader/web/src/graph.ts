// The flame graph on a canvas, root at the top. Only the rows that are scrolled into view and the frames that are wide
// enough to be seen are drawn, so that the cost follows the screen and not the profile.

import type { Profile } from "./tree";
import { perFrame } from "./dom";

const ROW = 20;
const PADDING = 5;
/** Narrower frames are drawn as one grey bar with their neighbours. */
const NARROWEST = 0.6;
/** Narrower frames have no text. */
const NARROWEST_TEXT = 26;
/** Zooming keeps this many rows of callers in view. */
const CALLERS_SHOWN = 4;

export interface GraphEvents {
  /** Another frame is zoomed to. */
  zoomed(node: number): void;
  /** A frame was chosen with keys or by click. */
  selected(node: number): void;
  /** The pointer is over a frame, or over none. */
  hovered(node: number, x: number, y: number): void;
}

interface Theme {
  text: string;
  faded: string;
  match: string;
  outline: string;
  tiny: string;
  font: string;
}

export class Graph {
  private profile: Profile | undefined;
  private colours: string[] = [];
  private found: Uint8Array | undefined;
  private zoom = 0;
  private selected = 0;
  private hover = -1;
  private width = 0;
  private height = 0;
  private theme: Theme;
  private charWidth = 7;
  private readonly context: CanvasRenderingContext2D;
  private readonly widths = new Map<string, number>();
  /** Frames drawn in the last picture, for those who look at the page from outside. */
  drawn = 0;
  readonly draw = perFrame(() => this.paint());

  constructor(
    private readonly box: HTMLElement,
    private readonly spacer: HTMLElement,
    private readonly canvas: HTMLCanvasElement,
    private readonly events: GraphEvents,
  ) {
    const context = canvas.getContext("2d", { alpha: true });
    if (!context) throw new Error("this browser has no canvas");
    this.context = context;
    this.theme = this.readTheme();
    new ResizeObserver(() => this.resize()).observe(box);
    box.addEventListener("scroll", () => {
      this.setHover(-1, 0, 0);
      this.draw();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse") this.setHover(this.at(event), event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => this.setHover(-1, 0, 0));
    canvas.addEventListener("click", (event) => {
      const node = this.at(event);
      if (node >= 0) this.zoomTo(node);
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", this.draw);
    canvas.addEventListener("blur", this.draw);
  }

  show(profile: Profile, colours: string[]): void {
    this.profile = profile;
    this.colours = colours;
    this.zoom = 0;
    this.selected = 0;
    this.hover = -1;
    this.box.scrollTop = 0;
    this.resize();
  }

  recolour(colours: string[]): void {
    this.colours = colours;
    this.theme = this.readTheme();
    this.widths.clear();
    this.draw();
  }

  /** Which functions are to stand out; none for no search. */
  highlight(found: Uint8Array | undefined): void {
    this.found = found;
    this.draw();
  }

  zoomTo(node: number): void {
    const profile = this.profile;
    if (!profile) return;
    this.zoom = node;
    this.setHover(-1, 0, 0);
    this.select(node);
    this.box.scrollTop = Math.max(0, profile.depth[node] - CALLERS_SHOWN) * ROW;
    this.events.zoomed(node);
    this.draw();
  }

  private select(node: number): void {
    this.selected = node;
    this.events.selected(node);
    this.draw();
  }

  private setHover(node: number, x: number, y: number): void {
    if (node >= 0 || this.hover >= 0) this.events.hovered(node, x, y);
    if (node !== this.hover) {
      this.hover = node;
      this.canvas.classList.toggle("over", node >= 0);
      this.draw();
    }
  }

  private readTheme(): Theme {
    const style = getComputedStyle(this.canvas);
    const colour = (name: string) => style.getPropertyValue(name).trim();
    return {
      text: colour("--frame-text"),
      faded: colour("--frame-faded"),
      match: colour("--frame-match"),
      outline: colour("--frame-outline"),
      tiny: colour("--frame-tiny"),
      font: `12px ${colour("--mono")}`,
    };
  }

  private resize(): void {
    const profile = this.profile;
    if (!profile) return;
    const ratio = window.devicePixelRatio || 1;
    this.spacer.style.height = `${profile.rows * ROW}px`;
    this.width = this.box.clientWidth;
    // The box is as high as the graph, up to what the style sheet allows; the canvas covers what can be seen.
    this.height = Math.min(this.box.clientHeight, profile.rows * ROW);
    this.canvas.width = Math.max(1, Math.round(this.width * ratio));
    this.canvas.height = Math.max(1, Math.round(this.height * ratio));
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${this.height}px`;
    // At once: a canvas that gets a new size is empty until it is drawn.
    this.paint();
  }

  /** Left edge and width of a node, in pixels, as it is zoomed; callers of the zoomed node take the whole width. */
  private extent(profile: Profile, node: number): [number, number] {
    const scale = this.width / (profile.value[this.zoom] || 1);
    const from = (profile.start[node] - profile.start[this.zoom]) * scale;
    const to = from + profile.value[node] * scale;
    const left = Math.max(0, from);
    return [left, Math.min(this.width, to) - left];
  }

  private at(event: MouseEvent): number {
    const profile = this.profile;
    if (!profile) return -1;
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left;
    const row = Math.floor((event.clientY - box.top + this.box.scrollTop) / ROW);
    if (row < 0 || row >= profile.rows || x < 0 || x >= this.width) return -1;
    if (row <= profile.depth[this.zoom]) return profile.ancestors(this.zoom)[row];
    const value = profile.start[this.zoom] + (x / this.width) * profile.value[this.zoom];
    let node = this.zoom;
    while (profile.depth[node] < row) {
      let below = -1;
      for (let child = node + 1; child < profile.end[node]; child = profile.end[child]) {
        if (value >= profile.start[child] && value < profile.start[child] + profile.value[child]) {
          below = child;
          break;
        }
      }
      if (below < 0) return -1;
      node = below;
    }
    return node;
  }

  private paint(): void {
    const profile = this.profile;
    if (!profile || this.width === 0) return;
    const context = this.context;
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.font = this.theme.font;
    context.textBaseline = "middle";
    this.charWidth = context.measureText("0").width || 7;
    this.drawn = 0;

    const top = this.box.scrollTop;
    const firstRow = Math.floor(top / ROW);
    const lastRow = Math.ceil((top + this.height) / ROW);
    // How far the grey bar of each row reaches, so that a thousand narrow frames are one bar.
    const grey = new Float64Array(profile.rows).fill(-1);

    for (const node of profile.ancestors(this.zoom)) {
      if (node !== this.zoom) this.frame(profile, node, 0, this.width, top, true);
    }
    const endOfZoom = profile.end[this.zoom];
    for (let node = this.zoom; node < endOfZoom; ) {
      const row = profile.depth[node];
      if (row > lastRow) {
        node = profile.end[node];
        continue;
      }
      const [left, width] = this.extent(profile, node);
      if (width < NARROWEST) {
        if (row >= firstRow && left + width > grey[row]) {
          context.fillStyle = this.theme.tiny;
          const reach = Math.max(left + width, left + 1);
          const from = Math.max(left, grey[row]);
          if (reach > from) context.fillRect(from, row * ROW - top, reach - from, ROW - 1);
          grey[row] = reach;
        }
        node = profile.end[node];
        continue;
      }
      if (row >= firstRow) this.frame(profile, node, left, width, top, false);
      node++;
    }
    this.outline(profile, this.hover, top, 1.5);
    if (document.activeElement === this.canvas) this.outline(profile, this.selected, top, 2.5);
    this.canvas.dataset.drawn = String(this.drawn);
  }

  private frame(
    profile: Profile,
    node: number,
    left: number,
    width: number,
    top: number,
    caller: boolean,
  ): void {
    const context = this.context;
    const index = profile.function[node];
    const y = profile.depth[node] * ROW - top;
    if (y + ROW < 0 || y > this.height) return;
    const matches = this.found?.[index] === 1;
    context.globalAlpha = caller ? 0.55 : 1;
    context.fillStyle = matches ? this.theme.match : this.found ? this.theme.faded : this.colours[index];
    context.fillRect(left, y, Math.max(0.5, width - (width > 3 ? 1 : 0)), ROW - 1);
    context.globalAlpha = 1;
    this.drawn++;
    if (width < NARROWEST_TEXT) return;
    const text = this.fit(profile.names[index], width - 2 * PADDING);
    if (!text) return;
    context.fillStyle = this.theme.text;
    context.fillText(text, left + PADDING, y + ROW / 2);
  }

  private outline(profile: Profile, node: number, top: number, thickness: number): void {
    if (node < 0) return;
    const inside = node >= this.zoom && node < profile.end[this.zoom];
    const [left, width] = inside ? this.extent(profile, node) : [0, this.width];
    this.context.strokeStyle = this.theme.outline;
    this.context.lineWidth = thickness;
    const inset = thickness / 2;
    const y = profile.depth[node] * ROW - top;
    this.context.strokeRect(left + inset, y + inset, Math.max(1, width - 2 * inset), ROW - 1 - 2 * inset);
  }

  /** As much of the name as there is room for. */
  private fit(name: string, room: number): string {
    // Most names are ASCII and the font is monospaced; others are measured, as far as there can be room for them.
    const fits = Math.floor(room / this.charWidth);
    if (fits < 2) return "";
    let text = name.length <= fits ? name : `${name.slice(0, fits - 1)}…`;
    if (/^[\x20-\x7e…]*$/.test(text)) return text;
    let letters = Array.from(text);
    while (letters.length > 1 && this.measure(text) > room) {
      letters = letters.slice(0, Math.floor(letters.length * 0.85));
      text = `${letters.join("")}…`;
    }
    return letters.length > 1 ? text : "";
  }

  private measure(text: string): number {
    let width = this.widths.get(text);
    if (width === undefined) {
      if (this.widths.size > 20_000) this.widths.clear();
      width = this.context.measureText(text).width;
      this.widths.set(text, width);
    }
    return width;
  }

  private key(event: KeyboardEvent): void {
    const profile = this.profile;
    if (!profile || event.ctrlKey || event.altKey || event.metaKey) return;
    const target = this.keyTarget(profile, event.key);
    if (target === undefined) return;
    event.preventDefault();
    if (event.key === "Enter" || event.key === " " || event.key === "Escape" || event.key === "Home") {
      this.zoomTo(target);
    } else {
      this.select(target);
      this.reveal(profile, target);
    }
  }

  private keyTarget(profile: Profile, key: string): number | undefined {
    const node = this.selected;
    switch (key) {
      case "ArrowUp":
        return Math.max(0, profile.parent[node]);
      case "ArrowDown":
        return this.widestChild(profile, node);
      case "ArrowRight":
        return this.sibling(profile, node, 1);
      case "ArrowLeft":
        return this.sibling(profile, node, -1);
      case "Enter":
      case " ":
        return node;
      case "Escape":
        return Math.max(0, profile.parent[this.zoom]);
      case "Home":
        return 0;
      default:
        return undefined;
    }
  }

  private widestChild(profile: Profile, node: number): number {
    let widest = node;
    for (let child = node + 1; child < profile.end[node]; child = profile.end[child]) {
      if (widest === node || profile.value[child] > profile.value[widest]) widest = child;
    }
    return widest;
  }

  private sibling(profile: Profile, node: number, step: number): number {
    const parent = profile.parent[node];
    if (parent < 0) return node;
    let before = node;
    for (let child = parent + 1; child < profile.end[parent]; child = profile.end[child]) {
      if (child === node) {
        if (step < 0) return before;
        const after = profile.end[child];
        return after < profile.end[parent] ? after : node;
      }
      before = child;
    }
    return node;
  }

  private reveal(profile: Profile, node: number): void {
    const inside = node >= this.zoom && node < profile.end[this.zoom];
    if (!inside && !profile.ancestors(this.zoom).includes(node)) this.zoomTo(profile.parent[node]);
    const y = profile.depth[node] * ROW;
    if (y < this.box.scrollTop) this.box.scrollTop = y;
    if (y + ROW > this.box.scrollTop + this.height) this.box.scrollTop = y + ROW - this.height;
  }
}
