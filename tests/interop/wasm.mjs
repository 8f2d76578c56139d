// node wasm.mjs MODULES FOLDER REQUEST: answers by the native decoder in WebAssembly, as JSON. REQUEST: {precision, prompts,
// maxNewTokens, temperature, topK, topP, draws: how often the first token is drawn, cut: bytes of the weights that are there}.
import { readFileSync } from "node:fs";
import path from "node:path";
import { choose } from "../../samples/javascript/decoder.mjs";
import { NativeDoge } from "../../samples/javascript/native.mjs";

const [modules, folder, text] = process.argv.slice(2);
const { precision, prompts = [], draws = 0, cut, ...settings } = JSON.parse(text);
const read = (name) => JSON.parse(readFileSync(path.join(folder, name), "utf8"));
const manifest = read("doge_export.json");
const options = { ...settings, eos: [read("generation_config.json").eos_token_id].flat() };
const [file, graph] = Object.entries(manifest.graphs).find(([, { precision: name }]) => name === precision);
const weights = readFileSync(path.join(folder, `${file}_data`)).subarray(0, cut);
const fetchModule = (name) => readFileSync(path.join(modules, name));
const result = { answers: [] };
try {
  const doge = await NativeDoge.load({ manifest, graph, weights, fetchModule });
  Object.assign(result, { instructionSet: doge.instructionSet, refused: doge.refused ?? null });
  for (const prompt of draws ? [] : prompts) {
    const answer = [];
    for await (const id of doge.generate(prompt, options)) answer.push(id);
    result.answers.push(answer);
  }
  if (draws) {
    doge.begin(prompts[0]);
    const logits = Float32Array.from(await doge.step(prompts[0]));
    result.drawn = {};
    for (let draw = 0; draw < draws; draw++) {
      const id = choose(logits, options);
      result.drawn[id] = (result.drawn[id] ?? 0) + 1 / draws;
    }
    // The definition, by sorting everything.
    let best = Array.from(logits, (logit, id) => [Math.exp(logit / options.temperature), id]).sort((a, b) => b[0] - a[0]);
    best = best.slice(0, options.topK);
    const sum = best.reduce((total, [weight]) => total + weight, 0);
    let mass = 0;
    best = best.filter(([weight]) => (mass += weight) - weight < options.topP * sum);
    const kept = best.reduce((total, [weight]) => total + weight, 0);
    result.shares = Object.fromEntries(best.map(([weight, id]) => [id, weight / kept]));
  }
} catch (error) {
  result.error = error.message;
}
process.stdout.write(JSON.stringify(result));
