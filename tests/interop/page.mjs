// Visits the page of samples/browser in headless Chromium: `node page.mjs CHROMIUM SAMPLE FOLDER VISIT...`, where a VISIT is
// JSON: {query, isolation, folders, flags (of Chromium), messages, stop, cut, broken, again, screenshot, size, scheme}. Prints what each saw, as JSON.
import path from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [executablePath, sample, folder, ...visits] = process.argv.slice(2);
const { pageServer } = await import(pathToFileURL(path.join(sample, "serve.mjs")).href);
const browsers = {}; // by their flags
const browserWith = async (flags) => (browsers[flags] ??= await chromium.launch({ executablePath, args: ["--no-sandbox", ...flags] }));
const results = [];

/** Notes how many bytes of a body are sent, before the server sends them: by the file, the first time. */
function countBytes(name, response, sent) {
  if (name in sent) return;
  sent[name] = 0;
  for (const method of ["write", "end"]) {
    const send = response[method].bind(response);
    response[method] = (content, ...others) => {
      if (content?.length) sent[name] += content.length;
      return send(content, ...others);
    };
  }
}

for (const visit of visits.map((text) => JSON.parse(text))) {
  const server = pageServer(visit.folders ?? folder, { isolation: visit.isolation ?? true });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const context = await (await browserWith(visit.flags ?? [])).newContext({
    viewport: visit.size ?? { width: 900, height: 700 },
    colorScheme: visit.scheme ?? "light",
  });
  const page = await context.newPage();
  const result = { said: [], errors: [], sent: {} };
  server.prependListener("request", (request, response) => countBytes(request.url.split("?")[0], response, result.sent));
  page.on("pageerror", (error) => result.errors.push(error.message));
  if (visit.cut) await context.route(visit.cut, (route) => route.fulfill({ status: 200, body: "cut off" }));
  if (visit.broken) await context.route(visit.broken, (route) => route.abort());
  const url = `http://127.0.0.1:${server.address().port}/?${visit.query ?? ""}`;
  const settled = () =>
    page.waitForFunction(
      () => document.body.dataset.state === "ready" || document.getElementById("status").className === "failed",
      null,
      { timeout: 120000 },
    );
  const open = async () => {
    const began = performance.now();
    await page.goto(url, { waitUntil: "load" });
    await settled();
    result.said.push(await page.textContent("#status"));
    result.bytes = await page.evaluate(() => performance.getEntriesByType("resource").reduce((sum, one) => sum + one.decodedBodySize, 0));
    return performance.now() - began;
  };
  const ask = async (message) => {
    await page.fill("#message", message);
    await page.click("#send");
    await page.waitForFunction(() => document.body.dataset.state !== "answering", null, { timeout: 120000 });
    result.said.push(await page.textContent("#status"));
  };
  result.cold = await open();
  for (const message of visit.messages ?? []) await ask(message);
  if (visit.stop) {
    await page.fill("#message", visit.stop);
    await page.click("#send");
    await page.waitForFunction(() => document.querySelector("main .assistant:last-child")?.textContent.length > 4);
    await page.click("#stop");
    await page.waitForFunction(() => document.body.dataset.state === "ready");
  }
  result.answers = await page.$$eval("main .assistant", (lines) => lines.map((line) => line.textContent));
  if (visit.screenshot) await page.screenshot({ path: visit.screenshot });
  if (visit.again) {
    await page.waitForFunction(() => navigator.serviceWorker?.controller, null, { timeout: 20000 });
    result.warm = await open();
    if (visit.again === "offline") {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      result.offline = await open();
      for (const message of visit.messages ?? []) await ask(message);
      result.answers = await page.$$eval("main .assistant", (lines) => lines.map((line) => line.textContent));
    }
  }
  results.push(result);
  await context.close();
  server.close();
}
for (const browser of Object.values(browsers)) await browser.close();
process.stdout.write(JSON.stringify(results) + "\n");
