// node serve.mjs FOLDER [PORT] [--no-isolation]: the page, its libraries and the folder of a model as static files.
//
// Any static server will do. This one sends the two headers that let a page use threads; without them it uses one.
import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };
const TYPES = {
  ".css": "text/css",
  ".html": "text/html",
  ".js": "text/javascript",
  ".json": "application/json",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};

/** Returns an http.Server of the page with the model in `folder`. */
export function pageServer(folder, { isolation = true } = {}) {
  const places = {
    "/model/": folder,
    "/lib/ort/": path.join(HERE, "node_modules/onnxruntime-web/dist"),
    "/lib/tokenizers/": path.join(HERE, "node_modules/@huggingface/tokenizers/dist"),
    "/lib/jinja/": path.join(HERE, "node_modules/@huggingface/jinja/dist"),
    "/javascript/": path.join(HERE, "../javascript"),
    "/": path.join(HERE, "page"),
  };
  return createServer((request, response) => {
    const url = decodeURIComponent(new URL(request.url, "http://here").pathname);
    const place = Object.keys(places).find((start) => url.startsWith(start));
    const root = path.resolve(places[place]);
    const file = path.resolve(root, "." + path.posix.normalize("/" + (url.slice(place.length) || "index.html")));
    const size = file.startsWith(root + path.sep) && statSync(file, { throwIfNoEntry: false });
    const headers = isolation ? ISOLATION : {};
    if (!size || !size.isFile()) return response.writeHead(404, headers).end("there is no such file\n");
    const type = TYPES[path.extname(file)] ?? "application/octet-stream";
    response.writeHead(200, { ...headers, "Content-Type": type, "Content-Length": size.size });
    return request.method === "HEAD" ? response.end() : createReadStream(file).pipe(response);
  });
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [folder, port = "8000"] = process.argv.slice(2).filter((word) => !word.startsWith("--"));
  if (folder === undefined) {
    process.stderr.write("error: give the folder of a model: node serve.mjs FOLDER [PORT]\n");
    process.exit(2);
  }
  const server = pageServer(folder, { isolation: !process.argv.includes("--no-isolation") });
  server.listen(Number(port), "127.0.0.1", () => {
    process.stdout.write(`http://127.0.0.1:${server.address().port}/\n`);
  });
}
