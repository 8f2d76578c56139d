// node native_fake.mjs WORK, JSON of what happened: samples/javascript/native.mjs over a module that computes nothing, and counts
// what is asked of it. It needs no compiler, and shows what a true module hides: which keys are used again, which memory is.
import { NativeDoge } from "../../samples/javascript/native.mjs";

const VOCABULARY = 64;

/** The functions of a module that NativeDoge calls. */
function module(calls) {
  const memory = new WebAssembly.Memory({ initial: 4 });
  let free = 1024;
  const written = (place, number) => new Uint32Array(memory.buffer, place, 1).fill(number);
  const made = (place) => written(place, 1) && 0;
  return {
    memory,
    malloc: (bytes) => {
      calls.memory.push(bytes);
      return (free += bytes + 8) < memory.buffer.byteLength ? free - bytes : 0;
    },
    free: () => {},
    doge_cpu_usable_instruction_sets: () => {
      new Uint8Array(memory.buffer).set(new TextEncoder().encode("wasm\0"), 512);
      return 512;
    },
    doge_cpu_open: (file, size, threads, name, flags, out) => made(out),
    doge_cpu_state_create: (model, batch, kind, length, out) => made(out),
    doge_cpu_state_rewind: (state, length) => calls.rewinds.push(length) && 0,
    doge_cpu_run: (state, call) => {
      const [tokens, , ids] = new Int32Array(memory.buffer, call, 3);
      calls.runs.push(Array.from(new BigInt64Array(memory.buffer, ids, tokens), Number));
      return 0;
    },
  };
}

/** The beginning of a weight file, as plugins/cpu/include/doge/cpu.h has it. */
function weights({ vocabulary = VOCABULARY, length }) {
  const view = new DataView(new ArrayBuffer(192));
  view.setInt32(64, vocabulary, true);
  view.setInt32(100, length, true);
  return new Uint8Array(view.buffer);
}

const { maxLength = 512, chunkableLength = maxLength, prompts = [], file = {} } = JSON.parse(process.argv[2]);
const result = { memory: [], rewinds: [], runs: [] };
const manifest = { max_length: maxLength, chunkable_length: chunkableLength, architecture: { vocab_size: VOCABULARY } };
try {
  const content = { manifest, graph: {}, weights: weights({ length: maxLength, ...file }) };
  const doge = new NativeDoge(module(result), content);
  for (const prompt of prompts) for await (const _ of doge.generate(prompt, { maxNewTokens: 2 }));
} catch (error) {
  result.error = error.message;
}
process.stdout.write(JSON.stringify(result));
