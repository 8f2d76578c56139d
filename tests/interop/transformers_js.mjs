// Greedy answers of a portable folder by transformers.js: `node transformers_js.mjs PARENT NAME TOKENS TEXT DTYPE...`, as
// JSON. Run it where @huggingface/transformers is installed.
import { readFileSync } from "node:fs";
import { env, pipeline } from "@huggingface/transformers";

const [parent, name, tokens, text, ...dtypes] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = parent;
// The one line that a caller needs as long as transformers.js does not know the model type.
const config = { ...JSON.parse(readFileSync(`${parent}/${name}/config.json`)), model_type: "llama" };
const answers = {};
for (const dtype of dtypes) {
  const pipe = await pipeline("text-generation", name, { config, dtype, session_options: { logSeverityLevel: 3 } });
  const options = { max_new_tokens: Number(tokens), do_sample: false, return_full_text: false };
  const plain = await pipe(text, options);
  const chat = await pipe([{ role: "user", content: text }], options);
  answers[dtype] = { plain: plain[0].generated_text, chat: chat[0].generated_text.at(-1)?.content ?? chat[0].generated_text };
  await pipe.dispose();
}
process.stdout.write(JSON.stringify(answers) + "\n");
