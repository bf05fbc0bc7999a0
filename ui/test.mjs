// Bundles the tests of test/ and runs them with Node's own runner. `node test.mjs [OPTIONS of node --test]`
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const tests = fileURLToPath(new URL("test", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "octavo-ui-"));
try {
  const entryPoints = readdirSync(tests).filter((name) => name.endsWith(".test.ts")).map((name) => join(tests, name));
  const made = await build({
    entryPoints, bundle: true, outdir: folder, outExtension: { ".js": ".mjs" },
    format: "esm", platform: "node", metafile: true, logLevel: "warning",
  });
  const files = Object.keys(made.metafile.outputs);
  process.exitCode = spawnSync(process.execPath, ["--test", ...process.argv.slice(2), ...files], { stdio: "inherit" }).status ?? 1;
} finally {
  rmSync(folder, { recursive: true });
}
