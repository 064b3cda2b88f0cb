// Names and numbers as people read them.

// The same characters as `visible` in pages.rs: control characters, and those that turn the reading direction or have
// no width.
const HIDDEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

/** The text with hidden characters written out. */
export function visible(text: string): string {
  return text.replace(HIDDEN, (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`);
}

const integers = new Intl.NumberFormat("en-US");

export function integer(value: number): string {
  return integers.format(value);
}

/** A share of a total, "0.00 %" to "100 %". */
export function percent(value: number, total: number): string {
  if (total <= 0) return "0 %";
  const share = (value / total) * 100;
  return `${share >= 99.995 ? "100" : share.toFixed(2)} %`;
}

export function duration(milliseconds: number): string {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 120_000) return `${(milliseconds / 1000).toFixed(milliseconds < 10_000 ? 2 : 1)} s`;
  if (milliseconds < 7_200_000) return `${(milliseconds / 60_000).toFixed(1)} min`;
  return `${(milliseconds / 3_600_000).toFixed(1)} h`;
}

/** How long ago a moment was. */
export function ago(then: number, now: number): string {
  const seconds = Math.max(0, Math.round((now - then) / 1000));
  if (seconds < 100) return `${seconds} s ago`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86_400)} days ago`;
}

/** A moment in UTC, to the second. */
export function moment(time: number): string {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? "" : `${date.toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

/** The last part of a path. */
export function base(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}
