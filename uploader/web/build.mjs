// Builds the front end into the folder that is given (default ../assets): bundles whose names carry a hash of their
// content, files.rs for the uploader to compile in, and LICENSES.txt. The same sources give the same bytes.

import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = resolve(process.argv[2] ?? join(here, "../assets"));
const ALLOWED = new Set(["MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "0BSD"]);

const FILES = [
  { name: "ICON", entry: "favicon.svg", type: "image/svg+xml" },
  { name: "INDEX_SCRIPT", entry: "index.ts", type: "text/javascript; charset=utf-8" },
  { name: "PROFILE_SCRIPT", entry: "profile.ts", type: "text/javascript; charset=utf-8" },
  { name: "STYLE", entry: "style.css", type: "text/css; charset=utf-8" },
];

const result = await build({
  absWorkingDir: here,
  entryPoints: FILES.map((file) => `src/${file.entry}`),
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022", "chrome111", "firefox113", "safari16.4"],
  charset: "utf8",
  legalComments: "none",
  loader: { ".svg": "copy" },
  outdir: "out",
  metafile: true,
  write: false,
  logLevel: "warning",
});

mkdirSync(out, { recursive: true });
for (const old of readdirSync(out)) rmSync(join(out, old));

const constants = [];
const rows = [];
for (const { name, entry, type } of FILES) {
  const [stem, extension] = entry.replace(/\.ts$/, ".js").split(".");
  const file = result.outputFiles.find((output) => output.path.endsWith(`/${stem}.${extension}`));
  const hash = createHash("sha256").update(file.contents).digest("hex").slice(0, 12);
  const hashed = `${stem}-${hash}.${extension}`;
  writeFileSync(join(out, hashed), file.contents);
  constants.push(`pub(crate) const ${name}: &str = "${hashed}";`);
  rows.push(`    (${name}, "${type}", include_bytes!("${hashed}")),`);
}
writeFileSync(
  join(out, "files.rs"),
  `// Made by script/build-web; do not edit.\n${constants.join("\n")}\n` +
    `const FILES: &[(&str, &str, &[u8])] = &[\n${rows.join("\n")}\n];\n`,
);
writeFileSync(join(out, "LICENSES.txt"), licences(Object.keys(result.metafile.inputs)));

/** The licences of the packages that are part of the bundles. */
function licences(inputs) {
  const packages = new Set();
  for (const input of inputs) {
    const match = /^(?:.*\/)?node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
    if (match) packages.add(match[1]);
  }
  if (packages.size === 0) {
    return "The scripts and styles in this folder are Bulkhead's own (Apache-2.0). No other package is part of them.\n";
  }
  const texts = [...packages].sort().map((name) => {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    if (!ALLOWED.has(license)) throw new Error(`${name} has the licence ${license}, which is not allowed`);
    const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
    if (!file) throw new Error(`${name} comes without the text of its licence`);
    return `${name} ${version} (${license})\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
  });
  return `Packages that are part of the scripts and styles in this folder.\n\n${texts.join("\n---\n\n")}`;
}
