// Visits the server's page in headless Chromium: `node visit.mjs CHROMIUM URL VISIT...`, where a VISIT is JSON:
// {key, messages, stop, screenshot, size, scheme}. Prints what each visit saw, as JSON.
import { chromium } from "playwright-core";

const [executablePath, url, ...visits] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const results = [];
for (const visit of visits.map((text) => JSON.parse(text))) {
  const context = await browser.newContext({
    viewport: visit.size ?? { width: 900, height: 700 },
    colorScheme: visit.scheme ?? "light",
  });
  const page = await context.newPage();
  const result = { said: [], errors: [], foreign: [] };
  page.on("pageerror", (error) => result.errors.push(error.message));
  page.on("request", (request) => request.url().startsWith(url) || result.foreign.push(request.url()));
  const state = (wanted) => page.waitForFunction((state) => document.body.dataset.state === state, wanted);
  const say = async () => result.said.push(await page.textContent("#status"));
  await page.goto(url);
  if (visit.key) {
    await page.waitForSelector("#status.failed");
    await say();
    await page.fill("#key", visit.key);
    await page.press("#key", "Enter");
  }
  await state("ready");
  await say();
  for (const message of visit.messages ?? []) {
    await page.fill("#message", message);
    await page.press("#message", "Enter");
    await state("ready");
    await say();
  }
  if (visit.stop) {
    await page.fill("#message", visit.stop);
    await page.click("#send");
    await page.waitForFunction(() => document.querySelector("main .assistant:last-child")?.textContent.length > 4);
    await page.click("#stop");
    await state("ready");
    await say();
  }
  result.answers = await page.$$eval("main .assistant", (lines) => lines.map((line) => line.textContent));
  result.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  if (visit.screenshot) await page.screenshot({ path: visit.screenshot });
  results.push(result);
  await context.close();
}
await browser.close();
process.stdout.write(JSON.stringify(results) + "\n");
