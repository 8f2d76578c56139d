// How fast engines are, in turns: a prompt of 256 tokens, and answers behind 16 and behind 1024 of them. In Node by the time
// of the processor, which other work takes less from.

const clock = globalThis.process?.cpuUsage ? () => process.cpuUsage().user / 1000 : () => performance.now();

/** Tokens a second, by what was done. */
async function rates(doge) {
  const seconds = async (work) => {
    const began = clock();
    await work();
    return (clock() - began) / 1000;
  };
  const ids = (count) => Array.from({ length: count }, (_, place) => 3 + ((place * 7919) % 1000));
  const wanted = { best: true };
  const result = {};
  for (const [name, past, count] of [["at 16", 16, 16], ["at 1024", 1024, 8]]) {
    if (past + count >= doge.maxLength) continue;
    doge.begin([]);
    for (let start = 0; start < past; start += 256) await doge.step(ids(past).slice(start, start + 256), wanted);
    await doge.step([5], wanted);
    result[name] = count / (await seconds(async () => {
      for (let step = 0; step < count; step++) await doge.step([7 + step], wanted);
    }));
  }
  doge.begin([]);
  const prompt = Math.min(256, doge.maxLength - 1);
  result["prompt of 256"] = prompt / (await seconds(() => doge.step(ids(prompt), wanted)));
  return result;
}

/** Measures engines, [{name, doge}], in turns; adds `rates`, the median by what was done. */
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
