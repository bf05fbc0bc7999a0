// The server's API, as far as the page uses it.

import type { Chunk } from "./conversation.js";
import { eventData } from "./sse.js";
import { lasting, passing } from "./storage.js";

/** The server answered with an error; `message` is its own. */
export class ApiError extends Error {
  constructor(readonly status: number, message: string, readonly param: string | null = null) {
    super(message);
  }
}

/** No answer came. */
export class Unreachable extends Error {}

export interface Model {
  id: string;
  max_model_len: number | null;
}

const KEY = "octavo.key";

export class Api {
  // The page may be served below a proxy's prefix, with or without a slash at its end.
  private readonly base = location.pathname.replace(/\/*$/, "/");

  get key(): string {
    return passing.getItem(KEY) ?? lasting.getItem(KEY) ?? "";
  }

  get isKeyRemembered(): boolean {
    return lasting.getItem(KEY) !== null;
  }

  /** The key is forgotten with the tab, unless its user asks for more. */
  setKey(key: string, remember: boolean): void {
    passing.removeItem(KEY);
    lasting.removeItem(KEY);
    if (key) (remember ? lasting : passing).setItem(KEY, key);
  }

  async models(): Promise<Model[]> {
    const reply = await this.send("v1/models");
    return ((await reply.json()) as { data: Model[] }).data;
  }

  async version(): Promise<string> {
    return ((await (await this.send("version")).json()) as { version: string }).version;
  }

  async metrics(): Promise<string> {
    return (await this.send("metrics")).text();
  }

  /** Throws when new requests would not be taken. */
  async ready(): Promise<void> {
    await this.send("ready");
  }

  /** The events of one reply. Aborting `signal` ends it, here and at the server. */
  async *chat(body: unknown, signal: AbortSignal): AsyncGenerator<Chunk> {
    const headers = { "Content-Type": "application/json" };
    const reply = await this.send("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
    if (!reply.body) throw new Unreachable("The reply has no body.");
    try {
      for await (const data of eventData(reply.body)) {
        if (data === "[DONE]") return;
        const event = JSON.parse(data) as Chunk & { error?: { message: string } };
        if (event.error) throw new ApiError(reply.status, event.error.message);
        yield event;
      }
    } catch (error) {
      if (error instanceof ApiError || signal.aborted) throw error;
      throw new Unreachable("The connection broke.");
    }
    throw new Unreachable("The reply ended early.");
  }

  private async send(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers);
    // A header is a text of bytes: those of UTF-8, as other clients send them.
    const key = String.fromCharCode(...new TextEncoder().encode(this.key));
    if (key) headers.set("Authorization", `Bearer ${key}`);
    let reply: Response;
    try {
      reply = await fetch(this.base + path, { cache: "no-store", credentials: "same-origin", ...init, headers });
    } catch (error) {
      if (init.signal?.aborted) throw error;
      throw new Unreachable("The server cannot be reached.");
    }
    if (!reply.ok) throw await errorOf(reply);
    return reply;
  }
}

async function errorOf(reply: Response): Promise<ApiError> {
  try {
    const { error } = (await reply.json()) as { error: { message: string; param: string | null } };
    return new ApiError(reply.status, error.message, error.param);
  } catch {
    return new ApiError(reply.status, `HTTP ${reply.status} ${reply.statusText}`.trim()); // a proxy's
  }
}
