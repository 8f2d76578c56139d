// The loop of an answer, and how its tokens are chosen; the same for every engine.

/** The longest piece of a prompt that one run reads: it bounds the memory of attention. */
const PIECE = 256;

/**
 * An engine has two methods more:
 *
 *   begin(prompt)  begins another sequence; returns how many tokens of the prompt are read already
 *   step(ids, {best})  reads ids; returns the logits of the last one, or may return the best token where that is all
 */
export class Decoder {
  /** @param manifest the content of doge_export.json */
  constructor(manifest) {
    Object.assign(this, { maxLength: manifest.max_length, chunkableLength: manifest.chunkable_length });
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
    if (prompt.length === 0) throw new RangeError("the prompt has no tokens: write something");
    if (prompt.length >= this.maxLength) {
      throw new RangeError(`the prompt has ${prompt.length} tokens, and this model holds ${this.maxLength}: shorten it`);
    }
    const last = Math.min(prompt.length + maxNewTokens, this.maxLength);
    const wanted = { best: !(options.temperature > 0) };
    const size = prompt.length <= this.chunkableLength ? PIECE : prompt.length; // else pieces would change the answer
    let found;
    for (let start = this.begin(prompt); start < prompt.length; start += size) {
      if (signal?.aborted) return;
      found = await this.step(prompt.slice(start, start + size), wanted);
    }
    for (let length = prompt.length; ; length++) {
      const token = typeof found === "number" ? found : choose(found, options, random);
      yield token;
      if (eos.includes(token) || length + 1 >= last || signal?.aborted) return;
      found = await this.step([token], wanted);
    }
  }
}

/** Chooses the next token as `doge-export generate` does: temperature, then the topK best, then topP of what is left. */
export function choose(logits, { temperature = 0, topK = 0, topP = 1 } = {}, random = Math.random) {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id] > logits[best]) best = id;
  if (!Number.isFinite(logits[best])) throw new Error("the model gives logits that are not finite: its files are damaged");
  if (!(temperature > 0)) return best;
  const weight = (id) => Math.exp((logits[id] - logits[best]) / temperature);
  const ids = likeliest(logits, topK);
  const weights = ids.map(weight);
  const sum = weights.reduce((a, b) => a + b, 0);
  let count = 0;
  for (let mass = 0; count < ids.length && mass < topP * sum; count++) mass += weights[count];
  let point = random() * weights.slice(0, count).reduce((a, b) => a + b, 0);
  for (let place = 0; place < count; place++) if ((point -= weights[place]) < 0) return ids[place];
  return ids[count - 1];
}

/** The ids of the topK highest logits, and of those equal to the last of them, best first; 0: of all. */
function likeliest(logits, topK) {
  const isAmong = topK > 0 && topK < logits.length;
  const least = isAmong ? Float32Array.from(logits).sort()[logits.length - topK] : -Infinity;
  const ids = [];
  for (let id = 0; id < logits.length; id++) if (logits[id] >= least) ids.push(id);
  return ids.sort((a, b) => logits[b] - logits[a] || a - b);
}
