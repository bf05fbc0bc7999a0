// Is the server there? Looks as often as somebody wants to know, and goes on looking when it is gone.

import { type Api, ApiError, type Model } from "./api.js";

export type State =
  | { name: "connecting" }
  | { name: "ready" }
  | { name: "locked"; message: string } // no key, or a wrong one
  | { name: "down"; message: string };

const WATCHING_MS = 1000;
const IDLE_MS = 5000;
const LONGEST_WAIT_MS = 5000;

export class Connection {
  state: State = { name: "connecting" };
  /** The metrics are read, and given to `onmetrics`, every second. */
  isWatching = false;
  private timer = 0;
  private failures = 0;
  private isLooking = false;
  private restarts = 0;

  constructor(
    private readonly api: Api,
    private readonly onstate: (state: State) => void,
    private readonly onmodels: (models: Model[]) => void,
    private readonly onmetrics: (text: string) => void,
  ) {
    document.addEventListener("visibilitychange", () => this.look());
  }

  /** Ask for everything anew: the key changed, or a request failed. */
  restart(): void {
    this.failures = 0;
    this.restarts += 1;
    this.set({ name: "connecting" });
    this.look();
  }

  /** Look now, and from now on. */
  look(): void {
    clearTimeout(this.timer);
    if (!document.hidden && !this.isLooking) void this.lookOnce();
  }

  private async lookOnce(): Promise<void> {
    this.isLooking = true;
    const restarts = this.restarts;
    const found = await this.ask().then((): State => ({ name: "ready" }), stateOf);
    this.isLooking = false;
    if (restarts !== this.restarts) return this.look(); // what was found is of before
    this.failures = found.name === "ready" ? 0 : this.failures + 1;
    this.set(found);
    // A key that is wrong stays wrong: only `restart` helps.
    if (found.name !== "locked") this.timer = window.setTimeout(() => this.look(), this.wait());
  }

  private async ask(): Promise<void> {
    if (this.state.name !== "ready") {
      await this.api.ready();
      this.onmodels(await this.api.models());
    }
    if (this.isWatching) this.onmetrics(await this.api.metrics());
    else if (this.state.name === "ready") await this.api.ready();
  }

  private wait(): number {
    if (this.failures) return Math.min(LONGEST_WAIT_MS, 500 * 2 ** this.failures);
    return this.isWatching ? WATCHING_MS : IDLE_MS;
  }

  private set(state: State): void {
    const isNew = JSON.stringify(state) !== JSON.stringify(this.state);
    this.state = state;
    if (isNew) this.onstate(state);
  }
}

function stateOf(error: unknown): State {
  const message = error instanceof Error ? error.message : String(error);
  return { name: error instanceof ApiError && error.status === 401 ? "locked" : "down", message };
}
