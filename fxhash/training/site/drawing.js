// A canvas to draw on with pointer or keyboard, and what is drawn as an image of the model's size.

// How finely a pixel of the image is drawn before it is averaged.
const FINE = 16;
// Thickness of a line on the page, and how far an arrow key goes, in sides of the canvas.
const [LINE, STEP] = [0.07, 0.05];

/**
 * Let somebody draw on a canvas.
 *
 * @param {HTMLCanvasElement} canvas a square one
 * @param {HTMLButtonElement} button which clears it
 * @param {(strokes: number[][][]) => void} changed called with all strokes, none after clearing: lists of points [x, y]
 *   between 0 and 1
 */
export function letDraw(canvas, button, changed) {
  const context = canvas.getContext("2d");
  const strokes = [];
  let pen = [0.5, 0.5];

  const update = (cursor = false) => {
    paint(context, canvas.width, LINE, strokes);
    if (cursor) paintCursor(context, canvas.width, pen);
    changed(strokes);
  };
  const clear = () => {
    strokes.length = 0;
    update();
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    strokes.push([place(event)]);
    update();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    strokes.at(-1).push(place(event));
    update();
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") clear();
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const next = pen.map((value, axis) => Math.min(Math.max(value + STEP * move[axis], STEP), 1 - STEP));
    if (!event.shiftKey) {
      // Where the last stroke ends at the pen, it goes on.
      if (strokes.at(-1)?.at(-1) !== pen) strokes.push([pen]);
      strokes.at(-1).push(next);
    }
    pen = next;
    update(true);
  });
  button.addEventListener("click", clear);
  paint(context, canvas.width, LINE, strokes);
}

/**
 * What is drawn, as the model takes it: as large and as thick as in its data set, in the middle, and averaged down.
 *
 * @param {number[][][]} strokes at least one
 * @param {object} description of the model
 * @returns {Uint8Array[]} the one plane
 */
export function imageOfDrawing(strokes, { size: [side], drawing }) {
  const canvas = Object.assign(document.createElement("canvas"), { width: side * FINE, height: side * FINE });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const move = drawing.size === null ? (point) => point : fitted(strokes, drawing.size - drawing.line);
  paint(context, canvas.width, drawing.line, strokes, move);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const sums = new Float64Array(side * side);
  for (let i = 0; i < data.length / 4; i++) {
    const [x, y] = [i % canvas.width, Math.floor(i / canvas.width)];
    sums[Math.floor(y / FINE) * side + Math.floor(x / FINE)] += data[4 * i];
  }
  return [Uint8Array.from(sums, (sum) => Math.round(sum / FINE ** 2))];
}

/** Moves points so that the larger side of the drawing is `size`, and its middle that of the image. */
function fitted(strokes, size) {
  const bounds = [0, 1].map((axis) => {
    const values = strokes.flat().map((point) => point[axis]);
    return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [1, 0]);
  });
  // A dot doesn't become a disc.
  const scale = size / Math.max(...bounds.map(([low, high]) => high - low), 0.1);
  return (point) => point.map((value, axis) => (value - (bounds[axis][0] + bounds[axis][1]) / 2) * scale + 0.5);
}

/** Paint strokes in white on black. */
function paint(context, side, line, strokes, move = (point) => point) {
  context.fillStyle = "#000";
  context.fillRect(0, 0, side, side);
  Object.assign(context, { strokeStyle: "#fff", lineCap: "round", lineJoin: "round", lineWidth: line * side });
  for (const stroke of strokes) {
    context.beginPath();
    // The first twice, since a line of one point is not painted.
    for (const point of [stroke[0], ...stroke]) context.lineTo(...move(point).map((value) => value * side));
    context.stroke();
  }
}

function paintCursor(context, side, [x, y]) {
  Object.assign(context, { strokeStyle: "#ff9a70", lineWidth: side / 200 });
  context.beginPath();
  context.arc(x * side, y * side, LINE * side, 0, 2 * Math.PI);
  context.stroke();
}
