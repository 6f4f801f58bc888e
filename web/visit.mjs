// Serves an exported page, visits it with headless Chromium, and prints what happened there as JSON.
//
//     echo '{"folder": "page", "pictures": ["digit.png"]}' | node web/visit.mjs
//
// On standard input, each but `folder` if wanted:
//   folder       the page
//   pictures     files to choose, one after the other
//   strokes      lists of points [x, y] between 0 and 1, to draw with the mouse
//   keys         keys to press on the canvas, after it was cleared
//   screenshot   file for a picture of the page at the end, as it is on a phone; `dark` for the dark one
//   calls        how often to time the last picture, after a second of untimed calls
//   starts       how often to load the page anew, without a cache, for the time that it takes
//
// CHROME names the browser; Debian's if there is none.

import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { chromium } from "playwright-core";

const TYPES = {
  ".html": "text/html",
  ".css": "text/css",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

const asked = JSON.parse(readFileSync(0, "utf-8"));
const server = createServer(answer);
await new Promise((resolve) => server.listen(0, "localhost", resolve));
const url = `http://localhost:${server.address().port}/`;
const browser = await chromium.launch({
  executablePath: process.env.CHROME || "/usr/bin/chromium",
  args: [...(process.getuid?.() === 0 ? ["--no-sandbox"] : []), "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"],
});
try {
  const visited = await visit();
  const loads = [];
  for (let i = 0; i < (asked.starts ?? 0); i++) loads.push(await load());
  console.log(JSON.stringify({ browser: browser.version(), ...visited, loads }));
} finally {
  await browser.close();
  server.closeAllConnections();
  server.close();
}

async function answer(request, response) {
  const path = new URL(request.url, url).pathname;
  const file = path === "/" ? "index.html" : path;
  try {
    const content = await readFile(join(asked.folder, file));
    // With the last two, the browser's clock has microseconds.
    response.writeHead(200, {
      "Content-Type": TYPES[extname(file)] ?? "application/octet-stream",
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Embedder-Policy": "require-corp",
    });
    response.end(content);
  } catch {
    response.writeHead(404).end();
  }
}

async function opened() {
  const context = await browser.newContext({
    viewport: { width: 412, height: 915 },
    colorScheme: asked.dark ? "dark" : "light",
  });
  const page = await context.newPage();
  const requests = [];
  const messages = [];
  context.on("request", (request) => requests.push(request.url()));
  page.on("console", (message) => messages.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => messages.push(`uncaught: ${error.message}`));
  await page.goto(url);
  await page.locator("body[data-ready], #status.failed").waitFor({ state: "attached", timeout: 60_000 });
  return { context, page, requests, messages };
}

async function visit() {
  const { context, page, requests, messages } = await opened();
  const provider = (await page.locator("body").getAttribute("data-ready")) ?? null;
  const adapter = await page.evaluate(async () => Boolean(await navigator.gpu?.requestAdapter()));
  const pictures = [];
  for (const picture of asked.pictures ?? []) {
    await forget(page);
    await page.locator("#file").setInputFiles(picture);
    pictures.push(await answered(page));
  }
  const drawing = asked.strokes && (await drawn(page));
  const typed = asked.keys && (await keyed(page));
  const milliseconds = asked.calls ? await timed(page, pictures.at(-1).seen) : [];
  if (asked.screenshot) await page.screenshot({ path: asked.screenshot, fullPage: true });
  const status = await page.locator("#status").innerText();
  const shown = await page.locator("dd").allInnerTexts();
  await context.close();
  return { provider, adapter, status, shown, requests, messages, pictures, drawing, typed, milliseconds };
}

async function load() {
  const { context, page } = await opened();
  const times = await page.evaluate(async () => {
    const { loaded } = await import("/model.js");
    const { runtime, bytes, provider, milliseconds } = await loaded;
    // Meanwhile the browser compiles the runtime once more, for speed.
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const ready = performance.now();
    await runtime.InferenceSession.create(bytes, { executionProviders: [provider] });
    return { first: milliseconds, again: performance.now() - ready };
  });
  await context.close();
  return times;
}

async function drawn(page) {
  await forget(page);
  const box = await page.locator("#canvas").boundingBox();
  for (const stroke of asked.strokes) {
    const [first, ...rest] = stroke.map(([x, y]) => [box.x + x * box.width, box.y + y * box.height]);
    await page.mouse.move(...first);
    await page.mouse.down();
    for (const point of rest) await page.mouse.move(...point);
    await page.mouse.up();
  }
  await settled(page);
  return await answered(page);
}

async function keyed(page) {
  await page.locator("#clear").click();
  await forget(page);
  await page.locator("#canvas").focus();
  for (const key of asked.keys) await page.keyboard.press(key);
  await settled(page);
  return await answered(page);
}

/** Remove the last answer, so that the next one is known by its being there. */
async function forget(page) {
  await page.evaluate(() => document.getElementById("bars").removeAttribute("data-probabilities"));
}

/** Wait until the last of several changes has been answered. */
async function settled(page) {
  await page.waitForTimeout(500);
}

async function answered(page) {
  await page.locator("#bars[data-probabilities], #status.failed").waitFor({ state: "attached" });
  return await page.evaluate(() => {
    const seen = document.getElementById("seen");
    return {
      answer: document.getElementById("answer").textContent,
      probabilities: JSON.parse(document.getElementById("bars").dataset.probabilities ?? "null"),
      seen: Array.from(seen.getContext("2d").getImageData(0, 0, seen.width, seen.height).data),
    };
  });
}

async function timed(page, seen) {
  return await page.evaluate(
    async ([pixels, calls]) => {
      const { classify, loaded } = await import("/model.js");
      const { channels } = (await loaded).description;
      const planes = Array.from({ length: channels }, (_, channel) =>
        Uint8Array.from({ length: pixels.length / 4 }, (_, i) => pixels[4 * i + channel]),
      );
      const milliseconds = [];
      const warm = performance.now() + 1000;
      while (performance.now() < warm) await classify(planes);
      for (let i = 0; i < calls; i++) {
        const start = performance.now();
        await classify(planes);
        milliseconds.push(performance.now() - start);
      }
      return milliseconds;
    },
    [seen, asked.calls],
  );
}
