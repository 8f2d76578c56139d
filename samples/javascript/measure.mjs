// node measure.mjs PORTABLE NATIVE [--rounds N] [--browser CHROMIUM [--gguf FILE]] [--packages DIR]: tokens a second of the
// engines that a page has, in turns, on one thread: the native decoder and onnxruntime-web, in Node or in Chromium; there
// llama.cpp, too, over FILE. PORTABLE and NATIVE are exports of one model. Packages: onnxruntime-web; for a browser
// playwright-core, for FILE @wllama/wllama. A Node before 22 has relaxed SIMD by --experimental-wasm-relaxed-simd alone.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { pageServer } from "../browser/serve.mjs";
import { fail, manifestOf, orFail, parsed } from "./command.mjs";
import { enginesOf } from "./engines.mjs";
import { measured, summary } from "./speed.mjs";

const { values, positionals: folders } = parsed({
  rounds: { type: "string", default: "5" },
  packages: { type: "string", default: fileURLToPath(new URL("../browser", import.meta.url)) },
  browser: { type: "string" },
  gguf: { type: "string" },
});
const rounds = Number(values.rounds);
if (!(Number.isInteger(rounds) && rounds > 0)) fail(`--rounds is ${values.rounds}: give a whole number from 1 on`);
if (folders.length === 0) fail("give folders of a model: node measure.mjs PORTABLE NATIVE");
if (values.gguf && !values.browser) fail("llama.cpp's package runs in a browser alone: give --browser, too");
folders.forEach(manifestOf);
const require = createRequire(path.resolve(values.packages, "package.json"));
const packaged = (name) => import(pathToFileURL(require.resolve(name)).href);

async function inNode() {
  const ort = (await packaged("onnxruntime-web")).default;
  ort.env.wasm.numThreads = 1;
  const fetchModule = (name) => readFileSync(fileURLToPath(new URL(`native/${name}`, import.meta.url)));
  const engines = [];
  for (const folder of folders) {
    const read = (name) => readFileSync(path.join(folder, name));
    for await (const engine of enginesOf({ read, fetchModule, ort })) engines.push(engine);
  }
  return measured(engines, rounds);
}

/** The same in a page of its own, whose modules are those of this folder. */
async function inBrowser() {
  const { chromium } = (await packaged("playwright-core")).default;
  const others = {};
  if (values.gguf) {
    others["/gguf/"] = path.dirname(values.gguf);
    others["/lib/wllama/"] = path.join(values.packages, "node_modules/@wllama/wllama/esm");
  }
  const server = pageServer(folders, { packages: values.packages, others });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const browser = await chromium.launch({ executablePath: values.browser, args: ["--no-sandbox"] });
  try {
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${server.address().port}/page.css`); // any file: modules are imported beside it
    const places = folders.map((folder) => (manifestOf(folder).target === "native" ? "/native/" : "/model/"));
    const found = await page.evaluate(measuredHere, { rounds, places, gguf: values.gguf && path.basename(values.gguf) });
    process.stdout.write(`Chromium ${browser.version()}\n`);
    return found;
  } finally {
    await browser.close();
    server.close();
  }
}

/** Runs in the page. */
async function measuredHere({ rounds, places, gguf }) {
  const { enginesOf, LlamaCpp } = await import("/javascript/engines.mjs");
  const { measured } = await import("/javascript/speed.mjs");
  const ort = await import("/lib/ort/ort.wasm.min.mjs");
  Object.assign(ort.env.wasm, { wasmPaths: "/lib/ort/", numThreads: 1 });
  const fetched = async (url) => {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`there is no ${url}`);
    return response;
  };
  const bytes = async (url) => new Uint8Array(await (await fetched(url)).arrayBuffer());
  const fetchModule = (name) => bytes(`/javascript/native/${name}`);
  const engines = [];
  for (const place of places) {
    for await (const engine of enginesOf({ read: (name) => bytes(place + name), fetchModule, ort })) engines.push(engine);
  }
  if (gguf) {
    const { Wllama } = await import("/lib/wllama/index.min.js");
    const file = await (await fetched(`/gguf/${gguf}`)).blob();
    const wasm = new URL("/lib/wllama/wasm/wllama.wasm", location.href).href;
    const doge = await LlamaCpp.load({ Wllama, wasm, file, maxLength: engines[0].doge.maxLength });
    engines.push({ name: `wllama ${gguf}`, doge });
  }
  return measured(engines, rounds);
}

process.stdout.write(summary(await orFail(values.browser ? inBrowser : inNode, "browser")));
