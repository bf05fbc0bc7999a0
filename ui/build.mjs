// Builds the page: one HTML file from src/. `node build.mjs [FILE]`; by default the file that octavo serves.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const target = process.argv[2] ?? here("../src/octavo/server/ui.html");

// The page says what it was made from, so that a test can tell without Node.js whether it was built again.
function digestOfSources() {
  const digest = createHash("sha256");
  const sources = readdirSync(here("src")).sort().map((name) => `src/${name}`);
  for (const name of [...sources, "build.mjs", "package-lock.json"]) {
    digest.update(`${name}\0`).update(readFileSync(here(name))).update("\0");
  }
  return digest.digest("hex");
}

// The terms under which marked may be passed on.
const licence = `/*! The Markdown parser below is marked.\n\n${readFileSync(here("node_modules/marked/LICENSE"), "utf8").trim()}\n*/`;

async function bundle(entry, banner = "") {
  const result = await build({
    entryPoints: [here(entry)], bundle: true, write: false, banner: { js: banner }, charset: "utf8", legalComments: "inline",
    format: "iife", target: ["es2022", "chrome123", "firefox120", "safari17.5"], logLevel: "warning",
  });
  return result.outputFiles[0].text;
}

// A function as the replacement: in a text, "$&" would be one of replace's patterns.
const page = readFileSync(here("src/page.html"), "utf8")
  .replace("{{sources}}", digestOfSources())
  .replace("{{style}}", await bundle("src/style.css").then((css) => () => "\n" + css))
  .replace("{{script}}", await bundle("src/main.ts", licence).then((js) => () => "\n" + js));
writeFileSync(target, page);
