// Colours of frames: by what code it is, or by the file it comes from.

import { Kind, type Profile } from "./tree";
import { base } from "./text";

export interface Entry {
  label: string;
  colour: string;
}

export interface Palette {
  /** Colour of each function. */
  of: string[];
  legend: Entry[];
}

// Hue, saturation, lightness (light, dark) of each kind.
const KINDS: Record<Kind, [string, number, number, number, number]> = {
  [Kind.User]: ["User code", 207, 62, 76, 40],
  [Kind.Kernel]: ["Kernel", 24, 82, 75, 40],
  [Kind.Jit]: ["Run-time code (JIT)", 150, 42, 68, 33],
  [Kind.Unknown]: ["No name", 220, 8, 80, 36],
  [Kind.Folded]: ["Folded", 220, 6, 88, 28],
};
const HUES = [207, 150, 265, 48, 330, 185, 100, 290, 20, 230];

/** FNV-1a, for a colour that stays the same from profile to profile. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193);
  return value >>> 0;
}

function hsl(hue: number, saturation: number, lightness: number): string {
  return `hsl(${hue} ${saturation}% ${lightness}%)`;
}

export function palette(profile: Profile, by: string, dark: boolean): Palette {
  return by === "binary" ? byBinary(profile, dark) : byKind(profile, dark);
}

function kindColour(kind: Kind, shade: number, dark: boolean): string {
  const [, hue, saturation, light, low] = KINDS[kind];
  // Neighbours of one kind differ a little, so that their edges show.
  return hsl(hue + shade * 3 - 6, saturation, (dark ? low : light) + (shade - 2) * 1.8);
}

function byKind(profile: Profile, dark: boolean): Palette {
  const seen = new Set<Kind>();
  const of = profile.names.map((name, index) => {
    const kind = profile.kind[index] as Kind;
    if (profile.cum[index] > 0 || profile.flat[index] > 0) seen.add(kind);
    return kindColour(kind, kind === Kind.Folded ? 2 : hash(name) % 5, dark);
  });
  const kinds = [Kind.User, Kind.Kernel, Kind.Jit, Kind.Unknown];
  const legend = kinds
    .filter((kind) => seen.has(kind))
    .map((kind) => ({ label: KINDS[kind][0], colour: kindColour(kind, 2, dark) }));
  return { of, legend };
}

function byBinary(profile: Profile, dark: boolean): Palette {
  const flat = new Map<string, number>();
  profile.binaries.forEach((binary, index) => {
    if (profile.kind[index] !== Kind.Folded) flat.set(binary, (flat.get(binary) ?? 0) + profile.flat[index]);
  });
  const colourOf = (binary: string, shade: number) => {
    const value = hash(binary);
    const hue = HUES[value % HUES.length] + ((value >>> 8) % 15);
    return hsl(hue, 52, (dark ? 38 : 76) + (shade - 2) * 1.8);
  };
  const of = profile.names.map((name, index) => {
    const kind = profile.kind[index] as Kind;
    if (kind === Kind.Kernel || kind === Kind.Folded) return kindColour(kind, hash(name) % 5, dark);
    return colourOf(profile.binaries[index], hash(name) % 5);
  });
  const largest = [...flat].sort((a, b) => b[1] - a[1]).slice(0, 12);
  const legend = largest.map(([binary]) => ({
    label: base(binary) || "no file",
    colour: binary === "[kernel.kallsyms]" ? kindColour(Kind.Kernel, 2, dark) : colourOf(binary, 2),
  }));
  return { of, legend };
}
