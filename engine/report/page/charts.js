// The figures above the images: runs, differences, curves, classes.
import { count, draw, make, percent, points } from './dom.js';

export const runColour = (run) => ({ '--colour': `var(--run-${run % 6})` });

/** One card for each run, and one for each further run's difference from the first. */
export function summaryCards(data) {
  return [
    ...data.runs.map((run, k) => runCard(run, k)),
    ...data.differences.filter((d) => d.sets.all).map((d) => differenceCard(d, data.runs)),
  ];
}

function runCard(run, k) {
  const card = make('div', { class: 'card run', style: runColour(k) }, make('h2', {}, run.name));
  if (run.about) card.append(make('p', { class: 'small faint' }, run.about));
  if (run.miou === undefined) return card;
  const often = run.frequent;
  card.append(
    make('p', { class: 'figure' }, percent(run.miou), make('small', {}, run.kind === 'maps' ? '% best mIoU' : '% mIoU')),
    make(
      'dl', {},
      ...pair('95 % interval', interval(run.interval)),
      ...(run.kind === 'maps' ? pair('at threshold', (run.threshold / 100).toFixed(2)) : []),
      ...pair('averaged over', count(run.labels, 'label')),
      ...(often ? pair(`classes in ≥ ${often.least} images`, `${percent(often.miou)} %`) : []),
    ),
  );
  return card;
}

const pair = (name, value) => (value ? [make('div', {}, make('dt', {}, name), make('dd', {}, value))] : []);
const interval = (found) => found && `${percent(found[0])} to ${percent(found[1])}`;

function differenceCard(difference, runs) {
  const { all, frequent } = difference.sets;
  return make(
    'div', { class: 'card run', style: runColour(difference.run) },
    make('h2', {}, runs[difference.run].name, make('span', { class: 'faint' }, ` − ${runs[0].name}`)),
    make('p', { class: 'small faint' }, verdict(all)),
    make('p', { class: 'figure' }, points(all.gain), make('small', {}, 'points of mIoU')),
    all.interval && whisker(all),
    make(
      'dl', {},
      ...pair('95 % interval', all.interval && ends(all)),
      ...(frequent ? pair(`classes in ≥ ${runs[0].frequent.least} images`, spread(frequent)) : []),
    ),
  );
}

const ends = ({ interval: [low, high] }) => `${points(low)} to ${points(high)}`;
const spread = (d) => (d.interval ? `${points(d.gain)} (${ends(d)})` : points(d.gain));

function verdict({ interval }) {
  if (!interval) return 'without an interval';
  return interval[0] > 0 || interval[1] < 0 ? 'beyond chance over these images' : 'not told apart from chance';
}

/** The interval as a line with the difference as a dot; zero in the middle of the strip. */
function whisker({ gain, interval: [low, high] }) {
  const reach = Math.max(Math.abs(low), Math.abs(high), Math.abs(gain), 0.005) * 1.1;
  const x = (value) => 100 + (100 * value) / reach;
  return draw(
    'svg', { class: 'whisker', viewBox: '0 0 200 26', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    draw('line', { class: 'zero', x1: 100, x2: 100, y1: 1, y2: 25 }),
    draw('line', { x1: x(low), x2: x(high), y1: 13, y2: 13 }),
    draw('line', { x1: x(low), x2: x(low), y1: 8, y2: 18 }),
    draw('line', { x1: x(high), x2: x(high), y1: 8, y2: 18 }),
    draw('line', { class: 'dot', x1: x(gain), x2: x(gain), y1: 5, y2: 21 }),
  );
}

const [W, H, LEFT, BOTTOM, TOP] = [620, 330, 38, 34, 10];

/** mIoU against background threshold of every run; pointing at it tells the values there. */
export function curveCard(runs) {
  const scored = runs.map((run, k) => ({ ...run, k })).filter((run) => run.curve);
  const top = Math.max(0.1, Math.ceil(10 * Math.max(...scored.flatMap((run) => run.curve)) + 0.2) / 10);
  const x = (step) => LEFT + ((W - LEFT - 8) * step) / 99;
  const y = (value) => H - BOTTOM - ((H - BOTTOM - TOP) * value) / top;
  const legend = make('p', { class: 'legend', 'aria-live': 'off' });
  const cursor = draw('line', { class: 'cursor', y1: TOP, y2: H - BOTTOM, visibility: 'hidden' });
  const tell = (step) => {
    const at = (run) => step ?? run.threshold;
    legend.replaceChildren(...scored.map((run) => make(
      'span', { style: runColour(run.k) }, `${run.name}: ${percent(run.curve[at(run)])} % at ${(at(run) / 100).toFixed(2)}`,
    )));
    cursor.setAttribute('visibility', step === null ? 'hidden' : 'visible');
    if (step !== null) ['x1', 'x2'].forEach((name) => cursor.setAttribute(name, x(step)));
  };
  const words = scored.map((run) => `${run.name}: best ${percent(run.miou)} % at ${(run.threshold / 100).toFixed(2)}`);
  const svg = draw(
    'svg', { class: 'chart', viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': `Mean IoU against background threshold. ${words.join('; ')}` },
    ...Array.from({ length: Math.round(top * 10) + 1 }, (_, k) => k / 10).flatMap((value) => [
      draw('line', { class: 'grid', x1: LEFT, x2: W - 8, y1: y(value), y2: y(value) }),
      draw('text', { x: LEFT - 6, y: y(value) + 4, 'text-anchor': 'end' }, percent(value, 0)),
    ]),
    ...[0, 20, 40, 60, 80].map((step) => draw('text', { x: x(step), y: H - BOTTOM + 16, 'text-anchor': 'middle' }, (step / 100).toFixed(1))),
    draw('text', { x: (LEFT + W) / 2, y: H - 3, 'text-anchor': 'middle' }, 'background threshold'),
    cursor,
    ...scored.map((run) => draw('path', { class: 'curve', style: runColour(run.k), d: `M${run.curve.map((v, i) => `${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join('L')}` })),
    ...scored.map((run) => draw('circle', { class: 'best', style: runColour(run.k), cx: x(run.threshold), cy: y(run.miou), r: 5 })),
  );
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    const step = Math.round((((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - 8) * 99);
    tell(Math.min(99, Math.max(0, step)));
  });
  svg.addEventListener('pointerleave', () => tell(null));
  tell(null);
  return make('div', { class: 'card' }, make('h2', {}, 'Mean IoU (%) against background threshold'), svg, legend, groupTable(scored));
}

function groupTable(runs) {
  const names = ['1', '2', '3+'].filter((name) => runs.some((run) => run.groups.some((g) => g.classes === name)));
  if (!names.length) return null;
  const of = (run, name) => run.groups.find((g) => g.classes === name);
  const images = (name) => of(runs.find((run) => of(run, name)), name).images;
  return make(
    'table', { class: 'table' },
    make('thead', {}, make(
      'tr', {}, make('th', { scope: 'col' }, 'Images with'),
      ...names.map((name) => make('th', { scope: 'col' }, `${name} ${name === '1' ? 'class' : 'classes'} (${images(name)})`)),
    )),
    make('tbody', {}, ...runs.map((run) => make(
      'tr', {}, make('th', { scope: 'row' }, run.name), ...names.map((name) => make('td', {}, percent(of(run, name)?.miou))),
    ))),
  );
}

/** IoU of every label with ground truth, all runs side by side; a class's name shows its images. */
export function classCard(data, onClass) {
  const runs = data.runs.map((run, k) => ({ ...run, k })).filter((run) => run.iou);
  const names = ['background', ...data.classes];
  const rows = names.map((name, label) => ({ name, label })).filter(({ label }) => runs.some((run) => run.iou[label] !== null));
  const body = make('tbody');
  const order = (byIou) => {
    const value = ({ label }) => Math.max(...runs.map((run) => run.iou[label] ?? -1));
    const sorted = byIou ? [...rows].sort((a, b) => value(b) - value(a)) : rows;
    body.replaceChildren(...sorted.map(({ name, label }) => make(
      'tr', {},
      make('th', { scope: 'row' }, label ? make('button', { type: 'button', title: 'show its images', onclick: () => onClass(label - 1) }, name) : name,
        make('span', { class: 'faint' }, ` ${runs[0].imagesWith[label]}`)),
      make('td', {}, ...runs.map((run) => make(
        'div', { class: 'bar', style: { ...runColour(run.k), '--share': `${100 * (run.iou[label] ?? 0)}%` }, title: run.name },
        make('i'), make('b', {}, percent(run.iou[label])),
      ))),
    )));
    toggle.setAttribute('aria-pressed', byIou);
  };
  const toggle = make('button', { type: 'button', class: 'small', onclick: () => order(toggle.getAttribute('aria-pressed') !== 'true') }, 'Best first');
  order(false);
  return make(
    'div', { class: 'card' },
    make('div', { class: 'heading' }, make('h2', {}, 'IoU (%) by class'), toggle),
    make('div', { class: 'bars', tabindex: 0, role: 'region', 'aria-label': 'IoU by class' }, make(
      'table', {},
      make('thead', {}, make('tr', {}, make('th', { scope: 'col' }, 'class, images'), make('th', { scope: 'col' }, 'each run at its best threshold'))),
      body,
    )),
  );
}
