// How fast engines are, in turns: a prompt of 256 tokens, and answers behind 16 and behind 1024 of them. In Node by the time
// of the processor, which other work takes less from.

const clock = globalThis.process?.cpuUsage ? () => process.cpuUsage().user / 1000 : () => performance.now();
const PIECE = 256;
const ids = (count) => Array.from({ length: count }, (_, place) => 3 + ((place * 7919) % 1000));

async function seconds(work) {
  const began = clock();
  await work();
  return (clock() - began) / 1000;
}

/** Tokens a second of reading a prompt, and of `count` tokens behind it. */
async function run(doge, prompt, count) {
  if (doge.run) return doge.run(prompt, count);
  const wanted = { best: true };
  doge.begin([]);
  const read = async () => {
    for (let start = 0; start < prompt.length; start += PIECE) await doge.step(prompt.slice(start, start + PIECE), wanted);
  };
  const reading = prompt.length / (await seconds(read));
  if (count === 0) return { reading };
  await doge.step([5], wanted);
  const answer = async () => {
    for (let step = 0; step < count; step++) await doge.step([7 + step], wanted);
  };
  return { reading, answering: count / (await seconds(answer)) };
}

/** Tokens a second, by what was done. */
async function rates(doge) {
  const result = {};
  for (const [name, past, count] of [["at 16", 16, 16], ["at 1024", 1024, 8]]) {
    if (past + count + 1 < doge.maxLength) result[name] = (await run(doge, ids(past), count)).answering;
  }
  const prompt = Math.min(256, doge.maxLength - 1);
  result["prompt of 256"] = (await run(doge, ids(prompt), 0)).reading;
  return result;
}

/**
 * Measures engines, [{name, doge}], in turns; adds `rates`, the median by what was done.
 *
 * A `doge` is a Decoder, or measures itself by a method `run`.
 */
export async function measured(engines, rounds) {
  const all = engines.map(() => []);
  for (let round = 0; round < rounds; round++) {
    for (const [place, { doge }] of engines.entries()) all[place].push(await rates(doge));
  }
  const median = (numbers) => numbers.sort((a, b) => a - b)[numbers.length >> 1];
  return engines.map(({ name }, place) => ({
    name,
    rates: Object.fromEntries(Object.keys(all[place][0]).map((what) => [what, median(all[place].map((one) => one[what]))])),
  }));
}

/** Lines of text, tokens a second. */
export function summary(engines) {
  const line = ({ name, rates }) =>
    name.padEnd(30) + Object.entries(rates).map(([what, rate]) => `${what}: ${rate.toFixed(0)}`).join("   ");
  return engines.map(line).join("\n") + "\n";
}
