// transformers_js.mjs in a page: `node transformers_js_page.mjs CHROMIUM PARENT NAME TOKENS TEXT DTYPE...`, as JSON. Run it where
// @huggingface/transformers and playwright-core are installed.
import { createReadStream, existsSync } from "node:fs";
import { createServer } from "node:http";
import path from "node:path";
import { chromium } from "playwright-core";

const [executablePath, parent, name, tokens, text, ...dtypes] = process.argv.slice(2);
const types = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".json": "application/json", ".wasm": "application/wasm" };
const places = { "/models/": parent, "/lib/": "node_modules/@huggingface/transformers/dist", "/ort/": "node_modules/onnxruntime-web/dist" };
const server = createServer((request, response) => {
  const url = decodeURIComponent(new URL(request.url, "http://here").pathname);
  if (url === "/") return response.writeHead(200, { "Content-Type": "text/html" }).end("<!doctype html><title>page</title>");
  const place = Object.keys(places).find((start) => url.startsWith(start));
  const file = place && path.join(places[place], path.posix.normalize("/" + url.slice(place.length)));
  if (!file || !existsSync(file)) return response.writeHead(404).end();
  response.writeHead(200, { "Content-Type": types[path.extname(file)] ?? "application/octet-stream" });
  createReadStream(file).pipe(response);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage();
page.on("console", (message) => message.type() === "error" && process.stderr.write(`${message.text()}\n`));
await page.goto(`http://127.0.0.1:${server.address().port}/`);
const answers = await page.evaluate(
  async ({ name, tokens, text, dtypes }) => {
    const { env, pipeline } = await import("/lib/transformers.min.js");
    env.allowRemoteModels = false;
    env.allowLocalModels = true;
    env.localModelPath = "/models/";
    env.backends.onnx.wasm.wasmPaths = "/ort/";
    env.backends.onnx.wasm.numThreads = 1;
    const config = { ...(await (await fetch(`/models/${name}/config.json`)).json()), model_type: "llama" };
    const answers = {};
    for (const dtype of dtypes) {
      const pipe = await pipeline("text-generation", name, { config, dtype, device: "wasm", session_options: { logSeverityLevel: 3 } });
      const options = { max_new_tokens: Number(tokens), do_sample: false, return_full_text: false };
      answers[dtype] = (await pipe(text, options))[0].generated_text;
      await pipe.dispose();
    }
    return answers;
  },
  { name, tokens, text, dtypes },
);
process.stdout.write(JSON.stringify(answers) + "\n");
await browser.close();
server.close();
