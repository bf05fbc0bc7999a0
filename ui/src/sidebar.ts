// The list of conversations.

import { el, byId, iconButton } from "./dom.js";
import type { Head } from "./store.js";

export interface SidebarActions {
  open(id: string): void;
  rename(id: string, title: string): void;
  save(id: string): void;
  remove(id: string): void;
}

export class Sidebar {
  private readonly list = byId("conversations");

  constructor(private readonly actions: SidebarActions) {}

  show(heads: Head[], current: string, running: (id: string) => boolean): void {
    // The list is drawn anew while it is used: what was focused is focused again.
    const focused = this.list.contains(document.activeElement) ? (document.activeElement as HTMLElement) : null;
    if (focused instanceof HTMLInputElement) return; // a title is being written
    const place = focused && [focused.closest("li")?.dataset.id, focused.getAttribute("aria-label")];
    this.list.replaceChildren(...heads.map((head) => this.item(head, head.id === current, running(head.id))));
    if (!place) return;
    const item = [...this.list.children].find((one) => (one as HTMLElement).dataset.id === place[0]);
    const button = item && [...item.querySelectorAll("button")].find((one) => one.getAttribute("aria-label") === place[1]);
    (button ?? byId("new")).focus();
  }

  private item(head: Head, isCurrent: boolean, isRunning: boolean): HTMLElement {
    const title = head.title || "New conversation";
    const open = el("button", { type: "button", class: "open", "aria-current": isCurrent && "true", onclick: () => this.actions.open(head.id) },
      el("span", {}, title), isRunning && el("span", { class: "busy", role: "img", "aria-label": "a reply is being made" }));
    const item = el("li", { "data-id": head.id }, open,
      el("span", { class: "tools" },
        iconButton("edit", `Rename ${title}`, () => this.rename(item, open, head)),
        iconButton("save", `Save ${title} as a file`, () => this.actions.save(head.id)),
        iconButton("remove", `Delete ${title}`, () => this.actions.remove(head.id))));
    return item;
  }

  private rename(item: HTMLElement, open: HTMLElement, head: Head): void {
    const field = el("input", { "aria-label": "Title", value: head.title, maxlength: 200 });
    let isOpen = true;
    const end = (keep: boolean): void => {
      if (!isOpen) return;
      isOpen = false;
      field.replaceWith(open);
      item.classList.remove("renaming");
      open.focus();
      if (keep && field.value.trim()) this.actions.rename(head.id, field.value.trim());
    };
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.stopPropagation();
      end(event.key === "Enter");
    });
    field.addEventListener("blur", () => end(true));
    item.classList.add("renaming");
    open.replaceWith(field);
    field.select();
  }
}
