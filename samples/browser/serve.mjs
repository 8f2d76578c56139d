// node serve.mjs FOLDER [FOLDER] [--port N] [--no-isolation]: the page, its libraries and the folders of a model as static
// files: one of target native, of target portable, or both.
//
// Any static server will do. This one sends the two headers that let a page use threads; without them it uses one.
import { createReadStream, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { createGzip } from "node:zlib";
import { fail, parsed } from "../javascript/command.mjs";

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

const COMPRESSED = 4e6; // onnxruntime's module has more, which would be waited for at every visit

/** Returns where a folder is served: what the native decoder reads has a place of its own. */
function placeOf(folder) {
  const { target } = JSON.parse(readFileSync(path.join(folder, "doge_export.json"), "utf8"));
  return target === "native" ? "/native/" : "/model/";
}

/** Returns the path that a request asks for; null where its address is malformed. */
function pathOf(request) {
  try {
    return decodeURIComponent(new URL(request.url, "http://here").pathname);
  } catch {
    return null;
  }
}

/**
 * Returns an http.Server of the page with a model in `folders`.
 *
 * @param packages the folder whose node_modules has the libraries
 * @param others   more folders, by the beginning of their addresses
 */
export function pageServer(folders, { isolation = true, packages = HERE, others = {} } = {}) {
  const places = {
    ...Object.fromEntries([folders].flat().map((folder) => [placeOf(folder), folder])),
    "/lib/ort/": path.join(packages, "node_modules/onnxruntime-web/dist"),
    "/lib/tokenizers/": path.join(packages, "node_modules/@huggingface/tokenizers/dist"),
    "/lib/jinja/": path.join(packages, "node_modules/@huggingface/jinja/dist"),
    "/javascript/": path.join(HERE, "../javascript"),
    ...others,
    "/": path.join(HERE, "page"),
  };
  return createServer((request, response) => {
    const url = pathOf(request);
    if (url === null) return response.writeHead(400).end("the address is malformed\n");
    const place = Object.keys(places).find((start) => url.startsWith(start));
    const root = path.resolve(places[place]);
    const file = path.resolve(root, "." + path.posix.normalize("/" + (url.slice(place.length) || "index.html")));
    const size = file.startsWith(root + path.sep) && statSync(file, { throwIfNoEntry: false });
    const headers = isolation ? { ...ISOLATION } : {};
    if (!size || !size.isFile()) return response.writeHead(404, headers).end("there is no such file\n");
    const type = TYPES[path.extname(file)];
    headers["Content-Type"] = type ?? "application/octet-stream";
    const isSmaller = type && size.size < COMPRESSED && /\bgzip\b/.test(request.headers["accept-encoding"]);
    if (isSmaller) headers["Content-Encoding"] = "gzip"; // weights do not become smaller by it
    else headers["Content-Length"] = size.size;
    response.writeHead(200, headers);
    if (request.method === "HEAD") return response.end();
    const content = createReadStream(file);
    return (isSmaller ? content.pipe(createGzip()) : content).pipe(response);
  });
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const options = { port: { type: "string", default: "8000" }, "no-isolation": { type: "boolean", default: false } };
  const { values, positionals: folders } = parsed(options);
  if (folders.length === 0) fail("give the folder of a model: node serve.mjs FOLDER");
  let server;
  try {
    server = pageServer(folders, { isolation: !values["no-isolation"] });
  } catch (error) {
    fail(`${folders.join(" or ")} is no exported folder (${error.code ?? error.message})`);
  }
  server.on("error", (error) => fail(`port ${values.port} cannot be served (${error.code}): choose another by --port`));
  try {
    server.listen(Number(values.port), "127.0.0.1", () => {
      process.stdout.write(`http://127.0.0.1:${server.address().port}/\n`);
    });
  } catch (error) {
    fail(error.message); // no number of a port
  }
}
