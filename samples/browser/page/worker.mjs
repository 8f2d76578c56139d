// The model's thread: loads an exported folder, and answers conversations token by token.
import { Template } from "./lib/jinja/index.js";
import { Tokenizer } from "./lib/tokenizers/tokenizers.min.mjs";
import { NativeDoge } from "./javascript/native.mjs";
import { Texts } from "./javascript/text.mjs";
import { bytesOf, jsonOf } from "./download.mjs";

/**
 * Precisions by engine, best first. The native decoder is fastest in few bits, and int8 answers almost as float32 does. A GPU
 * computes in 16 bits where it can. onnxruntime's WebAssembly computes fp16 graphs in float32: half the download of fp32 at
 * its speed; its 8- and 4-bit kernels are several times slower than both. Weights expanded as the graph is loaded have the speed
 * of fp32, too: int8, if it was exported so, is a quarter of its download.
 */
const PREFERRED = {
  native: ["int8", "int4", "fp32"],
  webgpu: ["fp16", "q4f16", "fp32"],
  wasm: ["fp16", "fp32", "int8", "int4"],
};

let doge, texts, options, stopping;
const post = (type, data = {}) => self.postMessage({ type, ...data });
const progress = (loaded, total) => post("loading", { loaded, total });

async function load({ native, model, engine, device, precision, ...settings }) {
  if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly: take a newer one.");
  options = { maxNewTokens: Number(settings.maxNewTokens ?? 256), temperature: Number(settings.temperature ?? 0) };
  const wanted = engine !== "onnxruntime" && device !== "webgpu"; // else another engine is asked for
  const manifest = wanted ? await jsonOf(native, "doge_export.json").catch(() => null) : null;
  let trouble = "";
  if (manifest) {
    try {
      return post("ready", { about: `Ready: ${await loadNative(native, manifest, precision)}.` });
    } catch (error) {
      trouble = error.message;
    }
  }
  let portable;
  try {
    portable = await jsonOf(model, "doge_export.json");
  } catch (error) {
    throw trouble ? new Error(trouble) : error;
  }
  const about = await loadPortable(model, portable, { device, precision });
  post("ready", { about: `Ready: ${about}.${trouble && ` (The native decoder did not start: ${trouble})`}` });
}

/** Returns name and entry of the first graph in one of these precisions. */
function graphOf(manifest, precisions) {
  const graphs = Object.entries(manifest.graphs);
  const found = precisions.map((name) => graphs.find(([, graph]) => graph.precision === name)).find(Boolean);
  if (found) return found;
  throw new Error(`The folder has no ${precisions.join(" or ")} graph: export it with --precision ${precisions[0]}.`);
}

async function loadTexts(folder, manifest) {
  const names = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];
  const listed = names.map((name) => (name in manifest.files ? jsonOf(folder, name, manifest) : undefined));
  const [tokenizer, config, generation] = await Promise.all(listed);
  if (!tokenizer) throw new Error("The folder has no tokenizer.json: export a checkpoint that has one.");
  const file = "chat_template.jinja";
  const source = file in manifest.files ? await bytesOf(folder, file, manifest) : undefined;
  const chatTemplate = source && new TextDecoder().decode(source);
  texts = new Texts({ Tokenizer, Template }, { tokenizer, config, generation, chatTemplate });
}

async function loadNative(folder, manifest, precision) {
  const [file, graph] = graphOf(manifest, precision ? [precision] : PREFERRED.native);
  await loadTexts(folder, manifest);
  const fetchModule = async (name) => {
    const response = await fetch(new URL(`javascript/native/${name}`, self.location.href)).catch(() => null);
    if (!response) throw new Error(`${name} cannot be reached: connect to the network, and reload the page`);
    if (!response.ok) throw new Error(`${name} is not there: doge-export plugin build --cpu --target wasm makes it`);
    return response.arrayBuffer();
  };
  const weights = await bytesOf(folder, `${file}_data`, manifest, progress);
  doge = await NativeDoge.load({ manifest, graph, weights, fetchModule });
  const simd = doge.instructionSet === "wasmrelaxed" ? "relaxed SIMD" : "SIMD";
  return `${graph.precision} on the CPU, native decoder with ${simd}`;
}

const gpuAdapter = () => navigator.gpu?.requestAdapter().catch(() => null);

async function loadPortable(folder, manifest, { device, precision }) {
  if (manifest.target !== "portable") {
    throw new Error(`The folder is for ${manifest.target}: export it with --target portable or native.`);
  }
  const gpu = await gpuAdapter();
  const half = gpu?.features.has("shader-f16") ?? false;
  device ??= half ? "webgpu" : "wasm";
  if (!(device in PREFERRED) || device === "native") throw new Error(`There is no device ${device}: take wasm or webgpu.`);
  if (device === "webgpu" && !gpu) throw new Error("This browser has no WebGPU here: leave device=webgpu out of the address.");
  const isSmall = ({ precision, quantization }) => precision === "int8" && quantization?.expanded;
  const small = device === "wasm" && Object.values(manifest.graphs).some(isSmall) ? ["int8"] : [];
  const best = [...small, ...PREFERRED[device].filter((name) => !name.endsWith("16") || half || device === "wasm")];
  const [file, graph] = graphOf(manifest, precision ? [precision] : best);
  const { Doge } = await import("./javascript/doge.mjs");
  const ort = await import(device === "webgpu" ? "./lib/ort/ort.webgpu.min.mjs" : "./lib/ort/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("lib/ort/", self.location.href).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.max(1, Math.min(4, navigator.hardwareConcurrency >> 1)) : 1;
  ort.env.logLevel = "error";
  await loadTexts(folder, manifest);
  const weights = await bytesOf(folder, file, manifest, progress);
  const session = await ort.InferenceSession.create(weights, { executionProviders: [device] });
  doge = new Doge(ort, session, manifest);
  const threads = device === "wasm" ? `, ${ort.env.wasm.numThreads} thread${ort.env.wasm.numThreads > 1 ? "s" : ""}` : "";
  return `${graph.precision} on ${device === "wasm" ? "the CPU" : "the GPU"}${threads}`;
}

/** Lets messages in. A timer would wait for 4 ms, the time of several tokens. */
const breath = () =>
  new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = resolve;
    port2.postMessage(null);
  });

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
      await breath(); // lets "stop" in
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
    const isMemory = error instanceof WebAssembly.RuntimeError;
    post("failed", { text: isMemory ? "The memory has run out: close other pages, and reload this one." : error.message || String(error) });
  }
};
