// The profile as /api/flamegraph gives it, in typed columns. The tree is in preorder: the nodes below node i are those
// from i + 1 to end[i] - 1.

import { visible } from "./text";

/** What a function is; the numbers are those of `Kind` in flamegraph.rs. */
export const enum Kind {
  User = 0,
  Kernel = 1,
  Jit = 2,
  Unknown = 3,
  Folded = 4,
}

/** Functions that stand for no function: the root, and what was folded together. */
export const RESERVED = 2;

interface Json {
  sample_type: string;
  unit: string;
  period_nanos: number;
  time_ms: number;
  duration_ms: number;
  total: number;
  smallest: number;
  notes: string[];
  strings: string[];
  functions: {
    name: number[];
    file: number[];
    binary: number[];
    line: number[];
    kind: number[];
    flat: number[];
    cum: number[];
  };
  nodes: { depth: number[]; function: number[]; line: number[]; self: number[] };
}

export class Profile {
  readonly unit: string;
  readonly periodNanos: number;
  readonly timeMs: number;
  readonly durationMs: number;
  readonly total: number;
  readonly smallest: number;
  readonly notes: string[];

  readonly functions: number;
  readonly names: string[];
  readonly files: string[];
  readonly binaries: string[];
  readonly functionLine: Int32Array;
  readonly kind: Uint8Array;
  readonly flat: Float64Array;
  readonly cum: Float64Array;

  readonly nodes: number;
  readonly depth: Uint16Array;
  readonly function: Uint32Array;
  readonly line: Int32Array;
  readonly self: Float64Array;
  /** What a node and all below it took. */
  readonly value: Float64Array;
  /** What stands left of a node. */
  readonly start: Float64Array;
  /** The first node behind those below a node. */
  readonly end: Uint32Array;
  readonly parent: Int32Array;
  /** Rows, the root's included. */
  readonly rows: number;

  private lower: string[] | undefined;

  constructor(json: Json) {
    this.unit = json.unit;
    this.periodNanos = json.period_nanos;
    this.timeMs = json.time_ms;
    this.durationMs = json.duration_ms;
    this.total = json.total;
    this.smallest = json.smallest;
    this.notes = json.notes.map(visible);

    const text = (index: number) => json.strings[index] ?? "";
    this.functions = json.functions.name.length;
    this.names = json.functions.name.map(text);
    this.files = json.functions.file.map(text);
    this.binaries = json.functions.binary.map(text);
    this.functionLine = Int32Array.from(json.functions.line);
    this.kind = Uint8Array.from(json.functions.kind);
    this.flat = Float64Array.from(json.functions.flat);
    this.cum = Float64Array.from(json.functions.cum);

    const nodes = json.nodes.depth.length;
    this.nodes = nodes;
    this.depth = Uint16Array.from(json.nodes.depth);
    this.function = Uint32Array.from(json.nodes.function);
    this.line = Int32Array.from(json.nodes.line);
    this.self = Float64Array.from(json.nodes.self);
    this.value = Float64Array.from(this.self);
    this.start = new Float64Array(nodes);
    this.end = new Uint32Array(nodes);
    this.parent = new Int32Array(nodes).fill(-1);

    const path: number[] = [];
    let rows = 0;
    for (let node = 0; node < nodes; node++) {
      const depth = this.depth[node];
      while (path.length > depth) this.end[path.pop()!] = node;
      if (depth > 0) this.parent[node] = path[depth - 1];
      path[depth] = node;
      if (depth >= rows) rows = depth + 1;
    }
    for (const node of path) this.end[node] = nodes;
    for (let node = nodes - 1; node > 0; node--) this.value[this.parent[node]] += this.value[node];
    for (let node = 0; node < nodes; node++) {
      let start = this.start[node];
      for (let child = node + 1; child < this.end[node]; child = this.end[child]) {
        this.start[child] = start;
        start += this.value[child];
      }
    }
    this.rows = rows;
  }

  name(node: number): string {
    return this.names[this.function[node]];
  }

  /** file:line of a node, as far as it is known. */
  place(node: number): string {
    const index = this.function[node];
    const file = this.files[index];
    if (!file) return "";
    const line = this.line[node];
    if (line > 0) return `${file}:${line}`;
    if (line < 0) return `${file} (several lines)`;
    return this.functionLine[index] > 0 ? `${file}:${this.functionLine[index]}` : file;
  }

  /** Samples as CPU time in milliseconds; none if a sample is no span of time. */
  milliseconds(value: number): number | undefined {
    return this.periodNanos > 0 ? (value * this.periodNanos) / 1e6 : undefined;
  }

  /** For each function, whether its name contains the text, whatever the case. */
  search(text: string): Uint8Array {
    this.lower ??= this.names.map((name) => name.toLowerCase());
    const wanted = text.toLowerCase();
    const found = new Uint8Array(this.functions);
    for (let index = RESERVED; index < found.length; index++) {
      if (this.lower[index].includes(wanted)) found[index] = 1;
    }
    return found;
  }

  /** What the stacks with at least one of these functions took below a node, and how many nodes are theirs. */
  matched(found: Uint8Array, within: number): { value: number; nodes: number } {
    let value = 0;
    let nodes = 0;
    let covered = within;
    for (let node = within; node < this.end[within]; node++) {
      if (!found[this.function[node]]) continue;
      nodes++;
      if (node < covered) continue;
      value += this.value[node];
      covered = this.end[node];
    }
    return { value, nodes };
  }

  /** The deepest node that has all nodes of a function below it (or is the only one). */
  commonAncestor(index: number): number {
    let first = -1;
    let last = -1;
    for (let node = 0; node < this.nodes; node++) {
      if (this.function[node] !== index) continue;
      if (first < 0) first = node;
      last = node;
    }
    if (first < 0) return 0;
    let node = first;
    while (node > 0 && last >= this.end[node]) node = this.parent[node];
    return node;
  }

  ancestors(node: number): number[] {
    const path = [];
    for (let at = node; at >= 0; at = this.parent[at]) path.push(at);
    return path.reverse();
  }
}

/** Reads the answer of /api/flamegraph. */
export async function read(response: Response): Promise<Profile> {
  return new Profile((await response.json()) as Json);
}
