// Pictures of any size to images of the model's size.

/**
 * A picture as the model takes it, by the arithmetic of Pillow, which read the images for training: rows, then columns.
 *
 * @param {ImageData} picture of any size
 * @param {object} description of the model
 * @returns {Uint8Array[]} a plane for each channel
 */
export function imageOf(picture, { channels, size: [height, width] }) {
  const { data } = picture;
  const area = picture.width * picture.height;
  const planes = Array.from({ length: channels }, (_, channel) => {
    const plane = new Uint8Array(area);
    for (let i = 0; i < area; i++) {
      plane[i] = channels > 1 ? data[4 * i + channel]
        : (19595 * data[4 * i] + 38470 * data[4 * i + 1] + 7471 * data[4 * i + 2] + 32768) >> 16;
    }
    return plane;
  });
  return planes.map((plane) => {
    const narrow = resampled(plane, picture.width, picture.height, width, true);
    return resampled(narrow, picture.height, width, height, false);
  });
}

/** The rows of a plane (or else its columns) at another length, bicubic, where `lines` says how many there are. */
function resampled(plane, length, lines, newLength, rows) {
  if (length === newLength) return plane;
  const result = new Uint8Array(lines * newLength);
  const [step, jump, newJump] = rows ? [1, length, newLength] : [lines, 1, 1];
  const scale = length / newLength;
  const wide = Math.max(scale, 1);
  const one = 2 ** 22;
  for (let place = 0; place < newLength; place++) {
    const center = (place + 0.5) * scale;
    const first = Math.max(Math.trunc(center - 2 * wide + 0.5), 0);
    const count = Math.min(Math.trunc(center + 2 * wide + 0.5), length) - first;
    const weights = Array.from({ length: count }, (_, i) => bicubic((i + first - center + 0.5) / wide));
    const total = weights.reduce((a, b) => a + b);
    const whole = weights.map((weight) => Math.trunc((weight / total) * one + (weight < 0 ? -0.5 : 0.5)));
    for (let line = 0; line < lines; line++) {
      let sum = one / 2;
      for (let i = 0; i < count; i++) sum += plane[line * jump + (first + i) * step] * whole[i];
      result[line * newJump + place * step] = Math.min(Math.max(Math.floor(sum / one), 0), 255);
    }
  }
  return result;
}

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/** The pixels of a file in a format that the browser reads. */
export async function pixelsOf(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}
