// The two dialogs: settings of the conversation, and the key.

import type { Api } from "./api.js";
import { type Settings, parseTools } from "./conversation.js";
import { byId } from "./dom.js";
import { lasting } from "./storage.js";

const KEPT = "octavo.settings";

/** What a new conversation begins with: the settings that were changed last. */
export function keptSettings(): Settings {
  try {
    const kept: unknown = JSON.parse(lasting.getItem(KEPT) ?? "");
    if (kept && typeof kept === "object" && "numbers" in kept) return kept as Settings;
  } catch {
    // none, or one that this version cannot read
  }
  return { numbers: {} };
}

export class SettingsDialog {
  private readonly dialog = byId<HTMLDialogElement>("settings");
  private readonly system = byId<HTMLTextAreaElement>("system");
  private readonly stops = byId<HTMLTextAreaElement>("stops");
  private readonly tools = byId<HTMLTextAreaElement>("tools");
  private readonly thinking = byId<HTMLSelectElement>("thinking");
  private readonly numbers = [...this.dialog.querySelectorAll<HTMLInputElement>("input[data-setting]")];

  /** `onchange` gets the settings when the dialog is closed, by whatever way. */
  constructor(onchange: (settings: Settings) => void) {
    this.dialog.addEventListener("close", () => {
      const settings = this.read();
      lasting.setItem(KEPT, JSON.stringify(settings));
      onchange(settings);
    });
    this.dialog.querySelector("form")!.addEventListener("submit", (event) => {
      if (!this.checkTools()) event.preventDefault();
    });
    this.tools.addEventListener("change", () => this.checkTools());
    byId("settings-reset").addEventListener("click", () => this.write({ numbers: {} }));
  }

  open(settings: Settings): void {
    this.write(settings);
    this.dialog.showModal();
  }

  private write(settings: Settings): void {
    this.system.value = settings.system ?? "";
    this.stops.value = (settings.stop ?? []).join("\n");
    this.tools.value = settings.tools ?? "";
    this.thinking.value = settings.thinking === undefined ? "" : settings.thinking ? "on" : "off";
    for (const input of this.numbers) input.value = String(settings.numbers[input.dataset.setting!] ?? "");
    this.checkTools();
  }

  private read(): Settings {
    const given = this.numbers.filter((input) => input.value !== "" && input.validity.valid);
    const stop = this.stops.value.split("\n").filter((line) => line !== "");
    const settings: Settings = { numbers: Object.fromEntries(given.map((input) => [input.dataset.setting!, input.valueAsNumber])) };
    if (this.system.value.trim()) settings.system = this.system.value;
    if (stop.length) settings.stop = stop;
    if (this.tools.value.trim()) settings.tools = this.tools.value;
    if (this.thinking.value) settings.thinking = this.thinking.value === "on";
    return settings;
  }

  private checkTools(): boolean {
    let problem = "";
    try {
      parseTools(this.tools.value);
    } catch (error) {
      problem = `The tools are no JSON list: ${(error as Error).message}`;
    }
    byId("tools-error").textContent = problem;
    this.tools.setAttribute("aria-invalid", String(problem !== ""));
    return problem === "";
  }
}

export class KeyDialog {
  private readonly dialog = byId<HTMLDialogElement>("key-dialog");
  private readonly field = byId<HTMLInputElement>("key");
  private readonly remember = byId<HTMLInputElement>("key-remember");

  constructor(private readonly api: Api, onchange: () => void) {
    byId("key-form").addEventListener("submit", () => {
      api.setKey(this.field.value.trim(), this.remember.checked);
      onchange();
    });
    byId("key-cancel").addEventListener("click", () => this.dialog.close());
  }

  open(problem = ""): void {
    byId("key-error").textContent = problem;
    this.field.value = this.api.key;
    this.remember.checked = this.api.isKeyRemembered;
    if (!this.dialog.open) this.dialog.showModal();
    this.field.select();
  }
}
