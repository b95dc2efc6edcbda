// One image: photo, ground truth and every run's maps under a threshold that moves.
import { make, percent } from './dom.js';
import { cssColour, labelsOf, meanIou, onlyShown, paintHeat, paintLabels, strongest } from './maps.js';
import { runColour } from './charts.js';

export class Detail {
  /**
   * @param {HTMLElement} place
   * @param {object} data the page's
   * @param {import('./pictures.js').Pictures} pictures
   * @param {(steps: number) => void} onStep to another image
   */
  constructor(place, data, pictures, onStep) {
    Object.assign(this, { data, pictures, number: null, image: null, off: new Set(), own: Boolean(data.truth), view: 'labels' });
    this.title = make('h2', { 'aria-live': 'polite' });
    this.chips = make('div', { class: 'chips', role: 'group', 'aria-label': 'Classes shown' });
    this.panels = make('div', { class: 'panels' });
    this.slider = make('input', { type: 'range', id: 'threshold', min: 0, max: 99, value: this.start(), oninput: () => this.moved() });
    this.level = make('output', { for: 'threshold' });
    this.opacity = make('input', { type: 'range', id: 'opacity', min: 0, max: 100, value: 70, oninput: () => this.paint() });
    this.best = make('button', { type: 'button', id: 'own', onclick: () => this.useOwn(!this.own) }, 'Best of each run');
    this.best.hidden = !data.truth;
    this.views = ['labels', 'maps'].map((name) => make(
      'button', { type: 'button', 'data-view': name, onclick: () => this.look(name) }, name === 'labels' ? 'Labels' : 'Maps',
    ));
    place.replaceChildren(
      make(
        'div', { class: 'heading' }, this.title,
        make('button', { type: 'button', 'aria-label': 'Previous image', title: 'Previous image (←)', onclick: () => onStep(-1) }, '←'),
        make('button', { type: 'button', 'aria-label': 'Next image', title: 'Next image (→)', onclick: () => onStep(1) }, '→'),
      ),
      make(
        'div', { class: 'controls' },
        make('div', { class: 'joined', role: 'group', 'aria-label': 'Show' }, ...this.views),
        make('label', { class: 'field' }, make('span', { class: 'name' }, 'Background threshold', this.level), this.slider),
        this.best,
        make('label', { class: 'field' }, make('span', {}, 'Opacity'), this.opacity),
      ),
      this.chips,
      this.panels,
      make('p', { class: 'hint small faint' }, make('kbd', {}, '←'), ' ', make('kbd', {}, '→'), ' other images · ', make('kbd', {}, '/'), ' search · IoU here is that of the pictures shown, which are reduced; the list has it at full size'),
    );
    this.look('labels');
    this.useOwn(this.own);
  }

  start() {
    return this.data.runs.find((run) => run.threshold !== undefined && run.kind === 'maps')?.threshold ?? 30;
  }

  /** The threshold of a run, in hundredths. */
  step(run) {
    return this.own ? this.data.runs[run].threshold : Number(this.slider.value);
  }

  moved() {
    this.useOwn(false);
  }

  useOwn(own) {
    this.own = own;
    this.best.setAttribute('aria-pressed', own);
    this.level.value = own ? 'best of each' : (this.slider.value / 100).toFixed(2);
    this.paint();
  }

  look(view) {
    this.view = view;
    this.views.forEach((button) => button.setAttribute('aria-pressed', button.dataset.view === view));
    this.paint();
  }

  /** Show an image; where another is asked for meanwhile, that one. */
  async show(number) {
    this.number = number;
    this.title.textContent = this.data.images.ids[number];
    let image;
    try {
      image = await this.pictures.image(number);
    } catch (error) {
      image = { error: error.message };
    }
    if (this.number !== number) return;
    this.image = image;
    this.off.clear();
    this.fill();
  }

  fill() {
    if (this.image.error) {
      this.chips.replaceChildren();
      this.panels.replaceChildren(make('p', { class: 'bad' }, this.image.error));
      this.drawn = [];
      return;
    }
    this.chips.replaceChildren(...this.classes().map((c) => this.chip(c)));
    this.drawn = this.data.runs.map((run, k) => this.runPanel(run, k));
    this.truthPanel = this.image.truth ? this.panel('Ground truth', null) : null;
    this.panels.replaceChildren(
      ...[this.panel('Photo', null), this.truthPanel, ...this.drawn].filter(Boolean).map((panel) => panel.figure),
    );
    this.paint();
  }

  classes() {
    const found = new Set(this.image.runs.flatMap((run) => run?.classes ?? []));
    if (this.image.truth && !this.image.truth.error) {
      this.image.truth.forEach((value) => { if (value && value !== 255) found.add(value - 1); });
    }
    return [...found].sort((a, b) => a - b);
  }

  chip(c) {
    const button = make('button', {
      type: 'button', class: 'chip', 'aria-pressed': true, 'data-class': c, style: { '--swatch': cssColour(c + 1) },
      onclick: () => {
        if (!this.off.delete(c)) this.off.add(c);
        button.setAttribute('aria-pressed', !this.off.has(c));
        this.paint();
      },
    }, this.data.classes[c] ?? `class ${c}`);
    return button;
  }

  panel(name, run) {
    const { width, height, photo } = this.image;
    const canvas = make('canvas', { role: 'img', 'aria-label': name, 'data-panel': run ?? name });
    const value = make('span', { class: 'value' });
    const under = make('p', { class: 'under' });
    const figure = make(
      'figure', { style: run === null ? {} : runColour(run) },
      make('figcaption', {}, make('span', { title: name }, name), value),
      make('div', { class: 'stack', style: { '--ratio': `${width} / ${height}` } }, make('img', { src: photo, alt: '', class: run === null && name === 'Photo' ? null : 'plain' }), canvas),
      under,
    );
    return { figure, canvas, value, under };
  }

  runPanel(run, k) {
    const panel = this.panel(run.name, k);
    const found = this.image.runs[k];
    if (!found || found.error) {
      panel.under.textContent = found ? found.error : 'no maps of this image';
      panel.under.classList.add('bad');
    }
    return panel;
  }

  paint() {
    if (!this.image || this.image.error) return;
    const { width, height, truth, runs } = this.image;
    const opacity = this.opacity.value / 100;
    const shown = (c) => !this.off.has(c);
    if (this.truthPanel) {
      if (truth.error) this.truthPanel.under.textContent = truth.error;
      else paintLabels(this.truthPanel.canvas, onlyShown(truth, shown), width, height, opacity);
    }
    runs.forEach((run, k) => {
      if (!run || run.error) return;
      const panel = this.drawn[k];
      const { kind } = this.data.runs[k];
      const step = this.step(k);
      const labels = kind === 'labels'
        ? onlyShown(run.maps[0], shown)
        : labelsOf(run.maps, run.classes, step, shown, width * height);
      if (this.view === 'maps' && kind === 'maps') {
        paintHeat(panel.canvas, strongest(run.maps, run.classes, shown, width * height), width, height, opacity);
      } else {
        paintLabels(panel.canvas, labels, width, height, opacity);
      }
      const iou = truth && !truth.error ? meanIou(labels, onlyShown(truth, shown)) : null;
      panel.value.textContent = iou === null ? '' : `IoU ${percent(iou)}`;
      panel.under.textContent = kind === 'labels' ? 'labels' : `threshold ${(step / 100).toFixed(2)}`;
      panel.canvas.dataset.step = step;
    });
    this.panels.dataset.shows = this.number;
  }
}
