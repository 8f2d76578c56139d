// A portable Doge graph in onnxruntime's JavaScript: prompts in, token ids out, with a key/value cache. The same in Node
// (onnxruntime-node) and in a page (onnxruntime-web).

/** The longest piece of a prompt that one run reads: it bounds the memory of attention. */
const PIECE = 256;

export class Doge {
  /**
   * @param ort      the module of onnxruntime, for its class Tensor
   * @param session  an InferenceSession of onnx/model*.onnx
   * @param manifest the content of doge_export.json
   */
  constructor(ort, session, manifest) {
    Object.assign(this, { ort, session, maxLength: manifest.max_length, chunkableLength: manifest.chunkable_length });
    this.empty = {};
    for (const { name, type, shape } of session.inputMetadata) {
      if (!name.startsWith("past_key_values.")) continue;
      const Numbers = type === "float16" ? (globalThis.Float16Array ?? Uint16Array) : Float32Array;
      this.empty[name] = new ort.Tensor(type, new Numbers(0), [1, shape[1], 0, shape[3]]);
    }
  }

  /**
   * Yields the token ids of an answer.
   *
   * @param prompt  ids of the prompt
   * @param options maxNewTokens, eos (ids that end the answer), temperature (0: always the best token), topK, topP,
   *                random (a function like Math.random), signal (an AbortSignal that ends the answer)
   */
  async *generate(prompt, options = {}) {
    const { maxNewTokens = 256, eos = [], random = Math.random, signal } = options;
    if (prompt.length >= this.maxLength) {
      throw new RangeError(`the prompt has ${prompt.length} tokens, and this model holds ${this.maxLength}: shorten it`);
    }
    const last = Math.min(prompt.length + maxNewTokens, this.maxLength);
    let cache = this.empty;
    let logits;
    const size = prompt.length <= this.chunkableLength ? PIECE : prompt.length; // else pieces would change the answer
    for (let start = 0; start < prompt.length; start += size) {
      if (signal?.aborted) return;
      ({ logits, cache } = await this.#run(prompt.slice(start, start + size), start, cache));
    }
    for (let length = prompt.length; ; length++) {
      const token = choose(logits, options, random);
      yield token;
      if (eos.includes(token) || length + 1 >= last || signal?.aborted) return;
      ({ logits, cache } = await this.#run([token], length, cache));
    }
  }

  /** Reads ids behind `past` cached tokens; returns the last one's logits, and the longer cache. */
  async #run(ids, past, cache) {
    const total = past + ids.length;
    const outputs = await this.session.run({
      input_ids: this.#int64(ids),
      attention_mask: this.#int64(new Array(total).fill(1)),
      position_ids: this.#int64(ids.map((_, index) => past + index)),
      ...cache,
    });
    if (cache !== this.empty) Object.values(cache).forEach((tensor) => tensor.dispose());
    const present = (name) => outputs[name.replace("past_key_values", "present")];
    return {
      logits: outputs.logits.data, // of the last token alone, see num_logits_to_keep
      cache: Object.fromEntries(Object.keys(this.empty).map((name) => [name, present(name)])),
    };
  }

  #int64(numbers) {
    return new this.ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
  }
}

/** Chooses the next token as `doge-export generate` does: temperature, then the topK best, then topP of what is left. */
export function choose(logits, { temperature = 0, topK = 0, topP = 1 } = {}, random = Math.random) {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id] > logits[best]) best = id;
  if (!Number.isFinite(logits[best])) throw new Error("the model gives logits that are not finite: its files are damaged");
  if (!(temperature > 0)) return best;
  const weight = (id) => Math.exp((logits[id] - logits[best]) / temperature);
  let ids = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  if (topK > 0) ids = ids.filter((id, place) => place < topK || logits[id] === logits[ids[topK - 1]]);
  const weights = ids.map(weight);
  const sum = weights.reduce((a, b) => a + b, 0);
  let count = 0;
  for (let mass = 0; count < ids.length && mass < topP * sum; count++) mass += weights[count];
  let point = random() * weights.slice(0, count).reduce((a, b) => a + b, 0);
  for (let place = 0; place < count; place++) if ((point -= weights[place]) < 0) return ids[place];
  return ids[count - 1];
}
