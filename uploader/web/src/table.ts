// The top table: each function with what it took itself (flat) and with all that it called (cum).

import { RESERVED, type Profile } from "./tree";
import { byId, make, setText } from "./dom";
import { base, integer, percent } from "./text";

/** Rows shown at first, and added by each "Show more". */
const PAGE = 50;

type Column = "flat" | "cum" | "name" | "binary";

const COLUMNS: { column: Column; title: string; hint: string; number: boolean }[] = [
  { column: "flat", title: "Flat", hint: "Samples in the function itself", number: true },
  { column: "cum", title: "Cum", hint: "Samples in the function and all that it called", number: true },
  { column: "name", title: "Function", hint: "Name of the function", number: false },
  { column: "binary", title: "Binary", hint: "File that the code comes from", number: false },
];

export class TopTable {
  private readonly body: HTMLTableSectionElement;
  private readonly more = byId<HTMLButtonElement>("more");
  private readonly filter = byId<HTMLInputElement>("top-filter");
  private readonly count = byId("top-count");
  private readonly headers = new Map<Column, HTMLTableCellElement>();
  private profile: Profile | undefined;
  private order: number[] = [];
  private shown = PAGE;
  private column: Column = "flat";
  private ascending = false;
  private focused = -1;

  constructor(private readonly focus: (index: number) => void) {
    const table = byId<HTMLTableElement>("top");
    this.body = table.tBodies[0];
    for (const { column, title, hint, number } of COLUMNS) {
      const button = make("button", "sort", title);
      button.type = "button";
      button.title = hint;
      button.addEventListener("click", () => this.sortBy(column));
      const header = make("th", number ? "number" : "", button);
      header.scope = "col";
      if (number) header.colSpan = 2;
      this.headers.set(column, header);
      table.tHead!.rows[0].append(header);
    }
    this.filter.addEventListener("input", () => this.refresh());
    this.more.addEventListener("click", () => {
      this.shown += PAGE;
      this.render();
    });
  }

  show(profile: Profile): void {
    this.profile = profile;
    this.focused = -1;
    this.refresh();
  }

  /** Marks the row of the function that the graph shows; none for -1. */
  mark(index: number): void {
    this.focused = index;
    this.render();
  }

  private sortBy(column: Column): void {
    const text = column === "name" || column === "binary";
    this.ascending = this.column === column ? !this.ascending : text;
    this.column = column;
    this.refresh();
  }

  private refresh(): void {
    const profile = this.profile;
    if (!profile) return;
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const order: number[] = [];
    for (let index = RESERVED; index < profile.functions; index++) {
      if (words.length > 0) {
        const text = `${profile.names[index]}\n${profile.files[index]}\n${profile.binaries[index]}`.toLowerCase();
        if (!words.every((word) => text.includes(word))) continue;
      }
      order.push(index);
    }
    const sign = this.ascending ? 1 : -1;
    const by: Record<Column, (a: number, b: number) => number> = {
      flat: (a, b) => sign * (profile.flat[a] - profile.flat[b]) || profile.cum[b] - profile.cum[a],
      cum: (a, b) => sign * (profile.cum[a] - profile.cum[b]) || profile.flat[b] - profile.flat[a],
      // The functions are sorted by name already.
      name: (a, b) => sign * (a - b),
      binary: (a, b) =>
        sign * (base(profile.binaries[a]) < base(profile.binaries[b]) ? -1 : 1) *
          (profile.binaries[a] === profile.binaries[b] ? 0 : 1) || profile.flat[b] - profile.flat[a],
    };
    const compare = by[this.column];
    this.order = order.sort((a, b) => compare(a, b) || a - b);
    this.shown = PAGE;
    for (const [column, header] of this.headers) {
      const sorted = this.ascending ? "ascending" : "descending";
      header.setAttribute("aria-sort", column === this.column ? sorted : "none");
    }
    this.render();
  }

  private render(): void {
    const profile = this.profile;
    if (!profile) return;
    const rows = this.order.slice(0, this.shown).map((index) => this.row(profile, index));
    this.body.replaceChildren(...rows);
    this.more.hidden = this.order.length <= this.shown;
    setText(this.count, `${integer(this.order.length)} of ${integer(profile.functions - RESERVED)} functions`);
  }

  private row(profile: Profile, index: number): HTMLTableRowElement {
    const name = make("button", "function", profile.names[index]);
    name.type = "button";
    name.title = profile.files[index] || profile.binaries[index];
    const binary = make("td", "binary", base(profile.binaries[index]));
    binary.title = profile.binaries[index];
    const row = make(
      "tr",
      index === this.focused ? "focused" : "",
      make("td", "number", integer(profile.flat[index])),
      make("td", "number share", percent(profile.flat[index], profile.total)),
      make("td", "number", integer(profile.cum[index])),
      make("td", "number share", percent(profile.cum[index], profile.total)),
      make("td", "name", name),
      binary,
    );
    row.addEventListener("click", () => {
      // Whoever marks text to copy it does not mean to click.
      if (!window.getSelection()?.toString()) this.focus(index);
    });
    return row;
  }
}
