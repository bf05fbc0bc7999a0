// Markdown to elements. `marked` finds the structure; elements are made here, one by one, from a fixed list, and text
// is set as text. So nothing that a model writes can become markup of its own: HTML is shown as it is written, links
// lead to the web or to mail only, and images are links, because the address of an image that is loaded by itself can
// carry a conversation away.

import { Lexer, type MarkedToken, type Token, type Tokens } from "marked";
import { copyText, el, iconButton } from "./dom.js";

/** Bounds that keep a hostile reply from taking the page's time: beyond them text stays as it is. */
const MAX_DEPTH = 16;
const MAX_INLINE_CHARS = 20_000;
const MAX_CELLS = 5_000;
const LINKS = new Set(["http:", "https:", "mailto:"]);

class BoundedLexer extends Lexer {
  private depth = 0;

  override blockTokens(source: string, tokens: Token[] = [], lastParagraphClipped = false): never {
    if (this.depth >= MAX_DEPTH) {
      tokens.push({ type: "text", raw: source, text: source });
      return tokens as never;
    }
    this.depth += 1;
    try {
      return super.blockTokens(source, tokens as never, lastParagraphClipped) as never;
    } finally {
      this.depth -= 1;
    }
  }

  override inlineTokens(source: string, tokens: Token[] = []): Token[] {
    if (source.length > MAX_INLINE_CHARS || this.depth >= MAX_DEPTH) {
      tokens.push({ type: "text", raw: source, text: source });
      return tokens;
    }
    this.depth += 1;
    try {
      return super.inlineTokens(source, tokens);
    } finally {
      this.depth -= 1;
    }
  }
}

/** The blocks of a text. Their `raw` texts, one after the other, are the text. */
function lex(source: string): Token[] {
  try {
    return new BoundedLexer({ gfm: true }).lex(source);
  } catch {
    return [{ type: "text", raw: source, text: source }];
  }
}

export function renderMarkdown(source: string): HTMLElement[] {
  return lex(source.replaceAll("\r\n", "\n")).flatMap((token) => block(token as MarkedToken));
}

/** A text that grows. Blocks that are complete are left alone: each update costs as much as the last block is long. */
export class GrowingMarkdown {
  readonly element = el("div", { class: "markdown" });
  private settled = 0; // characters
  private kept = 0; // elements
  private source = "";

  update(source: string, isComplete: boolean): void {
    source = source.replaceAll("\r\n", "\n");
    if (isComplete || !source.startsWith(this.source)) {
      this.settled = this.kept = 0; // at the end all of it once more: what came last can change what stood before
    }
    this.source = source;
    while (this.element.childNodes.length > this.kept) this.element.lastChild?.remove();
    const tokens = lex(source.slice(this.settled)) as MarkedToken[];
    const last = tokens.findLastIndex((token) => token.type !== "space");
    for (const [i, token] of tokens.entries()) {
      const made = block(token);
      this.element.append(...made);
      if (i < last) {
        this.settled += token.raw.length;
        this.kept += made.length;
      }
    }
  }
}

function block(token: MarkedToken): HTMLElement[] {
  switch (token.type) {
    case "space":
    case "def":
      return [];
    case "heading":
      // The page has the first level, a message's author the second.
      return [el(`h${Math.min(token.depth + 2, 6)}` as "h3", { class: `h${token.depth}` }, ...inline(token.tokens))];
    case "code":
      return [codeBlock(token.text, (token.lang ?? "").trim().split(/\s/, 1)[0] ?? "")];
    case "hr":
      return [el("hr")];
    case "blockquote":
      return [el("blockquote", {}, ...blocks(token.tokens))];
    case "list":
      return [list(token)];
    case "table":
      return [table(token)];
    case "paragraph":
      return [el("p", {}, ...inline(token.tokens))];
    case "text":
      return [el("p", {}, ...inline(token.tokens ?? [token]))];
    default:
      return [el("p", { class: "raw" }, token.raw.trimEnd())];
  }
}

function blocks(tokens: Token[] | undefined): HTMLElement[] {
  return (tokens ?? []).flatMap((token) => block(token as MarkedToken));
}

function codeBlock(text: string, language: string): HTMLElement {
  const copy = iconButton("copy", "Copy the code", () => void copyText(text, copy));
  // Long lines scroll, and what scrolls must be reached by the keyboard.
  return el("div", { class: "code" },
    el("div", { class: "code-head" }, el("span", {}, language.slice(0, 40)), copy),
    el("pre", { tabindex: 0, role: "region", "aria-label": language ? `Code, ${language.slice(0, 40)}` : "Code" }, el("code", {}, text)));
}

function list(token: Tokens.List): HTMLElement {
  const items = token.items.map((item) => {
    const [first, ...rest] = item.tokens as MarkedToken[];
    const tokens = first?.type === "checkbox" ? rest : item.tokens;
    const box = el("input", { type: "checkbox", disabled: true, checked: item.checked === true, "aria-label": item.checked ? "done" : "not done" });
    const content = tokens.flatMap((child): Node[] =>
      // The text of a tight item is no paragraph.
      child.type === "text" && !item.loose ? inline((child as Tokens.Text).tokens ?? [child]) : block(child as MarkedToken));
    return el("li", item.task ? { class: "task" } : {}, item.task && box, ...content);
  });
  if (!token.ordered) return el("ul", {}, ...items);
  return el("ol", { start: token.start === 1 || token.start === "" ? null : token.start }, ...items);
}

function table(token: Tokens.Table): HTMLElement {
  const shown = Math.max(1, Math.floor(MAX_CELLS / Math.max(1, token.header.length)));
  const header = token.header.slice(0, MAX_CELLS);
  const cell = (name: "th" | "td", { tokens, align }: Tokens.TableCell): HTMLElement =>
    el(name, { class: align && `align-${align}`, scope: name === "th" ? "col" : null }, ...inline(tokens));
  const rows = token.rows.slice(0, shown).map((row) => el("tr", {}, ...row.slice(0, MAX_CELLS).map((each) => cell("td", each))));
  const hidden = token.rows.length - rows.length;
  return el("div", { class: "table", tabindex: 0, role: "region", "aria-label": "Table" },
    el("table", {}, el("thead", {}, el("tr", {}, ...header.map((each) => cell("th", each)))), el("tbody", {}, ...rows)),
    hidden > 0 && el("p", { class: "dim" }, `${hidden} more rows are not shown; a copy of the message has them.`));
}

function inline(tokens: Token[] | undefined): Node[] {
  return (tokens ?? []).map((token) => span(token as MarkedToken));
}

function span(token: MarkedToken): Node {
  switch (token.type) {
    case "strong":
    case "em":
    case "del":
      return el(token.type, {}, ...inline(token.tokens));
    case "codespan":
      return el("code", {}, token.text);
    case "br":
      return el("br");
    case "link":
      return link(token.href, inline(token.tokens));
    case "image":
      return link(token.href, [document.createTextNode(`image: ${token.text || token.href}`)]);
    case "escape":
      return document.createTextNode(token.text);
    case "text":
      return token.tokens ? el("span", {}, ...inline(token.tokens)) : document.createTextNode(decodeEntities(token.text));
    default:
      return document.createTextNode(token.raw);
  }
}

function link(written: string, content: Node[]): HTMLElement {
  const address = decodeEntities(written);
  let target: URL;
  try {
    target = new URL(address);
  } catch {
    return el("span", { title: address }, ...content);
  }
  if (!LINKS.has(target.protocol)) return el("span", { title: address }, ...content);
  // The title shows where a link leads that calls itself something else.
  return el("a", { href: target.href, title: target.href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...content);
}

const ENTITIES: Record<string, string> = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™", hellip: "…",
  ndash: "–", mdash: "—", laquo: "«", raquo: "»", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", middot: "·", bull: "•",
  times: "×", divide: "÷", plusmn: "±", deg: "°", larr: "←", rarr: "→", uarr: "↑", darr: "↓", le: "≤", ge: "≥", ne: "≠",
};

function decodeEntities(text: string): string {
  return text.replace(/&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([a-zA-Z]{2,8}));/g, (whole, decimal, hex, name) => {
    if (name) return Object.hasOwn(ENTITIES, name) ? (ENTITIES[name] as string) : whole;
    const code = decimal ? Number(decimal) : parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000) ? String.fromCodePoint(code) : whole;
  });
}
