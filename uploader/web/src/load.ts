// Gets a profile: that of the last finished window at once, or the next one, with the wait shown.

import { byId, setText } from "./dom";
import { duration } from "./text";
import { read, type Profile } from "./tree";

/** Longest explanation of an error that is shown, in characters. */
const MAX_EXPLANATION = 600;

export class LoadError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

export class Loader {
  private readonly wait = byId("wait");
  private readonly waitText = byId("wait-text");
  private readonly progress = byId<HTMLProgressElement>("progress");

  constructor(
    private readonly query: string,
    private readonly windowMs: number,
  ) {}

  async last(): Promise<Profile> {
    return this.shown("Loading the last window", undefined, () => this.fetch("last"));
  }

  async next(): Promise<Profile> {
    return this.shown("Waiting for the next window to finish", this.windowMs, () => this.fetch("next"));
  }

  private async fetch(window: "last" | "next"): Promise<Profile> {
    let response;
    try {
      response = await fetch(`/api/flamegraph?query=${encodeURIComponent(this.query)}&window=${window}`, {
        cache: "no-store",
      });
    } catch {
      throw new LoadError("The uploader does not answer. Is it still running?", 0);
    }
    if (!response.ok) {
      const explanation = (await response.text()).trim().slice(0, MAX_EXPLANATION);
      throw new LoadError(explanation || `The uploader answered ${response.status}.`, response.status);
    }
    return read(response);
  }

  private async shown<T>(what: string, expectedMs: number | undefined, work: () => Promise<T>): Promise<T> {
    const begun = performance.now();
    const tick = () => {
      const elapsed = performance.now() - begun;
      if (expectedMs === undefined) {
        this.progress.removeAttribute("value");
      } else {
        this.progress.value = Math.min(100, (elapsed / expectedMs) * 100);
      }
      const of = expectedMs === undefined ? "" : ` of at most ${duration(expectedMs)}`;
      // A round number, so that it is not read out ten times a second.
      const seconds = duration(Math.floor(elapsed / 1000) * 1000).replace(/\.0+ s/, " s");
      setText(this.waitText, elapsed < 1000 ? `${what} …` : `${what}: ${seconds}${of}`);
    };
    // What comes at once needs no bar.
    const reveal = setTimeout(() => (this.wait.hidden = false), expectedMs === undefined ? 300 : 0);
    tick();
    const timer = setInterval(tick, 100);
    try {
      return await work();
    } finally {
      clearInterval(timer);
      clearTimeout(reveal);
      this.wait.hidden = true;
    }
  }
}
