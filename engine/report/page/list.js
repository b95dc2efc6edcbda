// A list of any length: only the rows in sight are in the page.
import { make } from './dom.js';

const ROW = 76; // pixels, as in report.css
const SPARE = 4; // rows beyond the edges

export class List {
  /**
   * @param {HTMLElement} view the scrolling element, a listbox
   * @param {(item: number) => Node[]} content what a row shows
   * @param {(item: number) => void} onChoose
   */
  constructor(view, content, onChoose) {
    Object.assign(this, { view, content, onChoose, items: [], chosen: null, rows: new Map() });
    this.room = make('div', { class: 'room', role: 'presentation' });
    this.empty = make('p', { class: 'empty' }, 'No image matches.');
    view.append(this.room, this.empty);
    view.addEventListener('scroll', () => this.draw(), { passive: true });
    view.addEventListener('keydown', (event) => this.onKey(event));
    new ResizeObserver(() => this.draw()).observe(view);
  }

  /** Show these items, in this order. */
  show(items) {
    this.items = items;
    this.rows.forEach((row) => row.remove());
    this.rows.clear();
    this.room.style.height = `${items.length * ROW}px`;
    this.empty.hidden = items.length > 0;
    this.view.scrollTop = 0;
    this.draw();
  }

  /** Mark an item as chosen and bring it into sight. */
  choose(item) {
    this.chosen = item;
    const at = this.items.indexOf(item);
    if (at >= 0) {
      const [top, bottom] = [at * ROW, (at + 1) * ROW - this.view.clientHeight];
      if (this.view.scrollTop > top) this.view.scrollTop = top;
      else if (this.view.scrollTop < bottom) this.view.scrollTop = bottom;
    }
    this.draw();
  }

  /** The item `steps` further on than the chosen one; null at the end. */
  next(steps) {
    const at = this.items.indexOf(this.chosen);
    const to = at < 0 ? 0 : Math.min(this.items.length - 1, Math.max(0, at + steps));
    return to === at || !this.items.length ? null : this.items[to];
  }

  draw() {
    const first = Math.max(0, Math.floor(this.view.scrollTop / ROW) - SPARE);
    const last = Math.min(this.items.length, Math.ceil((this.view.scrollTop + this.view.clientHeight) / ROW) + SPARE);
    for (const [at, row] of this.rows) {
      if (at < first || at >= last) {
        row.remove();
        this.rows.delete(at);
      }
    }
    for (let at = first; at < last; at++) {
      if (!this.rows.has(at)) this.rows.set(at, this.room.appendChild(this.row(at)));
      const chosen = this.items[at] === this.chosen;
      this.rows.get(at).setAttribute('aria-selected', chosen);
      if (chosen) this.view.setAttribute('aria-activedescendant', this.rows.get(at).id);
    }
  }

  row(at) {
    const item = this.items[at];
    return make(
      'div',
      {
        class: 'row', role: 'option', id: `row-${item}`, 'aria-setsize': this.items.length, 'aria-posinset': at + 1,
        style: { top: `${at * ROW}px` }, onclick: () => this.onChoose(item),
      },
      ...this.content(item),
    );
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.view.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (steps === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const item = this.next(steps);
    if (item !== null) this.onChoose(item);
  }
}
