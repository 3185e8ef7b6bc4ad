// A long list: only the rows in sight are there, and what comes anew never moves what is being read.

import { h } from './dom.js';

const ROW_PX = 68;
/** Rows that are asked for at once. */
export const PAGE = 100;
/** Beyond this a browser can't scroll: a search or a narrower choice leads further. */
export const MOST_ROWS = 400000;

/** A field with its label, which stay together. */
export const pair = (id, label, ...fields) => h('span', { class: 'pair' }, h('label', { for: id }, label), fields);

export class List {
  /**
   * Ids of rows begin with `name`. `fill(row)` gives what stands in one; `choose(row, isPointed)` is told of the one that
   * is chosen, and whether by pointing at it.
   */
  constructor(name, label, { fill, choose }) {
    this.name = name;
    this.fill = fill;
    this.chosen = choose;
    this.pages = new Map();
    this.total = 0;
    this.selected = null;
    this.canvas = h('div', { class: 'canvas', role: 'presentation' });
    this.element = h('div', {
      class: 'list', role: 'listbox', tabindex: 0, 'aria-label': label, onscroll: () => this.#scrolled(), onkeydown: (event) => this.#key(event),
    }, this.canvas);
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** Begins anew, from the top, with the first page; `load(offset)` gives the others. */
  show(total, rows, load) {
    this.total = Math.min(total, MOST_ROWS);
    this.pages = new Map([[0, rows]]);
    this.load = load;
    this.selected = null;
    this.element.scrollTop = 0;
    this.draw();
  }

  draw() {
    // Out of sight.
    if (this.element.clientHeight === 0) return;
    this.canvas.style.height = `${this.total * ROW_PX}px`;
    this.#scrolled();
  }

  #scrolled() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / ROW_PX) - 5);
    const last = Math.min(this.total, Math.ceil((this.element.scrollTop + this.element.clientHeight) / ROW_PX) + 5);
    const rows = [];
    for (let idx = first; idx < last; idx += 1) {
      const page = this.pages.get(Math.floor(idx / PAGE));
      if (page === undefined) this.#load(Math.floor(idx / PAGE));
      rows.push(this.#row(idx, page?.[idx % PAGE]));
    }
    this.canvas.replaceChildren(...rows);
    if (this.selected !== null && first <= this.selected && this.selected < last) {
      this.element.setAttribute('aria-activedescendant', `${this.name}-${this.selected}`);
    } else {
      this.element.removeAttribute('aria-activedescendant');
    }
  }

  async #load(page) {
    const pages = this.pages;
    pages.set(page, null);
    try {
      pages.set(page, await this.load(page * PAGE));
      // An answer to an older question is no answer.
      if (pages === this.pages) this.#scrolled();
    } catch {
      pages.delete(page);
    }
  }

  #row(idx, row) {
    const attributes = {
      id: `${this.name}-${idx}`, class: 'row', role: 'option', 'aria-selected': idx === this.selected ? 'true' : 'false',
      'aria-posinset': idx + 1, 'aria-setsize': this.total, onclick: () => this.#choose(idx, true),
    };
    const element = h('div', attributes, row ? this.fill(row) : h('p', { class: 'muted' }, '…'));
    element.style.transform = `translateY(${idx * ROW_PX}px)`;
    return element;
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / ROW_PX) - 1);
    const now = this.selected ?? -1;
    const next = {
      ArrowDown: now + 1, ArrowUp: now - 1, PageDown: now + page, PageUp: now - page, Home: 0, End: this.total - 1,
    }[event.key];
    if (next === undefined || this.total === 0) return;
    event.preventDefault();
    const idx = Math.max(0, Math.min(this.total - 1, next));
    const [top, bottom] = [idx * ROW_PX, (idx + 1) * ROW_PX];
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    if (bottom > this.element.scrollTop + this.element.clientHeight) this.element.scrollTop = bottom - this.element.clientHeight;
    this.#choose(idx, false);
  }

  #choose(idx, isPointed) {
    this.selected = idx;
    this.#scrolled();
    const row = this.pages.get(Math.floor(idx / PAGE))?.[idx % PAGE];
    if (row) this.chosen(row, isPointed);
  }
}

/** On a narrow screen what was chosen stands below the list. */
export function bringIntoSight(detail) {
  if (matchMedia('(max-width: 760px)').matches) detail.scrollIntoView({ block: 'start' });
}
