// The messages of one conversation, as they are and as they come.

import { type Conversation, type Message, type ToolCall, path, siblings, textOf } from "./conversation.js";
import { byId, copyText, el, iconButton } from "./dom.js";
import { amount, count, duration } from "./engine.js";
import { GrowingMarkdown } from "./markdown.js";

/** What the buttons of a message do. */
export interface Actions {
  regenerate(message: Message): void;
  edit(message: Message, text: string): void;
  select(message: Message): void;
  answerCalls(message: Message, results: Map<string, string>): void;
}

interface View {
  element: HTMLElement;
  update(): void;
}

/** Rendering takes at most a fifth of the page's time, however long a reply is. */
const REST = 4;
const NEAR_END = 48; // pixels

export class Thread {
  private readonly root = byId("thread");
  private readonly latest = byId("latest");
  private views = new Map<string, View>();
  private readonly changed = new Set<string>();
  private isScheduled = false;
  private isAtEnd = true;
  private restUntil = 0;

  constructor(private readonly actions: Actions) {
    this.root.addEventListener("scroll", () => this.noteScroll(), { passive: true });
    new ResizeObserver(() => this.followEnd()).observe(this.root);
    this.latest.addEventListener("click", () => {
      this.toEnd();
      byId("input").focus();
    });
  }

  show(conversation: Conversation): void {
    const messages = path(conversation);
    this.changed.clear();
    this.views = new Map(messages.map((message) => [message.id, this.viewOf(conversation, message)]));
    const elements = [...this.views.values()].map((view) => view.element);
    this.root.replaceChildren(...(elements.length ? elements : [welcome()]));
    this.toEnd();
  }

  /** `message` changed. It is drawn with the next frame, or later when drawing is slow. */
  refresh(message: Message): void {
    this.changed.add(message.id);
    if (this.isScheduled) return;
    this.isScheduled = true;
    setTimeout(() => requestAnimationFrame(() => this.draw()), Math.max(0, this.restUntil - performance.now()));
  }

  /** Draw what changed now: a page that is hidden has no frames. */
  draw(): void {
    const started = performance.now();
    this.isScheduled = false;
    for (const id of this.changed) this.views.get(id)?.update();
    this.changed.clear();
    this.followEnd();
    const now = performance.now();
    this.restUntil = now + REST * (now - started);
  }

  /** Focus a button of a message, which may have been drawn anew. */
  focus(message: Message, label: string): void {
    const buttons = [...(this.views.get(message.id)?.element.querySelectorAll("button") ?? [])];
    (buttons.find((button) => button.getAttribute("aria-label") === label && !button.disabled) ?? byId("input")).focus();
  }

  startEdit(message: Message): void {
    this.views.get(message.id)?.element.querySelector<HTMLButtonElement>('button[aria-label="Edit"]')?.click();
  }

  toEnd(): void {
    this.isAtEnd = true;
    this.followEnd();
  }

  private followEnd(): void {
    if (this.isAtEnd) this.root.scrollTop = this.root.scrollHeight;
    this.latest.hidden = this.isAtEnd;
  }

  private noteScroll(): void {
    const { scrollHeight, scrollTop, clientHeight } = this.root;
    this.isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_END;
    this.latest.hidden = this.isAtEnd;
  }

  private viewOf(conversation: Conversation, message: Message): View {
    const turns = versions(conversation, message, this.actions);
    if (message.role === "user") return userView(message, turns, this.actions);
    if (message.role === "tool") return toolView(conversation, message);
    return new ReplyView(conversation, message, turns, this.actions);
  }
}

function welcome(): HTMLElement {
  return el("div", { class: "welcome" },
    el("p", { class: "wordmark", "aria-hidden": "true" }, "octavo"),
    el("p", { class: "dim" }, "Ask the model something. What you write goes to this server only; conversations are kept in this browser."));
}

/** "‹ 2 / 3 ›" where there are several. */
function versions(conversation: Conversation, message: Message, actions: Actions): HTMLElement | null {
  const all = siblings(conversation, message);
  if (all.length < 2) return null;
  const place = all.indexOf(message);
  const turn = (name: "back" | "forth", label: string, target: Message | undefined): HTMLButtonElement => {
    const button = iconButton(name, label, () => target && actions.select(target));
    button.disabled = !target;
    return button;
  };
  return el("span", { class: "versions" },
    turn("back", "Earlier version", all[place - 1]),
    el("span", { "aria-label": `Version ${place + 1} of ${all.length}` }, `${place + 1} / ${all.length}`),
    turn("forth", "Later version", all[place + 1]));
}

/** The heading is for screen readers, which go from heading to heading; those of Markdown come below it. */
function messageElement(kind: string, name: string, ...children: HTMLElement[]): HTMLElement {
  return el("article", { class: `message ${kind}`, "aria-label": name }, el("h2", { class: "visually-hidden" }, name), ...children);
}

function userView(message: Message, turns: HTMLElement | null, actions: Actions): View {
  const copy = iconButton("copy", "Copy", () => void copyText(textOf(message), copy));
  const edit = iconButton("edit", "Edit", () => {
    shown.replaceWith(form);
    foot.hidden = true;
    fit(field);
    field.focus();
  });
  const shown = el("div", { class: "bubble" }, textOf(message));
  const foot = el("div", { class: "foot" }, turns, copy, edit);
  const field = el("textarea", { "aria-label": "Edit the message", oninput: () => fit(field) });
  field.value = textOf(message);
  const close = (): void => {
    form.replaceWith(shown);
    foot.hidden = false;
    field.value = textOf(message);
    edit.focus();
  };
  const form = el("form", { class: "edit", onsubmit: (event: SubmitEvent) => {
    event.preventDefault();
    if (field.value.trim()) actions.edit(message, field.value);
  } }, field, el("div", { class: "actions" },
    el("button", { type: "button", class: "quiet", onclick: close }, "Cancel"),
    el("button", { type: "submit", class: "primary" }, "Send")));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    else if (isSendKey(event)) form.requestSubmit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const element = messageElement("user", "You", shown, foot);
  return { element, update: () => undefined };
}

/** Enter, without a modifier and not one that ends a composition (of Chinese, Japanese ...). */
export function isSendKey(event: KeyboardEvent): boolean {
  return event.key === "Enter" && !event.shiftKey && !event.altKey && !event.ctrlKey && !event.metaKey && !event.isComposing;
}

/** As high as its text, within what the style allows. */
export function fit(field: HTMLTextAreaElement): void {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function toolView(conversation: Conversation, message: Message): View {
  const caller = message.parent === null ? undefined : path(conversation, message.parent).findLast((one) => one.role === "assistant");
  const call = caller?.toolCalls?.find((one) => one.id === message.toolCallId);
  const element = messageElement("tool", "Result of a tool", el("details", { class: "fold" },
    el("summary", {}, `Result of ${call?.name ?? "a tool"}`), el("pre", { tabindex: 0 }, textOf(message))));
  return { element, update: () => undefined };
}

class ReplyView implements View {
  readonly element = messageElement("assistant", "Reply");
  private readonly thoughts = el("div", { class: "thoughts" });
  private readonly thoughtsTitle = el("summary");
  private readonly thoughtsFold = el("details", { class: "fold", hidden: true }, this.thoughtsTitle, this.thoughts);
  private readonly markdown = new GrowingMarkdown();
  private readonly calls = el("div");
  private readonly waiting = el("p", { class: "waiting" }, el("span", { class: "visually-hidden" }, "The reply is being made."));
  private readonly problem = el("p", { class: "error", hidden: true });
  private readonly foot = el("div", { class: "foot" });
  private isComplete = false;

  constructor(
    private readonly conversation: Conversation, private readonly message: Message,
    private readonly turns: HTMLElement | null, private readonly actions: Actions,
  ) {
    this.element.append(this.thoughtsFold, this.markdown.element, this.calls, this.waiting, this.problem, this.foot);
    this.update();
  }

  update(): void {
    const { message } = this;
    const text = textOf(message);
    const isStreaming = message.state === "streaming";
    this.showThoughts(isStreaming && !text && !message.toolCalls?.length);
    if (!this.isComplete) this.markdown.update(text, !isStreaming);
    if (message.toolCalls?.length) this.showCalls(message.toolCalls, isStreaming);
    this.waiting.hidden = !isStreaming || text !== "" || Boolean(message.toolCalls?.length);
    this.element.classList.toggle("streaming", isStreaming);
    if (!isStreaming && !this.isComplete) this.showEnd(text);
    this.isComplete = !isStreaming;
  }

  private showThoughts(isThinking: boolean): void {
    const { reasoning, reasoningMs } = this.message;
    this.thoughtsFold.hidden = !reasoning;
    if (!reasoning) return;
    const title = isThinking ? "Thinking…" : reasoningMs ? `Thought for ${duration(reasoningMs / 1000)}` : "Thoughts";
    if (this.thoughtsTitle.textContent !== title) this.thoughtsTitle.textContent = title;
    this.thoughts.textContent = reasoning;
  }

  private showCalls(calls: ToolCall[], isStreaming: boolean): void {
    while (this.calls.children.length < calls.length) {
      this.calls.append(el("details", { class: "fold" }, el("summary"), el("pre", { tabindex: 0 })));
    }
    calls.forEach((call, i) => {
      const [title, body] = this.calls.children[i]!.children as unknown as [HTMLElement, HTMLElement];
      title.textContent = `Calls ${call.name}`;
      body.textContent = isStreaming ? call.arguments : pretty(call.arguments);
    });
    if (!isStreaming && this.conversation.leaf === this.message.id) this.calls.append(this.resultsForm(calls));
  }

  private resultsForm(calls: ToolCall[]): HTMLElement {
    const fields = calls.map(() => el("textarea", { rows: 2, class: "mono", required: true }));
    return el("form", { class: "results", onsubmit: (event: SubmitEvent) => {
      event.preventDefault();
      this.actions.answerCalls(this.message, new Map(calls.map((call, i) => [call.id, fields[i]!.value])));
    } },
      ...calls.map((call, i) => el("label", {}, `Result of ${call.name}`, fields[i])),
      el("div", { class: "actions" }, el("button", { type: "submit", class: "primary" }, "Send the results")));
  }

  private showEnd(text: string): void {
    const { message } = this;
    const problem = message.error
      ?? (message.finish === "length" ? "The reply ends here because the limit of tokens was reached."
        : message.state === "stopped" ? "You stopped this reply."
        : !text && !message.reasoning && !message.toolCalls?.length ? "The reply is empty." : "");
    this.problem.textContent = problem;
    this.problem.hidden = !problem;
    this.problem.classList.toggle("mild", !message.error);
    const copy = iconButton("copy", "Copy", () => void copyText(text, copy));
    const again = iconButton("again", message.state === "failed" ? "Try again" : "Regenerate", () => this.actions.regenerate(message));
    this.foot.replaceChildren(...[this.turns, text && copy, again, el("span", { class: "dim small stats" }, statsLine(message))]
      .filter((child): child is HTMLElement => Boolean(child)));
  }
}

function pretty(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}

function statsLine({ model, stats }: Message): string {
  if (!stats) return model ?? "";
  const seconds = (stats.totalMs - stats.firstTokenMs) / 1000;
  const speed = stats.completionTokens > 1 && seconds > 0 ? `${amount((stats.completionTokens - 1) / seconds)} tokens/s` : "";
  const parts = [model, `${count(stats.completionTokens)} tokens`, speed, `first after ${duration(stats.firstTokenMs / 1000)}`];
  return parts.filter(Boolean).join(" · ");
}
