// node measure.mjs PORTABLE NATIVE [--rounds N] [--packages DIR]: tokens a second of the engines that a page has, in turns, on
// one thread: the native decoder and onnxruntime-web. PORTABLE and NATIVE are exports of one model. A Node before 22 has relaxed
// SIMD by --experimental-wasm-relaxed-simd alone.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { parseArgs } from "node:util";
import { fileURLToPath, pathToFileURL } from "node:url";
import { Doge } from "./doge.mjs";
import { NativeDoge } from "./native.mjs";
import { measured, summary } from "./speed.mjs";

const packages = fileURLToPath(new URL("../browser", import.meta.url));
const options = { rounds: { type: "string", default: "5" }, packages: { type: "string", default: packages } };
const { values, positionals } = parseArgs({ allowPositionals: true, options });
const [portable, native] = positionals;
const manifestOf = (folder) => JSON.parse(readFileSync(path.join(folder, "doge_export.json"), "utf8"));
const require = createRequire(path.join(values.packages, "package.json"));
const ort = (await import(pathToFileURL(require.resolve("onnxruntime-web")).href)).default;
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const engines = [];
const fetchModule = (name) => readFileSync(new URL(`native/${name}`, import.meta.url));
let manifest = manifestOf(native);
for (const [file, graph] of Object.entries(manifest.graphs)) {
  const weights = readFileSync(path.join(native, `${file}_data`));
  for (const relaxed of [false, true]) {
    const doge = await NativeDoge.load({ manifest, graph, weights, fetchModule, relaxed });
    if (relaxed && doge.instructionSet === "wasm") continue;
    engines.push({ name: `native ${graph.precision} ${doge.instructionSet}`, doge });
  }
}
manifest = manifestOf(portable);
for (const [file, graph] of Object.entries(manifest.graphs)) {
  const session = await ort.InferenceSession.create(readFileSync(path.join(portable, file)), { executionProviders: ["wasm"] });
  engines.push({ name: `onnxruntime-web ${graph.precision}`, doge: new Doge(ort, session, manifest) });
}
process.stdout.write(summary(await measured(engines, Number(values.rounds))));
