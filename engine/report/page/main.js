// The report: what page it is, the filters, and moving from image to image.
import { byId, count, make, percent, points } from './dom.js';
import { Pictures } from './pictures.js';
import { classCard, curveCard, runColour, summaryCards } from './charts.js';
import { List } from './list.js';
import { Detail } from './detail.js';

const data = JSON.parse(byId('data').textContent);
const { ids, classes, iou } = data.images;
const pictures = new Pictures(data);
const several = data.runs.length > 1;

byId('about').textContent = [
  count(ids.length, 'image'),
  data.truth ? `${count(data.scored, 'image')} scored against ${data.truth.masks}` : 'no ground truth',
  `made ${data.created.slice(0, 16).replace('T', ' ')} UTC by infercam ${data.version}`,
].join(' · ');
byId('summary').append(...summaryCards(data));
const notes = [...data.notes, ...(data.failed ? [`${count(data.failed, 'picture')} could not be made; the image says why`] : [])];
if (notes.length) byId('notes').append(make('ul', {}, ...notes.map((note) => make('li', {}, note))));
if (data.truth) {
  byId('figures').append(curveCard(data.runs), classCard(data, (c) => {
    byId('by-class').value = c;
    apply();
    byId('images').scrollIntoView({ block: 'start' });
  }));
  byId('figures').hidden = false;
}

// -- the list -----------------------------------------------------------------------------------------------------

function thumbnail(number) {
  const image = make('img', { class: 'thumb', alt: '', loading: 'lazy', decoding: 'async', width: 60, height: 60 });
  const source = pictures.thumbnail(number);
  if (typeof source === 'string') image.src = source;
  else source.then((url) => { if (url) image.src = url; });
  return image;
}

function content(number) {
  const names = classes[number].map((c) => data.classes[c] ?? `class ${c}`);
  return [
    thumbnail(number),
    make('div', {}, make('div', { class: 'name', title: ids[number] }, ids[number]), make('div', { class: 'what' }, names.join(', ') || 'no class')),
    make('div', { class: 'ious' }, ...(data.truth ? iou[number].map((value, k) => make(
      'span', { style: runColour(k), title: data.runs[k].name }, percent(value),
    )) : [])),
  ];
}

const detail = new Detail(byId('detail'), data, pictures, step);
const list = new List(byId('list'), content, choose);

function choose(number) {
  list.choose(number);
  detail.show(number);
  history.replaceState(null, '', `#image=${encodeURIComponent(ids[number])}`);
}

function step(steps) {
  const to = list.next(steps);
  if (to !== null) choose(to);
}

// -- filters and order --------------------------------------------------------------------------------------------

const option = (value, text) => make('option', { value }, text);
const present = [...new Set(classes.flat())].sort((a, b) => a - b);
byId('by-class').append(option('', 'any class'), ...present.map((c) => option(c, data.classes[c] ?? `class ${c}`)));
byId('by-number').append(...[['', 'any number'], ['0', 'none'], ['1', '1'], ['2', '2'], ['3', '3 or more']].map(([v, t]) => option(v, t)));

const known = (value) => value !== null && value !== undefined;
const gain = (k) => (n) => (known(iou[n][k]) && known(iou[n][0]) ? iou[n][k] - iou[n][0] : null);
const ORDERS = {
  listed: ['as listed', null, 1],
  id: ['by id', null, 1],
};
if (data.truth) {
  data.runs.forEach((run, k) => {
    const of = several ? `, ${run.name}` : '';
    ORDERS[`worst-${k}`] = [`worst first${of}`, (n) => iou[n][k], 1];
    ORDERS[`best-${k}`] = [`best first${of}`, (n) => iou[n][k], -1];
  });
  data.runs.slice(1).forEach((run, at) => {
    ORDERS[`gain-${at + 1}`] = [`${run.name} gains most`, gain(at + 1), -1];
    ORDERS[`loss-${at + 1}`] = [`${run.name} loses most`, gain(at + 1), 1];
  });
}
byId('order').append(...Object.entries(ORDERS).map(([value, [text]]) => option(value, text)));
byId('order').value = data.truth ? 'worst-0' : 'listed';

function sorted(numbers) {
  const name = byId('order').value;
  const [, key, sign] = ORDERS[name];
  if (name === 'id') return numbers.sort((a, b) => (ids[a] < ids[b] ? -1 : 1));
  if (!key) return numbers;
  const keys = new Map(numbers.map((n) => [n, key(n)]));
  const last = (n) => (known(keys.get(n)) ? 0 : 1); // what is not scored comes last either way
  return numbers.sort((a, b) => last(a) - last(b) || sign * (keys.get(a) - keys.get(b)) || a - b);
}

function apply() {
  const text = byId('search').value.trim().toLowerCase();
  const [wanted, number] = [byId('by-class').value, byId('by-number').value];
  const matches = (n) => (!text || ids[n].toLowerCase().includes(text))
    && (wanted === '' || classes[n].includes(Number(wanted)))
    && (number === '' || Math.min(classes[n].length, 3) === Number(number));
  const numbers = sorted(ids.map((_, n) => n).filter(matches));
  const mean = (k) => {
    const values = numbers.map((n) => iou[n][k]).filter(known);
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  };
  list.show(numbers);
  byId('found').textContent = numbers.length === ids.length
    ? count(ids.length, 'image')
    : `${numbers.length.toLocaleString('en-GB')} of ${count(ids.length, 'image')}`;
  byId('found').title = data.truth
    ? data.runs.map((run, k) => `mean IoU per image, ${run.name}: ${percent(mean(k))}${k ? ` (${points(mean(k) - mean(0))})` : ''}`).join('\n')
    : '';
  if (numbers.length) choose(numbers.includes(list.chosen) ? list.chosen : numbers[0]);
}

for (const id of ['by-class', 'by-number', 'order']) {
  byId(id).addEventListener('change', () => {
    if (id === 'order') list.chosen = null; // a new order is looked at from its start
    apply();
  });
}
byId('search').addEventListener('input', apply);

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.('input, select, textarea');
  if (event.key === '/' && !typing) {
    event.preventDefault();
    byId('search').focus();
  } else if (!typing && (event.key === 'ArrowLeft' || event.key === 'ArrowRight')) {
    event.preventDefault();
    step(event.key === 'ArrowLeft' ? -1 : 1);
  }
});

const asked = new URLSearchParams(location.hash.slice(1)).get('image');
apply();
if (asked !== null && ids.includes(asked)) choose(ids.indexOf(asked));
