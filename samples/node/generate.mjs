// node generate.mjs FOLDER PROMPT [--precision fp32|fp16|int8|int4|q4f16] [--chat] [--max-new-tokens N] [--temperature T]
import { readFileSync } from "node:fs";
import path from "node:path";
import { fail, manifestOf, orFail, parsed, reasonOf } from "../javascript/command.mjs";
import { Texts } from "../javascript/text.mjs";

const options = {
  precision: { type: "string", default: "fp32" },
  chat: { type: "boolean", default: false },
  "max-new-tokens": { type: "string", default: "100" },
  temperature: { type: "string", default: "0" },
};
const { values, positionals } = parsed(options);
const [folder, prompt] = positionals;
if (prompt === undefined) fail("give a folder and a prompt: node generate.mjs FOLDER PROMPT");
const read = (name) => JSON.parse(readFileSync(path.join(folder, name), "utf8"));

const manifest = manifestOf(folder);
const { target } = manifest;
const found = Object.entries(manifest.graphs).find(([, graph]) => graph.precision === values.precision);
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

/** Returns the tokenizer of the folder, and its chat template. */
async function openTexts() {
  const { Template } = await import("@huggingface/jinja");
  const { Tokenizer } = await import("@huggingface/tokenizers");
  const chatTemplate = "chat_template.jinja" in manifest.files && readFileSync(path.join(folder, "chat_template.jinja"), "utf8");
  return new Texts(
    { Tokenizer, Template },
    {
      tokenizer: read("tokenizer.json"),
      config: read("tokenizer_config.json"),
      generation: read("generation_config.json"),
      chatTemplate: chatTemplate || undefined,
    },
  );
}

const doge = await orFail(() => open(found));
const texts = await orFail(openTexts);
const encode = () => (values.chat ? texts.encodeChat([{ role: "user", content: prompt }]) : texts.encode(prompt));
const ids = await orFail(encode);
const stream = texts.stream();
const settings = { maxNewTokens: Number(values["max-new-tokens"]), temperature: Number(values.temperature), eos: texts.eos };
try {
  for await (const id of doge.generate(ids, settings)) process.stdout.write(stream.push(id));
} catch (error) {
  if (error instanceof TypeError || error instanceof ReferenceError) throw error; // a bug here
  fail(reasonOf(error));
}
process.stdout.write("\n");
