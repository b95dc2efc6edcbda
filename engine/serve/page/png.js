// Decodes grey and palette PNGs to their samples, without a canvas: what a canvas gives back may be colour
// managed, or carry noise that a browser adds against tracking, and a map's levels must be exact.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/** The bytes of a base64 text. */
export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/**
 * The samples of a PNG of one channel (grey or palette indices; 1, 2, 4 or 8 bits; not interlaced).
 * @param {Uint8Array} bytes
 * @returns {Promise<{width: number, height: number, depth: number, data: Uint8Array}>} one byte a pixel
 */
export async function decodePng(bytes) {
  if (SIGNATURE.some((value, i) => bytes[i] !== value)) throw new Error('not a PNG');
  const { width, height, depth, packed } = chunksOf(bytes);
  const inflated = await inflate(packed);
  const stride = Math.ceil((width * depth) / 8);
  if (inflated.length !== height * (stride + 1)) throw new Error('a PNG that is cut short');
  const rows = unfilter(inflated, height, stride);
  return { width, height, depth, data: depth === 8 ? rows : unpack(rows, width, height, depth, stride) };
}

function chunksOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [width, height, depth, colour, interlaced] = [
    view.getUint32(16), view.getUint32(20), bytes[24], bytes[25], bytes[28],
  ];
  if ((colour !== 0 && colour !== 3) || depth > 8 || interlaced) {
    throw new Error(`a PNG of one channel is needed (colour type ${colour}, ${depth} bits)`);
  }
  const parts = [];
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (type === 'IDAT') parts.push(bytes.subarray(at + 8, at + 8 + length));
    if (type === 'IEND') break;
    at += length + 12;
  }
  return { width, height, depth, packed: new Blob(parts) };
}

async function inflate(blob) {
  const stream = blob.stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Undo the rows' filters (PNG specification, section 9); a pixel is one byte or part of one. */
function unfilter(data, height, stride) {
  const out = new Uint8Array(height * stride);
  for (let y = 0; y < height; y++) {
    const filter = data[y * (stride + 1)];
    const from = y * (stride + 1) + 1;
    const to = y * stride;
    for (let x = 0; x < stride; x++) {
      const left = x ? out[to + x - 1] : 0;
      const up = y ? out[to + x - stride] : 0;
      const corner = x && y ? out[to + x - stride - 1] : 0;
      out[to + x] = data[from + x] + predicted(filter, left, up, corner);
    }
  }
  return out;
}

function predicted(filter, left, up, corner) {
  switch (filter) {
    case 0: return 0;
    case 1: return left;
    case 2: return up;
    case 3: return (left + up) >> 1;
    case 4: return paeth(left, up, corner);
    default: throw new Error(`PNG filter ${filter}`);
  }
}

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}

function unpack(rows, width, height, depth, stride) {
  const out = new Uint8Array(width * height);
  const mask = (1 << depth) - 1;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const bit = x * depth;
      out[y * width + x] = (rows[y * stride + (bit >> 3)] >> (8 - depth - (bit & 7))) & mask;
    }
  }
  return out;
}
