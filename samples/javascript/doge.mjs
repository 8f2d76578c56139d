// A portable Doge graph in onnxruntime's JavaScript: prompts in, token ids out, with a key/value cache. The same in Node
// (onnxruntime-node) and in a page (onnxruntime-web).
import { Decoder } from "./decoder.mjs";

export class Doge extends Decoder {
  /**
   * @param ort      the module of onnxruntime, for its class Tensor
   * @param session  an InferenceSession of onnx/model*.onnx
   * @param manifest the content of doge_export.json
   */
  constructor(ort, session, manifest) {
    super(manifest);
    Object.assign(this, { ort, session });
    this.empty = {};
    for (const { name, type, shape } of session.inputMetadata) {
      if (!name.startsWith("past_key_values.")) continue;
      const Numbers = type === "float16" ? (globalThis.Float16Array ?? Uint16Array) : Float32Array;
      this.empty[name] = new ort.Tensor(type, new Numbers(0), [1, shape[1], 0, shape[3]]);
    }
    this.begin();
  }

  /** Begins another sequence. */
  begin() {
    this.cache = this.empty;
    this.length = 0;
    return 0;
  }

  /** Reads ids behind those before; returns the logits of the last one. */
  async step(ids) {
    const past = this.length;
    const total = past + ids.length;
    const outputs = await this.session.run({
      input_ids: this.#int64(ids),
      attention_mask: this.#int64(new Array(total).fill(1)),
      position_ids: this.#int64(ids.map((_, index) => past + index)),
      ...this.cache,
    });
    if (this.cache !== this.empty) Object.values(this.cache).forEach((tensor) => tensor.dispose());
    const present = (name) => outputs[name.replace("past_key_values", "present")];
    this.cache = Object.fromEntries(Object.keys(this.empty).map((name) => [name, present(name)]));
    this.length = total;
    return outputs.logits.data; // of the last token alone, see num_logits_to_keep
  }

  #int64(numbers) {
    return new this.ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
  }
}
