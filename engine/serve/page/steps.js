// How the maps came about: tile by tile, iteration by iteration, what was erased and the maps so far.
import { byId, make, percent } from './dom.js';
import { paintHeat, paintMask } from './maps.js';
import { bytesOf, decodePng } from './png.js';

const ERASED = [20, 20, 24, 225];

/** Fill the section with the steps of an answer; hides it where there are none. */
export function showSteps(answer, photo) {
  const section = byId('trace');
  section.hidden = !answer.steps?.tiles.length;
  if (section.hidden) return;
  const names = new Map(answer.maps.map((map) => [map.index, map.name]));
  const { tiles } = answer.steps;
  let [tile, drawing] = [0, 0];
  const iteration = make('input', { type: 'range', id: 'iteration', min: 1, value: 1, oninput: () => show() });
  const words = make('output', { for: 'iteration' });
  const panels = make('div', { class: 'panels' });
  const buttons = tiles.map((one, k) => make(
    'button', { type: 'button', 'data-tile': k, onclick: () => choose(k) }, tileName(one, k, tiles.length, answer),
  ));

  function choose(k) {
    tile = k;
    buttons.forEach((button, at) => button.setAttribute('aria-pressed', at === k));
    iteration.max = tiles[k].iterations.length;
    iteration.value = iteration.max;
    iteration.disabled = iteration.max === '1';
    show();
  }

  async function show() {
    const turn = ++drawing;
    const { box, takes, iterations } = tiles[tile];
    const at = Number(iteration.value) - 1;
    const step = iterations[at];
    words.value = `${at + 1} of ${iterations.length}: ${percent(step.erased_share)} % newly erased`;
    const [mask, ...maps] = await Promise.all([step.mask, ...step.maps].map((png) => decodePng(bytesOf(png))));
    if (turn !== drawing) return; // moved on meanwhile
    const erased = panel(photo, box, 'Erased so far');
    paintMask(erased.over, mask.data, mask.width, mask.height, ERASED);
    const classes = maps.length === answer.maps.length ? answer.maps.map((map) => map.index) : takes;
    const drawn = maps.map((map, k) => {
      const one = panel(photo, box, `${names.get(classes[k]) ?? `class ${classes[k]}`}, so far`);
      paintHeat(one.over, map.data, map.width, map.height, 0.8);
      return one.figure;
    });
    panels.replaceChildren(erased.figure, ...drawn);
    panels.dataset.shows = `${tile}/${at}`;
  }

  section.replaceChildren(
    make('h2', {}, 'Step by step'),
    make(
      'div', { class: 'stepper' },
      make('div', { class: 'chips', role: 'group', 'aria-label': 'Tiles' }, ...buttons),
      make('label', { class: 'field' }, make('span', { class: 'name' }, 'Iteration ', words), iteration),
    ),
    panels,
  );
  choose(0);
}

function tileName({ box: [y0, x0, y1, x1], whole }, k, count, { width, height }) {
  if (whole) return count > 1 ? `whole ${k + 1}` : 'whole photo';
  const row = y0 === 0 && y1 < height ? 'top' : y1 === height && y0 > 0 ? 'bottom' : 'full height';
  const column = x0 === 0 && x1 < width ? 'left' : x1 === width && x0 > 0 ? 'right' : 'full width';
  return `${count > 4 ? `${k + 1}: ` : ''}${row} ${column}`;
}

/** A figure of the photo's part with a canvas over it. */
function panel(photo, [y0, x0, y1, x1], name) {
  const [width, height] = [x1 - x0, y1 - y0];
  const under = make('canvas', { 'aria-hidden': 'true', width, height });
  under.getContext('2d').drawImage(photo, x0, y0, width, height, 0, 0, width, height);
  const over = make('canvas', { role: 'img', 'aria-label': name });
  const figure = make(
    'figure', {}, make('figcaption', {}, make('span', {}, name)),
    make('div', { class: 'stack', style: { '--ratio': `${width} / ${height}` } }, under, over),
  );
  return { figure, over };
}
