// What the programs of these samples share: options, and mistakes told in a line.
import { readFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";

/** Ends the program by a mistake of its user. */
export function fail(message) {
  process.stderr.write(`error: ${message}\n`);
  process.exit(2);
}

/** Says in a line why a folder, a package or a module could not be used; packages are those of a sample. */
export function reasonOf(error, sample = "node") {
  const [line] = String(error.message ?? error).split("\n");
  if (error.code === "ENOENT") {
    const hint = ": doge-export plugin build --cpu --target wasm --output samples/javascript/native";
    return `there is no ${error.path}${error.path?.endsWith(".wasm") ? hint : ""}`;
  }
  if (/MODULE_NOT_FOUND$/.test(error.code)) return `${line}: npm install --prefix samples/${sample}`;
  return error instanceof WebAssembly.RuntimeError ? `the memory has run out (${line})` : line;
}

/** Returns what work returns; its trouble ends the program. */
export async function orFail(work, sample) {
  try {
    return await work();
  } catch (error) {
    return fail(reasonOf(error, sample));
  }
}

/** Returns the options and the other arguments of the command line. */
export function parsed(options) {
  try {
    return parseArgs({ allowPositionals: true, options });
  } catch (error) {
    return fail(error.message.split("\n")[0]);
  }
}

/** Returns the manifest of a folder of target portable or native. */
export function manifestOf(folder) {
  let manifest;
  try {
    manifest = JSON.parse(readFileSync(path.join(folder, "doge_export.json"), "utf8"));
    Object.entries(manifest.graphs);
  } catch (error) {
    fail(`${folder} is no exported folder (${error.code ?? error.message}): doge-export onnx MODEL FOLDER --target portable`);
  }
  const { target } = manifest;
  if (target !== "portable" && target !== "native") fail(`${folder} is for ${target}: export it with --target portable or native`);
  return manifest;
}
