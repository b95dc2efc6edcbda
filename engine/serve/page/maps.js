// Response maps in the browser: labels under a background threshold, their IoU, and painting both.
// A map is a Uint8Array of levels (activation * 255), a label 0 for background, class + 1, or 255 for ignored.

export const IGNORE = 255;
export const STEPS = 100;

/** The lowest level that beats the threshold `step` / 100; 256 where none does. In 32-bit floats, as the
 *  evaluation has it: background wins a tie. */
export function beating(step) {
  const threshold = Math.fround(step / STEPS);
  let level = 0;
  while (level < 256 && !(Math.fround(level / 255) > threshold)) level++;
  return level;
}

/**
 * argmax of [threshold, maps]: of two equal classes the first wins.
 * @param {Uint8Array[]} maps one per class, all of one size
 * @param {number[]} classes ascending
 * @param {number} step threshold in hundredths
 * @param {(c: number) => boolean} shown classes that take part
 */
export function labelsOf(maps, classes, step, shown, size) {
  const labels = new Uint8Array(size);
  const best = new Uint8Array(size);
  const least = beating(step);
  maps.forEach((map, k) => {
    if (!shown(classes[k])) return;
    const value = classes[k] + 1;
    for (let i = 0; i < size; i++) {
      const level = map[i];
      if (level >= least && level > best[i]) {
        best[i] = level;
        labels[i] = value;
      }
    }
  });
  return labels;
}

/** Labels without the classes that are not shown (they become background). */
export function onlyShown(labels, shown) {
  const table = new Uint8Array(256);
  for (let v = 1; v < 256; v++) table[v] = v === IGNORE || shown(v - 1) ? v : 0;
  return labels.map((value) => table[value]);
}

/** The largest activation of the classes shown. */
export function strongest(maps, classes, shown, size) {
  const out = new Uint8Array(size);
  maps.forEach((map, k) => {
    if (shown(classes[k])) for (let i = 0; i < size; i++) if (map[i] > out[i]) out[i] = map[i];
  });
  return out;
}

/** Mean IoU of the labels that the ground truth holds, background among them; null where it holds none. */
export function meanIou(labels, truth) {
  const [hits, predicted, real] = [new Uint32Array(256), new Uint32Array(256), new Uint32Array(256)];
  for (let i = 0; i < truth.length; i++) {
    if (truth[i] === IGNORE || labels[i] === IGNORE) continue;
    real[truth[i]]++;
    predicted[labels[i]]++;
    if (truth[i] === labels[i]) hits[truth[i]]++;
  }
  let [sum, count] = [0, 0];
  for (let v = 0; v < IGNORE; v++) {
    if (!real[v]) continue;
    sum += hits[v] / (real[v] + predicted[v] - hits[v]);
    count++;
  }
  return count ? sum / count : null;
}

/** PASCAL VOC's colour of a label: its bits spread over red, green and blue. */
export function labelColour(value) {
  const colour = [0, 0, 0];
  for (let digit = 0; digit < 3; digit++) {
    for (let channel = 0; channel < 3; channel++) {
      colour[channel] |= ((value >> (3 * digit + channel)) & 1) << (7 - digit);
    }
  }
  return colour;
}

export const cssColour = (value) => `rgb(${labelColour(value).join(' ')})`;

// 17 of the 256 colours of inferno, which is perceptually even; between them linear.
const INFERNO = (
  '000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d04545 e35933 f1711f f98c0a fcaa0f f9c932 '
  + 'f2e865 fcffa4'
).split(' ').map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** The colour of an activation level, 0..255. */
export function heatColour(level) {
  const at = (level / 255) * (INFERNO.length - 1);
  const low = Math.min(Math.floor(at), INFERNO.length - 2);
  return INFERNO[low].map((value, k) => Math.round(value + (INFERNO[low + 1][k] - value) * (at - low)));
}

/** Paint labels on a canvas of their size: background clear, ignored pixels faint grey. */
export function paintLabels(canvas, labels, width, height, opacity) {
  const alpha = Math.round(255 * opacity);
  paint(canvas, labels, width, height, (value) => {
    if (value === 0) return [0, 0, 0, 0];
    return value === IGNORE ? [224, 224, 224, alpha >> 1] : [...labelColour(value), alpha];
  });
}

/** Paint activations on a canvas of their size: the photo shows through in proportion to what is missing. */
export function paintHeat(canvas, levels, width, height, opacity) {
  paint(canvas, levels, width, height, (level) => [
    ...heatColour(level),
    Math.round(255 * opacity * Math.min(1, 0.25 + (0.75 * level) / 255)),
  ]);
}

/** Paint a mask on a canvas of its size: `colour` (RGBA) where it is not 0. */
export function paintMask(canvas, mask, width, height, colour) {
  paint(canvas, mask, width, height, (value) => (value ? colour : [0, 0, 0, 0]));
}

function paint(canvas, values, width, height, colourOf) {
  const table = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(table.buffer);
  for (let v = 0; v < 256; v++) bytes.set(colourOf(v), 4 * v);
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const pixels = new Uint32Array(width * height);
  for (let i = 0; i < pixels.length; i++) pixels[i] = table[values[i]];
  const image = new ImageData(new Uint8ClampedArray(pixels.buffer), width, height);
  canvas.getContext('2d').putImageData(image, 0, 0);
}

/** K maps that lie one below the other in a decoded PNG. */
export function stacked(png, count) {
  const height = png.height / count;
  const size = png.width * height;
  return Array.from({ length: count }, (_, k) => png.data.subarray(k * size, (k + 1) * size));
}
