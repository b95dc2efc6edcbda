// The photo under its maps: labels or activations, tiles and centres of mass.
import { byId, draw, make } from './dom.js';
import { cssColour, labelsOf, paintHeat, paintLabels, strongest } from './maps.js';

export class Viewer {
  constructor() {
    this.answer = null;
    this.off = new Set();
    this.view = 'maps';
    this.canvas = make('canvas', { role: 'img', 'aria-label': 'Maps over the photo', id: 'overlay' });
    this.photo = make('img', { alt: '' });
    this.lines = draw('svg', { 'aria-hidden': 'true', preserveAspectRatio: 'none' });
    this.stack = make('div', { class: 'stack' }, this.photo, this.canvas, this.lines);
    byId('viewer').replaceChildren(this.stack);
    this.chips = make('div', { class: 'chips', role: 'group', 'aria-label': 'Classes shown' });
    this.level = make('output', { for: 'threshold' });
    this.threshold = make('input', { type: 'range', id: 'threshold', min: 0, max: 99, value: 30, oninput: () => this.look('labels') });
    this.opacity = make('input', { type: 'range', id: 'opacity', min: 0, max: 100, value: 75, oninput: () => this.paint() });
    this.views = ['maps', 'labels'].map((name) => make(
      'button', { type: 'button', 'data-view': name, onclick: () => this.look(name) }, name === 'labels' ? 'Labels' : 'Maps',
    ));
    this.tiles = this.toggle('tiles', 'Split lines and centres');
    byId('controls').replaceChildren(
      make('div', { class: 'joined', role: 'group', 'aria-label': 'Show' }, ...this.views),
      make('label', { class: 'field' }, make('span', { class: 'name' }, 'Background threshold', this.level), this.threshold),
      make('label', { class: 'field' }, make('span', {}, 'Opacity'), this.opacity),
      this.tiles,
      this.chips,
    );
    this.look(this.view);
  }

  toggle(id, text) {
    const button = make('button', {
      type: 'button', id, 'aria-pressed': true, onclick: () => {
        button.setAttribute('aria-pressed', button.getAttribute('aria-pressed') !== 'true');
        this.mark();
      },
    }, text);
    return button;
  }

  look(view) {
    this.view = view;
    this.views.forEach((button) => button.setAttribute('aria-pressed', button.dataset.view === view));
    this.paint();
  }

  /** @param {object} answer of POST /maps, with `levels`: its maps decoded. @param {string} url the photo's */
  show(answer, url) {
    this.answer = answer;
    this.off.clear();
    this.photo.src = url;
    this.stack.style.setProperty('--ratio', `${answer.width} / ${answer.height}`);
    this.stack.style.setProperty('--wide', answer.width / answer.height);
    this.chips.replaceChildren(...answer.maps.map((map) => this.chip(map)));
    if (!answer.maps.length) this.chips.append(make('p', { class: 'faint small' }, 'No class reaches that probability: lower it, or choose classes.'));
    this.tiles.hidden = !answer.steps;
    this.mark();
    this.paint();
  }

  chip(map) {
    const button = make('button', {
      type: 'button', class: 'chip', 'aria-pressed': true, style: { '--swatch': cssColour(map.index + 1) },
      onclick: () => {
        if (!this.off.delete(map.index)) this.off.add(map.index);
        button.setAttribute('aria-pressed', !this.off.has(map.index));
        this.paint();
      },
    }, map.name);
    return button;
  }

  /** The tiles' edges and the classes' centres of mass. */
  mark() {
    const { steps, width, height, maps } = this.answer ?? {};
    this.lines.replaceChildren();
    if (!steps || this.tiles.getAttribute('aria-pressed') !== 'true') return;
    this.lines.setAttribute('viewBox', `0 0 ${width} ${height}`);
    for (const { box: [y0, x0, y1, x1], whole } of steps.tiles) {
      if (!whole) this.lines.append(draw('rect', { class: 'tile', x: x0, y: y0, width: x1 - x0, height: y1 - y0 }));
    }
    const radius = Math.max(width, height) / 90;
    steps.centres.forEach((centre, k) => {
      if (!centre || !maps[k]) return;
      this.lines.append(draw('circle', { class: 'centre', cx: centre[1], cy: centre[0], r: radius, fill: cssColour(maps[k].index + 1) }));
    });
  }

  paint() {
    this.level.value = (this.threshold.value / 100).toFixed(2);
    if (!this.answer) return;
    const { width, height, levels, maps } = this.answer;
    const order = maps.map((_, k) => k).sort((a, b) => maps[a].index - maps[b].index);
    const [planes, classes] = [order.map((k) => levels[k]), order.map((k) => maps[k].index)];
    const shown = (c) => !this.off.has(c);
    const opacity = this.opacity.value / 100;
    if (this.view === 'labels') {
      paintLabels(this.canvas, labelsOf(planes, classes, Number(this.threshold.value), shown, width * height), width, height, opacity);
    } else {
      paintHeat(this.canvas, strongest(planes, classes, shown, width * height), width, height, opacity);
    }
    this.photo.classList.toggle('plain', this.view === 'labels');
  }
}
