// The model's thread: loads a portable folder, and answers conversations token by token.
import { Template } from "./lib/jinja/index.js";
import { Tokenizer } from "./lib/tokenizers/tokenizers.min.mjs";
import { Doge } from "./javascript/doge.mjs";
import { Texts } from "./javascript/text.mjs";
import { bytesOf, jsonOf } from "./download.mjs";

/**
 * Precisions by device, best first. A GPU computes in 16 bits where it can. WebAssembly computes fp16 graphs in float32:
 * half the download of fp32 at its speed; its 8- and 4-bit kernels are several times slower than both.
 */
const PREFERRED = { webgpu: ["fp16", "fp32"], wasm: ["fp16", "fp32", "int8", "int4"] };

let doge, texts, options, stopping;
const post = (type, data = {}) => self.postMessage({ type, ...data });

async function hasHalfFloats() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter?.features.has("shader-f16") ?? false;
}

async function load({ model, device, precision, ...settings }) {
  if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly: take a newer one.");
  const manifest = await jsonOf(model, "doge_export.json");
  if (manifest.target !== "portable") {
    throw new Error(`The folder is for ${manifest.target}: export it with --target portable.`);
  }
  const half = await hasHalfFloats();
  device ??= half ? "webgpu" : "wasm";
  const graphs = Object.entries(manifest.graphs);
  const wanted = precision ? [precision] : PREFERRED[device].filter((name) => name !== "fp16" || half || device === "wasm");
  const of = (name) => graphs.find(([, graph]) => graph.precision === name);
  const [file, graph] = wanted.map(of).find(Boolean) ?? [];
  if (!file) throw new Error(`The folder has no ${wanted.join(" or ")} graph: export it with --precision ${wanted[0]}.`);

  const ort = await import(device === "webgpu" ? "./lib/ort/ort.webgpu.min.mjs" : "./lib/ort/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("lib/ort/", self.location.href).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.max(1, Math.min(4, navigator.hardwareConcurrency >> 1)) : 1;
  ort.env.logLevel = "error";
  const names = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];
  const [tokenizer, config, generation] = await Promise.all(names.map((name) => jsonOf(model, name, manifest)));
  const weights = await bytesOf(model, file, manifest, (loaded, total) => post("loading", { loaded, total }));
  const session = await ort.InferenceSession.create(weights, { executionProviders: [device] });
  doge = new Doge(ort, session, manifest);
  texts = new Texts({ Tokenizer, Template }, { tokenizer, config, generation });
  options = { maxNewTokens: Number(settings.maxNewTokens ?? 256), temperature: Number(settings.temperature ?? 0) };
  const threads = device === "wasm" ? `, ${ort.env.wasm.numThreads} thread${ort.env.wasm.numThreads > 1 ? "s" : ""}` : "";
  post("ready", { about: `Ready: ${graph.precision} on ${device === "wasm" ? "the CPU" : "the GPU"}${threads}.` });
}

async function answer({ messages }) {
  const ids = texts.encodeChat(messages);
  const stream = texts.stream();
  stopping = new AbortController();
  const began = performance.now();
  let count = 0;
  try {
    for await (const id of doge.generate(ids, { ...options, eos: texts.eos, signal: stopping.signal })) {
      count++;
      const text = stream.push(id);
      if (text) post("piece", { text });
      await new Promise((resolve) => setTimeout(resolve)); // lets "stop" in
    }
  } catch (error) {
    if (error instanceof RangeError) return post("refused", { text: `Too long: ${error.message}.` });
    throw error;
  }
  const seconds = (performance.now() - began) / 1000;
  post("done", { about: `${count} tokens, ${(count / seconds).toFixed(0)} a second.` });
}

const handlers = { load, answer, stop: () => stopping?.abort() };
self.onmessage = async ({ data }) => {
  try {
    await handlers[data.type](data);
  } catch (error) {
    post("failed", { text: error.message || String(error) });
  }
};
