// The page: what is shown, and what its buttons do.

import { Api, ApiError, type Model, Unreachable } from "./api.js";
import { Connection, type State } from "./connection.js";
import {
  type Conversation, type Message, add, apiMessages, newConversation, newMessage, path, select, siblings, textOf,
} from "./conversation.js";
import { announce, byId, el } from "./dom.js";
import { EnginePanel, count } from "./engine.js";
import { Runs } from "./runs.js";
import { KeyDialog, SettingsDialog, keptSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { lasting, passing } from "./storage.js";
import { Store } from "./store.js";
import { Thread, fit, isSendKey } from "./thread.js";

const MODEL = "octavo.model";
const ENGINE = "octavo.engine";
const OPEN = "octavo.conversation";
const MOST_ANNOUNCED = 2000; // characters

class Page {
  private conversation = newConversation(keptSettings());
  private models: Model[] = [];
  private toastTimer = 0;
  private readonly loaded = new Map<string, Conversation>(); // those that a reply is made in, and the one shown
  private readonly api = new Api();
  private readonly input = byId<HTMLTextAreaElement>("input");
  private readonly model = byId<HTMLSelectElement>("model");
  private readonly engine = new EnginePanel();
  private readonly settings = new SettingsDialog((settings) => {
    this.conversation.settings = settings;
    if (this.conversation.leaf !== null) this.save(this.conversation);
  });
  private readonly connection = new Connection(
    this.api, (state) => this.showState(state), (models) => this.showModels(models), (text) => this.engine.update(text));
  private readonly key = new KeyDialog(this.api, () => this.connection.restart());
  private readonly runs = new Runs(this.api, {
    started: (conversation) => this.noteChange(conversation),
    grew: (conversation, message) => conversation === this.conversation && this.thread.refresh(message),
    ended: (conversation, message, error) => this.noteEnd(conversation, message, error),
    save: (conversation) => this.save(conversation),
  });
  private readonly thread = new Thread({
    regenerate: (message) => this.reply(message.parent!),
    edit: (message, text) => this.send(text, message.parent),
    select: (message) => this.select(message),
    answerCalls: (message, results) => this.answerCalls(message, results),
  });
  private readonly sidebar = new Sidebar({
    open: (id) => void this.open(id),
    rename: (id, title) => void this.rename(id, title),
    save: (id) => void this.download(id),
    remove: (id) => void this.remove(id),
  });

  constructor(private readonly store: Store) {
    byId("not-lasting").hidden = store.isLasting;
    this.bindComposer();
    this.bindPanels();
    byId("new").addEventListener("click", () => this.show(newConversation(keptSettings())));
    byId("settings-open").addEventListener("click", () => this.settings.open(this.conversation.settings));
    byId("key-open").addEventListener("click", () => this.key.open());
    this.model.addEventListener("change", () => {
      lasting.setItem(MODEL, this.model.value);
      this.showContext();
    });
    this.connection.look();
    const last = passing.getItem(OPEN); // the tab was loaded anew
    if (last) void this.open(last);
    else this.show(this.conversation);
  }

  // ------------------------------------------------------------ conversations
  private show(conversation: Conversation): void {
    this.conversation = conversation;
    this.loaded.set(conversation.id, conversation);
    for (const id of this.loaded.keys()) {
      if (id !== conversation.id && !this.runs.isRunning(id)) this.loaded.delete(id);
    }
    passing.setItem(OPEN, conversation.id);
    this.thread.show(conversation);
    this.showRunning();
    this.openSidebar(false);
    document.title = conversation.title ? `${conversation.title} – octavo` : "octavo";
    if (matchMedia("(hover: hover)").matches) this.input.focus(); // on a phone this would open the keyboard
    void this.list();
  }

  private async find(id: string): Promise<Conversation | undefined> {
    return this.loaded.get(id) ?? (await this.store.load(id));
  }

  private async open(id: string): Promise<void> {
    const conversation = await this.find(id);
    if (!conversation) return this.show(newConversation(keptSettings())); // another tab deleted it
    for (const message of Object.values(conversation.messages)) {
      // The page was closed while the reply was made.
      if (message.state === "streaming" && !this.runs.isRunning(id)) message.state = "stopped";
    }
    this.show(conversation);
  }

  private async list(): Promise<void> {
    const heads = await this.store.heads();
    this.sidebar.show(heads, this.conversation.id, (id) => this.runs.isRunning(id));
  }

  private save(conversation: Conversation): void {
    this.store.save(conversation).then(() => this.list(), () => {
      this.toast("The browser did not keep the conversation: it may be out of space.");
    });
  }

  private async rename(id: string, title: string): Promise<void> {
    const conversation = await this.find(id);
    if (!conversation) return;
    conversation.title = title;
    this.save(conversation);
  }

  private async remove(id: string): Promise<void> {
    const conversation = await this.find(id);
    this.runs.stop(id);
    this.loaded.delete(id);
    await this.store.remove(id);
    if (id === this.conversation.id) this.show(newConversation(keptSettings()));
    else await this.list();
    if (conversation) this.toast("The conversation was deleted.", "Undo", () => this.save(conversation));
  }

  private async download(id: string): Promise<void> {
    const conversation = await this.find(id);
    if (!conversation) return;
    // The form that `octavo chat` saves and loads.
    const text = JSON.stringify({ messages: apiMessages(path(conversation), conversation.settings) }, null, 2);
    const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    const name = conversation.title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "conversation";
    el("a", { href: address, download: `${name}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  // ------------------------------------------------------------ messages
  private send(text: string, parent: string | null): void {
    if (this.runs.isRunning(this.conversation.id)) return;
    const message = newMessage("user", parent, text);
    add(this.conversation, message);
    this.reply(message.id);
    this.input.focus();
  }

  private reply(parent: string): void {
    void this.runs.start(this.conversation, parent, this.model.disabled ? "" : this.model.value);
  }

  private answerCalls(message: Message, results: Map<string, string>): void {
    let parent = message.id;
    for (const [id, text] of results) {
      const result = { ...newMessage("tool", parent, text), toolCallId: id };
      add(this.conversation, result);
      parent = result.id;
    }
    this.reply(parent);
    this.input.focus();
  }

  private select(message: Message): void {
    const all = siblings(this.conversation, message);
    const shown = path(this.conversation).find((one) => one.parent === message.parent);
    const label = shown && all.indexOf(shown) > all.indexOf(message) ? "Earlier version" : "Later version";
    select(this.conversation, message);
    this.thread.show(this.conversation);
    this.thread.focus(message, label);
    announce(`Version ${all.indexOf(message) + 1} of ${all.length}.`);
    this.save(this.conversation);
  }

  private noteChange(conversation: Conversation): void {
    this.save(conversation);
    if (conversation !== this.conversation) return;
    document.title = `${conversation.title} – octavo`;
    this.thread.show(conversation);
    this.showRunning();
    announce("The reply is being made.");
  }

  private noteEnd(conversation: Conversation, message: Message, error: unknown): void {
    if (this.loaded.has(conversation.id)) this.save(conversation); // else it was deleted meanwhile
    if (error instanceof Unreachable || (error instanceof ApiError && error.status === 401)) this.connection.restart();
    if (conversation !== this.conversation) return;
    this.thread.refresh(message);
    this.thread.draw();
    this.showRunning();
    announce(message.error ? `Error: ${message.error}` : `Reply: ${textOf(message).slice(0, MOST_ANNOUNCED)}`);
  }

  // ------------------------------------------------------------ what is around the messages
  private showRunning(): void {
    const isRunning = this.runs.isRunning(this.conversation.id);
    const stop = byId<HTMLButtonElement>("stop");
    const hadFocus = document.activeElement === stop;
    stop.hidden = !isRunning;
    byId("send").hidden = isRunning;
    if (hadFocus) this.input.focus();
        this.showContext();
  }

  private showContext(): void {
    const most = this.models.find((model) => model.id === this.model.value)?.max_model_len;
    const stats = path(this.conversation).findLast((message) => message.stats)?.stats;
    const used = stats && stats.promptTokens + stats.completionTokens;
    byId("context").textContent = !most ? "" : used ? `${count(used)} of ${count(most)} tokens` : `${count(most)} tokens of context`;
  }

  private showModels(models: Model[]): void {
    this.models = models;
    const wanted = this.model.disabled ? lasting.getItem(MODEL) : this.model.value;
    this.model.replaceChildren(...models.map(({ id }) => el("option", { value: id }, id)));
    if (models.some(({ id }) => id === wanted)) this.model.value = wanted!;
    this.model.disabled = false;
    this.showContext();
    this.api.version().then((version) => (byId("version").textContent = version), () => undefined);
  }

  private showState(state: State): void {
    const notice = byId("notice");
    notice.hidden = state.name !== "down" && state.name !== "locked";
    notice.replaceChildren(state.name === "down" ? `${state.message} Trying again…` : "");
    byId("engine-content").classList.toggle("stale", state.name !== "ready");
    if (state.name !== "locked") return;
    notice.replaceChildren("This server asks for an API key. ",
      el("button", { type: "button", class: "link", onclick: () => this.key.open() }, "Enter the key"));
    this.key.open(this.api.key ? "The server does not accept this key." : "");
  }

  private toast(text: string, action = "", onclick: () => void = () => undefined): void {
    const toast = byId("toast");
    const close = (): void => { toast.hidden = true; };
    toast.replaceChildren(text, ...(action ? [el("button", { type: "button", class: "link", onclick: () => { onclick(); close(); } }, action)] : []));
    toast.hidden = false;
    clearTimeout(this.toastTimer);
    this.toastTimer = window.setTimeout(close, 10_000);
  }

  // ------------------------------------------------------------ bindings
  private bindComposer(): void {
    const send = byId<HTMLButtonElement>("send");
    const note = (): void => {
      send.disabled = !this.input.value.trim();
      fit(this.input);
    };
    this.input.addEventListener("input", note);
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = this.input.value;
      if (!text.trim() || this.runs.isRunning(this.conversation.id)) return;
      this.input.value = "";
      note();
      this.send(text, this.conversation.leaf);
    });
    this.input.addEventListener("keydown", (event) => {
      if (isSendKey(event)) {
        event.preventDefault();
        byId<HTMLFormElement>("composer").requestSubmit();
      } else if (event.key === "ArrowUp" && !this.input.value) {
        const last = path(this.conversation).findLast((message) => message.role === "user");
        if (last && !this.runs.isRunning(this.conversation.id)) {
          event.preventDefault();
          this.thread.startEdit(last);
        }
      }
    });
    byId("stop").addEventListener("click", () => this.runs.stop(this.conversation.id));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
      if (document.body.classList.contains("sidebar-shown")) this.openSidebar(false, true);
      else this.runs.stop(this.conversation.id);
    });
  }

  private bindPanels(): void {
    byId("sidebar-open").addEventListener("click", () => this.openSidebar(true, true));
    byId("sidebar-close").addEventListener("click", () => this.openSidebar(false, true));
    byId("scrim").addEventListener("click", () => this.openSidebar(false));
    const button = byId("engine-open");
    const openEngine = (isOpen: boolean): void => {
      byId("engine").hidden = !isOpen;
      button.setAttribute("aria-expanded", String(isOpen));
      lasting.setItem(ENGINE, isOpen ? "open" : "");
      this.connection.isWatching = isOpen;
      if (this.connection.state.name === "ready") this.connection.look();
    };
    const closeEngine = (): void => {
      openEngine(false);
      button.focus();
    };
    const isBeside = matchMedia("(min-width: 70rem)");
    button.addEventListener("click", () => {
      openEngine(byId("engine").hidden === true);
      if (!byId("engine").hidden && !isBeside.matches) byId("engine-close").focus(); // it covers the button
    });
    byId("engine-close").addEventListener("click", closeEngine);
    byId("engine").addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation(); // Escape would stop a reply too
      closeEngine();
    });
    if (lasting.getItem(ENGINE) && isBeside.matches) openEngine(true);
  }

  /** On a small screen the list lies above the rest. */
  private openSidebar(isOpen: boolean, moveFocus = false): void {
    document.body.classList.toggle("sidebar-shown", isOpen);
    byId("scrim").hidden = !isOpen;
    byId("sidebar-open").setAttribute("aria-expanded", String(isOpen));
    if (moveFocus) byId(isOpen ? "new" : "sidebar-open").focus();
  }
}

void Store.open().then((store) => new Page(store));
