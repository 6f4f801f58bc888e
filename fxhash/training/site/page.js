// The page: takes drawings and pictures, and shows what the model makes of them.

import { imageOfDrawing, letDraw } from "./drawing.js";
import { classify, loaded } from "./model.js";
import { imageOf, pixelsOf } from "./pictures.js";

const element = (id) => document.getElementById(id);

let waiting = null;
let running = false;

/** Classify what `image` gives, unless something newer comes before its turn. */
async function latest(image) {
  waiting = image;
  if (running) return;
  running = true;
  try {
    while (waiting) {
      const current = waiting;
      waiting = null;
      const planes = await current();
      const start = performance.now();
      const probabilities = await classify(planes);
      showResult((await loaded).description, planes, probabilities, performance.now() - start);
    }
  } catch (error) {
    showNothing((await loaded).description);
    fail(error);
  } finally {
    running = false;
  }
}

function showResult(description, planes, probabilities, milliseconds) {
  const { classes } = description;
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
  // Few classes stay where they are; of many, the likeliest come first.
  const many = classes.length > 12;
  const rows = (many ? order.slice(0, 8) : classes.map((_, index) => index)).map((index) => {
    const percent = `${(100 * probabilities[index]).toFixed(1)} %`;
    const row = document.createElement("li");
    const bar = document.createElement("span");
    const fill = document.createElement("i");
    bar.className = "bar";
    fill.style.width = `${100 * probabilities[index]}%`;
    bar.append(fill);
    row.classList.toggle("most", index === order[0]);
    row.classList.toggle("many", many);
    row.append(text("span", classes[index]), bar, text("span", percent));
    return row;
  });
  element("bars").replaceChildren(...rows);
  element("bars").dataset.probabilities = JSON.stringify(probabilities);
  element("answer").textContent = `${classes[order[0]]}, ${Math.round(100 * probabilities[order[0]])} %`;
  element("picture-time").textContent = `${milliseconds.toFixed(1)} ms`;
  say("");
  showSeen(description, planes);
}

function showSeen({ size: [height, width] }, planes) {
  const canvas = Object.assign(element("seen"), { width, height });
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let channel = 0; channel < 3; channel++) image.data[4 * i + channel] = planes[channel % planes.length][i];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
}

function showNothing(description) {
  waiting = null;
  element("bars").replaceChildren();
  element("answer").textContent = "";
  showSeen(description, black(description));
}

function black({ size: [height, width], channels }) {
  return Array.from({ length: channels }, () => new Uint8Array(height * width));
}

function text(tag, content) {
  return Object.assign(document.createElement(tag), { textContent: content });
}

/** Bytes of files as they came over the network, compressed if the server does that; else as they are on disk. */
function downloaded(description, names) {
  return names.reduce((total, name) => {
    const [entry] = performance.getEntriesByName(new URL(name, import.meta.url).href, "resource");
    return total + (entry?.encodedBodySize || description.bytes[name]);
  }, 0);
}

function size(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function say(message, failed = false) {
  element("status").classList.toggle("failed", failed);
  element("status").textContent = message;
}

function fail(error) {
  say(`This did not work: ${error.message ?? error}`, true);
}

function letChoose(description) {
  const take = (file) => file && latest(async () => imageOf(await pixelsOf(file), description));
  const input = element("file");
  input.disabled = false;
  input.addEventListener("change", () => {
    take(input.files[0]);
    input.value = ""; // So that the same picture can be chosen again.
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
}

async function start() {
  const { description, provider, milliseconds } = await loaded;
  const { classes, network, size: [height, width], drawing, runtime } = description;
  document.title = element("title").textContent = `${network}: ${classes.length} classes, in your browser`;
  element("scale").textContent = `: ${width} × ${height} pixels`;
  element("model-bytes").textContent = size(downloaded(description, ["model.onnx"]));
  element("runtime-bytes").textContent = size(downloaded(description, [runtime.module, runtime.binary]));
  element("load-time").textContent = `${Math.round(milliseconds)} ms`;
  element("provider").textContent = { wasm: "WebAssembly", webgpu: "WebGPU" }[provider];
  showNothing(description);
  // The first call takes longer than those that follow.
  await classify(black(description));
  if (drawing) {
    element("clear").hidden = element("drawing").hidden = false;
    letDraw(element("canvas"), element("clear"), (strokes) => {
      if (strokes.length) latest(() => imageOfDrawing(strokes, description));
      else showNothing(description);
    });
  }
  letChoose(description);
  say(drawing ? "Ready: draw, or choose a picture." : "Ready: choose a picture.");
  document.body.dataset.ready = provider;
}

start().catch(fail);
