// A conversation is a tree of messages: a reply that is made again, or a message that is edited, becomes a sibling of
// the old one, and nothing is lost. What is shown, and sent, is the path from the root to `leaf`.

import { newId } from "./dom.js";

export type Part = { type: "text"; text: string } | { type: "image_url"; image_url: { url: string } };

export interface ToolCall {
  id: string;
  name: string;
  arguments: string; // JSON; while it streams, its beginning
}

export interface Stats {
  firstTokenMs: number;
  totalMs: number;
  promptTokens: number;
  completionTokens: number;
}

export interface Message {
  id: string;
  parent: string | null;
  role: "user" | "assistant" | "tool";
  parts: Part[];
  created: number;
  // of the assistant
  state?: "streaming" | "done" | "stopped" | "failed";
  model?: string;
  reasoning?: string;
  reasoningMs?: number;
  toolCalls?: ToolCall[];
  finish?: string;
  error?: string;
  stats?: Stats;
  // of a tool
  toolCallId?: string;
}

/** Settings of requests: what is absent is left to the server. */
export interface Settings {
  system?: string;
  numbers: Record<string, number>; // by the names of the API
  stop?: string[];
  thinking?: boolean;
  tools?: string; // JSON
}

export interface Conversation {
  id: string;
  title: string;
  updated: number;
  messages: Record<string, Message>;
  leaf: string | null;
  settings: Settings;
}

export interface Delta {
  content?: string;
  reasoning?: string;
  reasoning_content?: string;
  tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[];
}

export interface Chunk {
  model?: string;
  choices?: { delta: Delta; finish_reason: string | null }[];
  usage?: { prompt_tokens: number; completion_tokens: number } | null;
}

export function newConversation(settings: Settings): Conversation {
  return { id: newId(), title: "", updated: Date.now(), messages: {}, leaf: null, settings };
}

export function newMessage(role: "user" | "tool", parent: string | null, text: string): Message {
  return { id: newId(), parent, role, parts: textParts(text), created: Date.now() };
}

export function newReply(parent: string, model: string): Message {
  return { id: newId(), parent, role: "assistant", parts: [], created: Date.now(), state: "streaming", model };
}

export function textOf(message: Message): string {
  return message.parts.map((part) => (part.type === "text" ? part.text : "")).join("");
}

export function textParts(text: string): Part[] {
  return [{ type: "text", text }];
}

/** The messages from the root to `from`, by default to what is shown. */
export function path(conversation: Conversation, from: string | null = conversation.leaf): Message[] {
  const found: Message[] = [];
  for (let id = from; id !== null; ) {
    const message: Message | undefined = conversation.messages[id];
    if (!message) break;
    found.push(message);
    id = message.parent;
  }
  return found.reverse();
}

/** `message` and the others in its place, oldest first. */
export function siblings(conversation: Conversation, message: Message): Message[] {
  return Object.values(conversation.messages)
    .filter((other) => other.parent === message.parent && other.role === message.role)
    .sort((a, b) => a.created - b.created);
}

/** Show `message`, and below it what came last. */
export function select(conversation: Conversation, message: Message): void {
  let leaf = message;
  for (;;) {
    const children = Object.values(conversation.messages).filter((other) => other.parent === leaf.id);
    if (!children.length) break;
    leaf = children.reduce((last, other) => (other.created >= last.created ? other : last));
  }
  conversation.leaf = leaf.id;
}

/** Add a message below its parent, and show it. */
export function add(conversation: Conversation, message: Message): void {
  // Siblings are ordered by time, and a clock may show the same twice, or go back.
  const newest = Math.max(0, ...siblings(conversation, message).map((other) => other.created));
  message.created = Math.max(message.created, newest + 1);
  conversation.messages[message.id] = message;
  conversation.leaf = message.id;
  conversation.updated = Math.max(Date.now(), message.created);
  if (!conversation.title && message.role === "user") conversation.title = titleOf(textOf(message));
}

function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0] ?? "";
  return line.length > 60 ? line.slice(0, 57).trimEnd() + "…" : line;
}

/** Fold what arrived into the reply. */
export function fold(message: Message, chunk: Chunk): void {
  if (chunk.model) message.model = chunk.model;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { delta } = choice;
  if (delta.content) message.parts = textParts(textOf(message) + delta.content);
  const thought = delta.reasoning ?? delta.reasoning_content;
  if (thought) message.reasoning = (message.reasoning ?? "") + thought;
  for (const part of delta.tool_calls ?? []) {
    const calls = (message.toolCalls ??= []);
    const call = (calls[part.index] ??= { id: "", name: "", arguments: "" });
    call.id ||= part.id ?? "";
    call.name ||= part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

/** The messages as the API has them, without replies that failed before they said anything. */
export function apiMessages(messages: Message[], settings: Settings): unknown[] {
  const system = settings.system?.trim() ? [{ role: "system", content: settings.system }] : [];
  return [...system, ...messages.map(forApi).filter((message) => message !== null)];
}

/** The body of the request for the reply that follows `messages`. Throws when the tools are no JSON list. */
export function requestBody(model: string, messages: Message[], settings: Settings): Record<string, unknown> {
  const body: Record<string, unknown> = {
    model, messages: apiMessages(messages, settings), stream: true, stream_options: { include_usage: true },
    ...settings.numbers,
  };
  if (settings.stop?.length) body.stop = settings.stop;
  if (settings.thinking !== undefined) body.enable_thinking = settings.thinking;
  const tools = parseTools(settings.tools);
  if (tools.length) body.tools = tools;
  return body;
}

export function parseTools(text: string | undefined): unknown[] {
  if (!text?.trim()) return [];
  const tools: unknown = JSON.parse(text);
  if (!Array.isArray(tools)) throw new SyntaxError("a list of tools is expected");
  return tools;
}

function forApi(message: Message): unknown {
  const onlyText = message.parts.every((part) => part.type === "text");
  const content = onlyText ? textOf(message) : message.parts;
  if (message.role === "tool") return { role: "tool", tool_call_id: message.toolCallId, content };
  if (message.role === "user") return { role: "user", content };
  const calls = (message.toolCalls ?? []).filter((call) => call.name);
  if (!calls.length) return textOf(message) ? { role: "assistant", content } : null;
  return {
    role: "assistant",
    content: textOf(message) || null,
    tool_calls: calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } })),
  };
}
