// The native decoder of plugins/cpu in WebAssembly, over a folder of target native: prompts in, token ids out. The same in
// Node and in a page, on one thread.
import { Decoder } from "./decoder.mjs";

const INTERFACE = 3; // of plugins/cpu/include/doge/cpu.h, which names every function and number here
const INT8 = 8;
const FLOAT32 = 32;
const TOO_LONG = 4;
const MESSAGE_BYTES = 512;
const VOCAB_SIZE_AT = 64; // of doge_cpu_header, both in its config
const MAX_LENGTH_AT = 100;
const LEAST_IDS = 256; // a piece of a prompt
const MEGABYTE = 2 ** 20;
const ADDRESSES = 2 ** 32;

const aligned = (place) => Math.ceil(place / 64) * 64;

/** A function of relaxed SIMD: an engine that knows these instructions takes it. */
const RELAXED = new Uint8Array([
  ...[0, 97, 115, 109, 1, 0, 0, 0], // the format and its version
  ...[1, 5, 1, 96, 0, 1, 123], // a type: nothing to v128
  ...[3, 2, 1, 0], // a function of it
  ...[10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11], // i8x16.relaxed_swizzle of two splats
]);

export class NativeDoge extends Decoder {
  #wasm;
  #places;
  #capacity = 0;
  #isWhole = false;

  /**
   * Opens a weight file.
   *
   * @param manifest the content of doge_export.json, of target native
   * @param graph    its entry of the graph
   * @param weights  the bytes of the file beside the graph, onnx/model*.onnx_data
   * @param fetchModule a function that returns the bytes of a module, named doge_cpu.wasm or doge_cpu_relaxed.wasm
   * @param relaxed  whether relaxed SIMD may be taken; undefined: where it passes the test, and is faster here
   */
  static async load({ manifest, graph, weights, fetchModule, relaxed }) {
    const may = relaxed !== false && WebAssembly.validate(RELAXED);
    const bytes = await fetchModule(may ? "doge_cpu_relaxed.wasm" : "doge_cpu.wasm");
    const module = await WebAssembly.compile(bytes).catch(() => {
      throw new Error("the WebAssembly here has no SIMD, or the module is damaged: take a newer browser, or load it again");
    });
    const { exports: wasm } = await WebAssembly.instantiate(module);
    wasm._initialize?.();
    if (wasm.doge_cpu_interface() !== INTERFACE) {
      throw new Error("the WebAssembly module is of another version: doge-export plugin build --cpu --target wasm");
    }
    return new NativeDoge(wasm, { manifest, graph, weights, relaxed });
  }

  constructor(wasm, { manifest, graph, weights, relaxed }) {
    super(manifest);
    this.#wasm = wasm;
    const size = weights.length;
    const file = this.#memory(size);
    new Uint8Array(wasm.memory.buffer).set(weights, file);
    this.#places = { message: this.#memory(MESSAGE_BYTES), out: this.#memory(16), call: this.#memory(64) };
    // No weights are copied by this: every model reads the same file.
    const kind = graph.quantization?.cache === "int8" ? INT8 : FLOAT32;
    const open = (name) => this.#open(file, size, name, kind);
    const sets = this.#text(wasm.doge_cpu_usable_instruction_sets()).split(" ");
    const isExact = sets.includes("wasmrelaxed") && wasm.doge_cpu_wasm_self_test() === 1;
    this.refused = sets.includes("wasmrelaxed") && !isExact ? "relaxed SIMD computes wrongly here" : undefined;
    const trials = ["wasm", "wasmrelaxed"].filter((name) => name === "wasm" || isExact).map(open);
    this.vocabulary = this.#vocabularyOf(file, manifest);
    this.#places.logits = this.#memory(this.vocabulary * 4);
    this.milliseconds = {};
    if (trials.length > 1 && relaxed === undefined) {
      for (let round = 0; round < 3; round++) trials.forEach((trial) => this.#time(trial));
    }
    const cost = ({ name }) => this.milliseconds[name] ?? (name === "wasm" ? 1 : 0);
    trials.sort((a, b) => cost(a) - cost(b));
    trials.slice(1).forEach(({ state, model }) => {
      wasm.doge_cpu_state_destroy(state);
      wasm.doge_cpu_close(model);
    });
    this.model = trials[0].model;
    this.state = trials[0].state;
    this.instructionSet = trials[0].name;
    this.read = [];
  }

  /** Forgets what `prompt` does not begin with; returns how many of its tokens are read already. */
  begin(prompt) {
    let same = 0;
    if (prompt.length <= this.chunkableLength) {
      while (same < this.read.length && same < prompt.length - 1 && this.read[same] === prompt[same]) same++;
    }
    this.#check(this.#wasm.doge_cpu_state_rewind(this.state, same, ...this.#message()));
    this.read.length = same;
    this.#isWhole = prompt.length > this.chunkableLength;
    return same;
  }

  /** Reads ids behind those before; returns the logits of the last one, or with `best` the best token alone. */
  async step(ids, { best = false } = {}) {
    const found = this.#run(this.state, ids, best);
    // The keys of a prompt that is read whole depend on its length: no other prompt may use them.
    if (!this.#isWhole) this.read.push(...ids);
    return found;
  }

  /** Frees nothing but the model and its cache: the memory of a module goes with it. */
  close() {
    this.#wasm.doge_cpu_state_destroy(this.state);
    this.#wasm.doge_cpu_close(this.model);
  }

  #run(state, ids, best) {
    const { call, logits, out } = this.#places;
    const at = this.#placeOfIds(ids.length);
    new BigInt64Array(this.#wasm.memory.buffer, at, ids.length).set(BigInt64Array.from(ids, BigInt));
    // doge_cpu_call: tokens, logits_to_keep, ids, mask, positions, logits, hidden, num_candidates, reserved, and where
    // candidates and their logits go.
    const fields = [ids.length, 1, at, 0, 0, best ? 0 : logits, 0, best ? 1 : 0, 0, out, out + 8];
    new Int32Array(this.#wasm.memory.buffer, call, fields.length).set(fields);
    this.#check(this.#wasm.doge_cpu_run(state, call, ...this.#message()));
    const { buffer } = this.#wasm.memory; // another one where memory has grown
    if (!best) return new Float32Array(buffer, logits, this.vocabulary);
    if (!Number.isFinite(new Float32Array(buffer, out + 8, 1)[0])) throw new Error("the model gives logits that are not finite: its files are damaged");
    return Number(new BigInt64Array(buffer, out, 1)[0]);
  }

  /** Where ids go: memory for a piece of a prompt, and more where one is read whole. */
  #placeOfIds(count) {
    if (count > this.#capacity) {
      if (this.#capacity > 0) this.#wasm.free(this.#places.idsMemory);
      this.#capacity = 0;
      const capacity = Math.max(count, LEAST_IDS);
      this.#places.idsMemory = this.#allocated(capacity * 8 + 64);
      this.#places.ids = aligned(this.#places.idsMemory);
      this.#capacity = capacity;
    }
    return this.#places.ids;
  }

  /** The vocabulary of a weight file that is open, and therefore checked: the module writes as many logits. */
  #vocabularyOf(file, manifest) {
    const header = new DataView(this.#wasm.memory.buffer, file, MAX_LENGTH_AT + 4);
    const found = [header.getInt32(VOCAB_SIZE_AT, true), header.getInt32(MAX_LENGTH_AT, true)];
    const said = [manifest.architecture.vocab_size, manifest.max_length];
    if (found.join() !== said.join()) {
      const text = ([vocabulary, length]) => `${vocabulary} tokens of vocabulary and a length of ${length}`;
      throw new Error(`the weight file has ${text(found)}, doge_export.json ${text(said)}: they are not of one export`);
    }
    return found[0];
  }

  #open(file, size, name, kind) {
    const { out } = this.#places;
    const text = this.#memory(name.length + 1);
    new Uint8Array(this.#wasm.memory.buffer).set(new TextEncoder().encode(`${name}\0`), text);
    const made = () => new Uint32Array(this.#wasm.memory.buffer, out, 1)[0];
    this.#check(this.#wasm.doge_cpu_open(file, BigInt(size), 1, text, 0, out, ...this.#message()));
    const model = made();
    this.#check(this.#wasm.doge_cpu_state_create(model, 1, kind, 0, out, ...this.#message()));
    return { name, model, state: made() };
  }

  /** Times a few tokens of a model, and keeps the shortest time. */
  #time({ name, state }) {
    const began = performance.now();
    const ids = [3, 1, 4, 1, 5, 9, 2, 6].map((id) => id % this.vocabulary);
    this.#run(state, ids, true);
    for (let count = 0; count < 4; count++) this.#run(state, [ids[count]], true);
    this.#check(this.#wasm.doge_cpu_state_rewind(state, 0, ...this.#message()));
    this.milliseconds[name] = Math.min(this.milliseconds[name] ?? Infinity, performance.now() - began);
  }

  /** Memory that is kept for as long as the module. */
  #memory(bytes) {
    return aligned(this.#allocated(bytes + 64));
  }

  #allocated(bytes) {
    const place = bytes < ADDRESSES ? this.#wasm.malloc(bytes) >>> 0 : 0; // a larger number would wrap around
    if (place === 0) throw new Error(`${Math.ceil(bytes / MEGABYTE)} MB of memory are not there: close other pages`);
    return place;
  }

  #message() {
    return [this.#places.message, MESSAGE_BYTES];
  }

  #text(place) {
    const bytes = new Uint8Array(this.#wasm.memory.buffer, place);
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  }

  #check(status) {
    if (status === 0) return;
    const message = this.#text(this.#places.message);
    throw status === TOO_LONG ? new RangeError(message) : new Error(message);
  }
}
