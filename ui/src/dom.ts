// Elements. Text is only ever set as text: nothing in this page is parsed as HTML.

export type Child = Node | string | null | undefined | false;
type Value = string | number | boolean | null | undefined | ((event: never) => void);

/** An element: el("td", { class: "dim", onclick: f }, "text", child). `true` sets an attribute without a value. */
export function el<K extends keyof HTMLElementTagNameMap>(
  name: K, attributes: Record<string, Value> = {}, ...children: Child[]
): HTMLElementTagNameMap[K] {
  const node = document.createElement(name);
  setAttributes(node, attributes);
  node.append(...present(children));
  return node;
}

function setAttributes(node: Element, attributes: Record<string, Value>): void {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key.slice(2), value as unknown as EventListener);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : String(value));
  }
}

function present(children: Child[]): (Node | string)[] {
  return children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false);
}

/** The element of the page with this id. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const node = document.getElementById(id);
  if (!node) throw new Error(`no element #${id}`);
  return node as T;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(name: string, attributes: Record<string, string>, ...children: Element[]): SVGElement {
  const node = document.createElementNS(SVG, name) as SVGElement;
  setAttributes(node, attributes);
  node.append(...children);
  return node;
}

/** Outlines in a box of 24 by 24. */
const ICONS = {
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12.5 10 17 19 7",
  edit: "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
  again: "M20 11a8 8 0 1 0-2 6M20 5v6h-6",
  back: "M14 6l-6 6 6 6",
  forth: "M10 6l6 6-6 6",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
} as const;

export function icon(name: keyof typeof ICONS): SVGElement {
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

/** A button that shows an icon and is called `label`. */
export function iconButton(name: keyof typeof ICONS, label: string, onclick: (event: MouseEvent) => void): HTMLButtonElement {
  return el("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick }, icon(name));
}

/** Tells a screen reader, once. */
export function announce(text: string): void {
  byId("announcer").textContent = text;
}

/** Copies text, and shows on `button` that it was done. */
export async function copyText(text: string, button: HTMLButtonElement): Promise<void> {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyBySelection(text);
  } catch {
    announce("The browser did not allow copying.");
    return;
  }
  const shown = [...button.childNodes];
  button.replaceChildren(icon("check"));
  announce("Copied.");
  setTimeout(() => button.replaceChildren(...shown), 1500);
}

/** Browsers have no clipboard API on pages that came over plain HTTP from another machine. */
function copyBySelection(text: string): void {
  const field = el("textarea", { class: "visually-hidden" });
  field.value = text;
  document.body.append(field);
  const focused = document.activeElement;
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (focused instanceof HTMLElement) focused.focus();
  if (!done) throw new Error("refused");
}

/** A random id. crypto.randomUUID is missing on pages that came over plain HTTP. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
