// Replies that are being made: at most one a conversation, whichever is shown.

import { type Api, ApiError } from "./api.js";
import { type Conversation, type Message, add, fold, newReply, path, requestBody, textOf } from "./conversation.js";

const SAVED_EVERY_MS = 1000;

export interface RunEvents {
  /** The message is in the conversation, or has ended. */
  started(conversation: Conversation, message: Message): void;
  grew(conversation: Conversation, message: Message): void;
  ended(conversation: Conversation, message: Message, error: unknown): void;
  save(conversation: Conversation): void;
}

export class Runs {
  private readonly running = new Map<string, AbortController>(); // by conversation

  constructor(private readonly api: Api, private readonly events: RunEvents) {}

  isRunning(conversationId: string): boolean {
    return this.running.has(conversationId);
  }

  stop(conversationId: string): void {
    this.running.get(conversationId)?.abort();
  }

  /** Make a reply to `parent`. Does nothing while one is being made. */
  async start(conversation: Conversation, parent: string, model: string): Promise<void> {
    if (this.isRunning(conversation.id)) return;
    const controller = new AbortController();
    this.running.set(conversation.id, controller);
    const message = newReply(parent, model);
    add(conversation, message);
    this.events.started(conversation, message);
    let failure: unknown = null;
    try {
      const body = requestBody(model, path(conversation, parent), conversation.settings);
      await this.receive(conversation, message, body, controller.signal);
      message.state = "done";
    } catch (error) {
      message.state = controller.signal.aborted ? "stopped" : "failed";
      if (message.state === "failed") {
        failure = error;
        message.error = describe(error);
      }
    }
    this.running.delete(conversation.id);
    this.events.ended(conversation, message, failure);
  }

  private async receive(conversation: Conversation, message: Message, body: unknown, signal: AbortSignal): Promise<void> {
    const started = performance.now();
    let firstTokenMs = 0;
    let saved = started;
    for await (const chunk of this.api.chat(body, signal)) {
      fold(message, chunk);
      const now = performance.now();
      const { reasoning } = message;
      const hasSaid = textOf(message) !== "" || Boolean(message.toolCalls?.length);
      if (!firstTokenMs && (hasSaid || reasoning)) firstTokenMs = now - started;
      if (reasoning && !hasSaid) message.reasoningMs = now - started - firstTokenMs;
      if (chunk.usage) {
        message.stats = {
          firstTokenMs, totalMs: now - started,
          promptTokens: chunk.usage.prompt_tokens, completionTokens: chunk.usage.completion_tokens,
        };
      }
      this.events.grew(conversation, message);
      if (now - saved > SAVED_EVERY_MS) {
        saved = now;
        this.events.save(conversation);
      }
    }
  }
}

function describe(error: unknown): string {
  if (error instanceof ApiError && error.param) return `${error.message} (${error.param})`;
  return error instanceof Error ? error.message : String(error);
}
