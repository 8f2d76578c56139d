// The engines of a page over one model, to be measured. The same in Node and in a page.
import { Doge } from "./doge.mjs";
import { NativeDoge } from "./native.mjs";

/**
 * Yields {name, doge}, on one thread each, of a folder of target native or portable in each of its precisions.
 *
 * @param read        a function that returns the bytes of a file of the folder
 * @param fetchModule see NativeDoge.load
 * @param ort         the module of onnxruntime-web
 */
export async function* enginesOf({ read, fetchModule, ort }) {
  const manifest = JSON.parse(new TextDecoder().decode(await read("doge_export.json")));
  for (const [file, graph] of Object.entries(manifest.graphs)) {
    if (manifest.target !== "native") {
      const session = await ort.InferenceSession.create(await read(file), { executionProviders: ["wasm"] });
      yield { name: `onnxruntime-web ${graph.precision}`, doge: new Doge(ort, session, manifest) };
      continue;
    }
    const weights = await read(`${file}_data`);
    for (const relaxed of [false, true]) {
      const doge = await NativeDoge.load({ manifest, graph, weights, fetchModule, relaxed });
      if (relaxed && doge.instructionSet === "wasm") continue;
      yield { name: `native ${graph.precision} ${relaxed ? "relaxed SIMD" : "SIMD128"}`, doge };
    }
  }
}

/** llama.cpp in a page, by the package @wllama/wllama. It tells its own times, without those of messages to its thread. */
export class LlamaCpp {
  /**
   * @param Wllama the class
   * @param wasm   the address of wllama.wasm
   * @param file   a Blob of a GGUF file with a tokenizer, as samples/benchmark/llama_cpp_model.py writes it
   */
  static async load({ Wllama, wasm, file, maxLength }) {
    const logger = { debug() {}, log() {}, warn() {}, error() {} };
    const wllama = new Wllama({ default: wasm }, { suppressNativeLog: true, logger });
    await wllama.loadModel([file], { n_ctx: maxLength, n_threads: 1, n_gpu_layers: 0 });
    if (wllama.getNumThreads() !== 1) throw new Error(`wllama takes ${wllama.getNumThreads()} threads, 1 wanted`);
    const doge = Object.assign(new LlamaCpp(), { wllama, maxLength });
    const lengths = [];
    for (const words of [8, 16]) lengths.push((await doge.#complete(words, 1)).prompt_n);
    return Object.assign(doge, { perWord: (lengths[1] - lengths[0]) / 8, others: 2 * lengths[0] - lengths[1] });
  }

  /** Tokens a second of reading as many tokens as `prompt` has, and of `count` tokens behind it. */
  async run(prompt, count) {
    const words = Math.max(1, Math.round((prompt.length - this.others) / this.perWord));
    const timings = await this.#complete(words, count + 1); // the first token is the prompt's
    return { reading: timings.prompt_per_second, answering: ((timings.predicted_n - 1) / timings.predicted_ms) * 1000 };
  }

  /** Texts alone are taken, no ids. */
  async #complete(words, count) {
    const settings = { max_tokens: count, temperature: 0, samplers: ["top_k"], top_k: 1, ignore_eos: true, cache_prompt: false };
    return (await this.wllama.createCompletion({ prompt: " dog".repeat(words), ...settings })).timings;
  }
}
