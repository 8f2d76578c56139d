// node generate.mjs FOLDER PROMPT [--precision fp32|fp16|int8|int4] [--chat] [--max-new-tokens N] [--temperature T]
import { readFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import { Texts } from "../javascript/text.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    precision: { type: "string", default: "fp32" },
    chat: { type: "boolean", default: false },
    "max-new-tokens": { type: "string", default: "100" },
    temperature: { type: "string", default: "0" },
  },
});
const [folder, prompt] = positionals;
const fail = (message) => {
  process.stderr.write(`error: ${message}\n`);
  process.exit(2);
};
if (prompt === undefined) fail("give a folder and a prompt: node generate.mjs FOLDER PROMPT");
const read = (name) => JSON.parse(readFileSync(path.join(folder, name), "utf8"));

let manifest;
try {
  manifest = read("doge_export.json");
} catch (error) {
  fail(`${folder} is no exported folder (${error.code ?? error.message}): doge-export onnx MODEL FOLDER --target portable`);
}
const found = Object.entries(manifest.graphs).find(([, graph]) => graph.precision === values.precision);
const { target } = manifest;
if (target !== "portable" && target !== "native") fail(`${folder} is for ${target}: export it with --target portable or native`);
if (!found) fail(`${folder} has no ${values.precision} graph: export it with --precision ${values.precision}`);

/** Opens a graph by onnxruntime, or the weights of target native by the WebAssembly module. */
async function open([file, graph]) {
  if (target === "portable") {
    const { Doge } = await import("../javascript/doge.mjs");
    const ort = await import("onnxruntime-node");
    return new Doge(ort, await ort.InferenceSession.create(path.join(folder, file), { logSeverityLevel: 3 }), manifest);
  }
  const { NativeDoge } = await import("../javascript/native.mjs");
  const fetchModule = (name) => readFileSync(new URL(`../javascript/native/${name}`, import.meta.url));
  const weights = readFileSync(path.join(folder, `${file}_data`));
  return NativeDoge.load({ manifest, graph, weights, fetchModule });
}

let doge;
try {
  doge = await open(found);
} catch (error) {
  if (error.code !== "ENOENT") throw error;
  fail(`there is no ${error.path}: doge-export plugin build --cpu --target wasm --output samples/javascript/native`);
}
const texts = new Texts(
  { Tokenizer, Template },
  {
    tokenizer: read("tokenizer.json"),
    config: read("tokenizer_config.json"),
    generation: read("generation_config.json"),
    chatTemplate: "chat_template.jinja" in manifest.files ? readFileSync(path.join(folder, "chat_template.jinja"), "utf8") : undefined,
  },
);
const ids = values.chat ? texts.encodeChat([{ role: "user", content: prompt }]) : texts.encode(prompt);
const stream = texts.stream();
try {
  const options = { maxNewTokens: Number(values["max-new-tokens"]), temperature: Number(values.temperature) };
  for await (const id of doge.generate(ids, { ...options, eos: texts.eos })) process.stdout.write(stream.push(id));
} catch (error) {
  if (error instanceof RangeError) fail(error.message);
  throw error;
}
process.stdout.write("\n");
