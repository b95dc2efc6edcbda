// The images' pictures: in the page, or in scripts beside it (a page from file:// may load those, but not fetch).
import { bytesOf, decodePng } from './png.js';
import { stacked } from './maps.js';

const KEPT = 24; // chunks in memory at a time, however long someone browses

export class Pictures {
  /** @param {{images: {places: number[][], embedded: number}, files: string}} data */
  constructor(data) {
    this.files = data.files;
    this.embedded = data.images.embedded;
    this.at = [];
    data.images.places.forEach((numbers, chunk) => {
      numbers.forEach((number, position) => { this.at[number] = [chunk, position]; });
    });
    this.chunks = new Map();
    this.arriving = new Map();
    window.infercamChunk = (chunk, images) => this.arriving.get(chunk)?.(images);
  }

  /** What a small picture of the image is loaded from; a promise where the page holds it. */
  thumbnail(number) {
    const [chunk] = this.at[number];
    if (chunk >= this.embedded) return `${this.files}photos/${String(Math.floor(number / 500)).padStart(3, '0')}/${number}.webp`;
    return this.record(number).then((image) => (image.photo ? `data:image/webp;base64,${image.photo}` : ''));
  }

  /** An image as pictures.py wrote it. */
  async record(number) {
    const [chunk, position] = this.at[number];
    return (await this.chunk(chunk))[position];
  }

  /** An image decoded: {error} or {width, height, size, photo, truth, runs: [{classes, maps}, {error} or null]}. */
  async image(number) {
    const record = await this.record(number);
    if (record.error) return record;
    const [truth, ...runs] = await Promise.all([record.truth, ...record.runs].map((part) => decoded(part, record.height)));
    const photo = await this.thumbnail(number);
    return { ...record, photo, truth: truth && (truth.error ? truth : truth.maps[0]), runs };
  }

  chunk(number) {
    let found = this.chunks.get(number);
    if (found) this.chunks.delete(number); // put last again: the first is what was not asked for longest
    else found = number < this.embedded ? Promise.resolve(inPage(number)) : this.beside(number);
    this.chunks.set(number, found);
    if (this.chunks.size > KEPT) this.chunks.delete(this.chunks.keys().next().value);
    return found;
  }

  beside(number) {
    return new Promise((resolve, reject) => {
      const script = document.createElement('script');
      const done = () => {
        this.arriving.delete(number);
        script.remove();
      };
      this.arriving.set(number, resolve);
      script.onload = done;
      script.onerror = () => {
        done();
        this.chunks.delete(number);
        reject(new Error(`${this.files}chunks/${number}.js is missing: keep the folder beside this page`));
      };
      script.src = `${this.files}chunks/${number}.js`;
      document.head.append(script);
    });
  }
}

const inPage = (number) => JSON.parse(document.getElementById(`chunk-${number}`).textContent);

/** A part of an image with its planes, one below the other in the PNG: maps of its classes, or labels. */
async function decoded(part, height) {
  if (!part || part.error) return part;
  const classes = part.classes ?? [];
  if (!part.png) return { classes, maps: [] };
  const png = await decodePng(bytesOf(part.png));
  return { classes, maps: stacked(png, png.height / height) };
}
