// As much of a document as the renderer of Markdown needs. Setting HTML or a handler fails: there is no such thing here.

const VOID = new Set(["br", "hr", "input"]);

class Text {
  constructor(readonly data: string) {}
  get textContent(): string {
    return this.data;
  }
}

type Content = Element | Text;

export class Element {
  readonly attributes = new Map<string, string>();
  readonly listeners: string[] = [];
  childNodes: Content[] = [];
  private parent: Element | null = null;

  constructor(readonly name: string) {}

  append(...children: (Content | string)[]): void {
    for (const child of children) {
      const node = typeof child === "string" ? new Text(child) : child;
      if (node instanceof Element) node.parent = this;
      this.childNodes.push(node);
    }
  }

  setAttribute(name: string, value: string): void {
    this.attributes.set(name, value);
  }

  addEventListener(name: string): void {
    this.listeners.push(name);
  }

  remove(): void {
    if (this.parent) this.parent.childNodes = this.parent.childNodes.filter((child) => child !== this);
  }

  get lastChild(): Content | undefined {
    return this.childNodes.at(-1);
  }

  get textContent(): string {
    return this.childNodes.map((child) => child.textContent).join("");
  }

  *all(): Generator<Element> {
    yield this;
    for (const child of this.childNodes) if (child instanceof Element) yield* child.all();
  }

  /** As HTML, without what only dresses: classes and the parts around code and tables. */
  get html(): string {
    const inner = this.childNodes.map((child) => (child instanceof Element ? child.html : child.data.replace(/[&<]/g, (c) => (c === "&" ? "&amp;" : "&lt;")))).join("");
    if (this.name === "svg" || this.name === "button") return "";
    const shown = ["href", "start", "checked"].filter((name) => this.attributes.has(name)).map((name) => ` ${name}="${this.attributes.get(name)}"`);
    return VOID.has(this.name) ? `<${this.name}${shown.join("")}>` : `<${this.name}${shown.join("")}>${inner}</${this.name}>`;
  }
}

Object.assign(globalThis, {
  document: {
    createElement: (name: string) => new Element(name),
    createElementNS: (_: string, name: string) => new Element(name),
    createTextNode: (data: string) => new Text(data),
  },
});
