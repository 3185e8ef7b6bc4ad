// One chart: raw lines, smooth lines over them, faded branches, and a mark that follows the pointer or the arrow keys.

import { h, integer, number, svg } from './dom.js';

const HEIGHT = 170;
const MARGIN = { top: 10, right: 12, bottom: 24, left: 52 };
const N_COLOURS = 8;

/** Runs of finite points; a gap ends one. */
function runs(line) {
  const found = [];
  let run = [];
  line.x.forEach((x, idx) => {
    const y = line.y[idx];
    if (y === null || y === undefined) {
      if (run.length) found.push(run);
      run = [];
    } else {
      run.push([x, y]);
    }
  });
  if (run.length) found.push(run);
  return found;
}

/** Round numbers over a range, about `n` of them. */
function ticks(from, to, n) {
  const span = to - from;
  if (!(span > 0)) return [from];
  const rough = span / n;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to + step * 1e-9; tick += step) {
    found.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  }
  return found;
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

/** What names a line's points: their updates, as several may lie at one place. */
const names = (line) => line?.updates ?? line?.x ?? [];

const tick = (value) => number(value, 3);

export class Chart {
  /** `zoom(from, to)` is called when a part is chosen, without arguments for the whole. */
  constructor({ title, caption, series }, { zoom, format }) {
    this.series = series;
    this.zoom = zoom;
    this.format = format;
    this.curves = {};
    this.marked = null;
    this.room = 0;
    this.plot = svg('svg', {
      class: 'plot', role: 'img', tabindex: 0, 'aria-label': title, height: HEIGHT,
    });
    this.readout = h('p', { class: 'readout', 'aria-live': 'off' });
    this.latest = h('span', { class: 'latest' });
    const legend = series.length > 1
      ? h('ul', { class: 'legend' }, series.map(({ name }, idx) => h('li', { class: `c${idx % N_COLOURS}` }, name)))
      : null;
    this.element = h('figure', { class: 'chart' },
      h('figcaption', {}, h('div', { class: 'chart-title' }, h('h3', {}, title), this.latest), h('p', { class: 'muted' }, caption)),
      this.plot, legend, this.readout);
    this.plot.addEventListener('pointermove', (event) => this.#hover(event));
    this.plot.addEventListener('pointerleave', () => this.#mark(null));
    this.plot.addEventListener('pointerdown', (event) => this.#begin(event));
    this.plot.addEventListener('pointerup', (event) => this.#end(event));
    this.plot.addEventListener('dblclick', () => this.zoom());
    this.plot.addEventListener('keydown', (event) => this.#key(event));
    this.plot.addEventListener('blur', () => this.#mark(null));
  }

  /** Shows these curves, by key, over this part of the axis, or over all of it with a share of the width free beside them. */
  show(curves, range, room = 0) {
    this.curves = curves;
    this.range = range;
    this.room = room;
    this.draw();
  }

  /** Adds an update's numbers at the end; `x` is null where nothing tells its place: a gap. */
  push(x, update, numbers) {
    for (const { key } of this.series) {
      const raw = this.curves[key]?.raw;
      // What was read a moment ago may have it already.
      if (!raw || update <= (names(raw).at(-1) ?? -Infinity) || (x === null && raw.x.length === 0)) continue;
      raw.x.push(x ?? raw.x.at(-1));
      raw.y.push(x !== null && Number.isFinite(numbers[key]) ? numbers[key] : null);
      raw.updates?.push(update);
    }
  }

  /** Points that there are to draw. */
  get nPoints() {
    return Math.max(0, ...this.series.map(({ key }) => this.curves[key]?.raw.x.length ?? 0));
  }

  draw() {
    const width = Math.max(220, this.element.clientWidth - 24 || 320);
    const own = this.series.map(({ key }) => this.curves[key]).filter(Boolean);
    const lines = own.flatMap((curve) => [curve.raw, ...curve.branches]);
    const ends = this.range ?? extent(lines.flatMap((line) => extent(line.x) ?? [])) ?? [0, 1];
    // What lies at one place stands in the middle.
    const free = ends[0] === ends[1] ? 0.5 : (ends[1] - ends[0]) * (this.range ? 0 : this.room);
    const xs = [ends[0] - free, ends[1] + free];
    const inside = (line) => line.y.filter((_, idx) => line.x[idx] >= xs[0] && line.x[idx] <= xs[1]);
    let ys = extent(lines.flatMap((line) => extent(inside(line)) ?? [])) ?? [0, 1];
    if (ys[0] === ys[1]) {
      const around = Math.abs(ys[0]) * 0.1 || 1;
      ys = [ys[0] - around, ys[1] + around];
    }
    const room = (ys[1] - ys[0]) * 0.04;
    ys = [ys[0] - room, ys[1] + room];
    const [left, right] = [MARGIN.left, width - MARGIN.right];
    const [top, bottom] = [MARGIN.top, HEIGHT - MARGIN.bottom];
    const span = xs[1] - xs[0];
    this.x = (value) => left + ((value - xs[0]) / span) * (right - left);
    this.y = (value) => bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (bottom - top);
    this.unx = (place) => xs[0] + ((place - left) / (right - left)) * span;
    this.plot.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
    this.plot.setAttribute('width', width);
    const grid = svg('g', { class: 'grid' });
    for (const value of ticks(ys[0], ys[1], 4)) {
      const y = this.y(value);
      grid.append(
        svg('line', { x1: left, x2: right, y1: y, y2: y }),
        svg('text', { x: left - 6, y: y + 4, 'text-anchor': 'end' }, tick(value)),
      );
    }
    for (const value of ticks(ends[0], ends[1], Math.max(2, Math.floor(width / 80)))) {
      grid.append(svg('text', { x: this.x(value), y: HEIGHT - 6, 'text-anchor': 'middle' }, this.format(value)));
    }
    const clip = svg('svg', { x: left, y: 0, width: right - left, height: HEIGHT, viewBox: `${left} 0 ${right - left} ${HEIGHT}` });
    this.series.forEach(({ key }, idx) => {
      const curve = this.curves[key];
      if (!curve) return;
      const colour = `c${idx % N_COLOURS}`;
      curve.branches.forEach((branch) => clip.append(this.#line(branch, `${colour} branch`)));
      clip.append(this.#line(curve.raw, curve.smooth ? `${colour} raw` : colour));
      if (curve.smooth) clip.append(this.#line(curve.smooth, colour));
    });
    this.cursor = svg('g', { class: 'cursor' });
    this.plot.replaceChildren(grid, clip, this.cursor);
    this.#tellLatest();
    if (this.marked !== null) this.#mark(this.marked);
  }

  #line(line, kind) {
    const group = svg('g', { class: `line ${kind}` });
    let path = '';
    for (const run of runs(line)) {
      if (run.every(([x, y]) => x === run[0][0] && y === run[0][1])) {
        group.append(svg('circle', { cx: this.x(run[0][0]), cy: this.y(run[0][1]), r: 2.2 }));
      } else {
        path += run.map(([x, y], idx) => `${idx ? 'L' : 'M'}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`).join('');
      }
    }
    if (path) group.append(svg('path', { d: path }));
    return group;
  }

  #tellLatest() {
    const curve = this.curves[this.series[0].key];
    const last = curve?.raw.y.at(-1);
    this.latest.textContent = curve ? number(last) : '';
    const told = this.series
      .map(({ name, key }) => `${name} ${number(this.curves[key]?.raw.y.at(-1))}`)
      .join(', ');
    this.plot.setAttribute('aria-label', `${this.element.querySelector('h3').textContent}: last ${told}`);
  }

  /** The point nearest to `x`; of several at one place that nearest to the height `top` on the screen. */
  #nearest(x, top) {
    const { x: xs, y: ys } = this.curves[this.series[0].key]?.raw ?? { x: [], y: [] };
    const height = (idx) => (Number.isFinite(ys[idx]) ? Math.abs(this.y(ys[idx]) - top) : Infinity);
    let best = -1;
    for (let idx = 0; idx < xs.length; idx += 1) {
      const nearer = best < 0 ? -1 : Math.abs(xs[idx] - x) - Math.abs(xs[best] - x);
      if (nearer < 0 || (nearer === 0 && height(idx) < height(best))) best = idx;
    }
    return best;
  }

  #place(event) {
    const box = this.plot.getBoundingClientRect();
    return event.clientX - box.left;
  }

  #hover(event) {
    if (!this.unx) return;
    const place = this.#place(event);
    if (this.dragFrom !== undefined) this.#select(this.dragFrom, place);
    this.#mark(this.#nearest(this.unx(place), event.clientY - this.plot.getBoundingClientRect().top));
  }

  #begin(event) {
    if (event.button === 0 && event.pointerType !== 'touch') this.dragFrom = this.#place(event);
  }

  #end(event) {
    const from = this.dragFrom;
    this.dragFrom = undefined;
    this.selection?.remove();
    const to = this.#place(event);
    if (from !== undefined && Math.abs(to - from) > 8) {
      this.zoom(...[this.unx(from), this.unx(to)].sort((a, b) => a - b));
    }
  }

  #select(from, to) {
    this.selection?.remove();
    this.selection = svg('rect', {
      class: 'selection', x: Math.min(from, to), y: MARGIN.top, width: Math.abs(to - from), height: HEIGHT - MARGIN.top - MARGIN.bottom,
    });
    this.plot.append(this.selection);
  }

  #key(event) {
    const n = this.curves[this.series[0].key]?.raw.x.length ?? 0;
    if (event.key === 'Escape') this.zoom();
    if (n === 0 || !['ArrowLeft', 'ArrowRight', 'Home', 'End'].includes(event.key)) return;
    event.preventDefault();
    const now = this.marked ?? n;
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: n - 1 }[event.key];
    this.readout.setAttribute('aria-live', 'polite');
    this.#mark(Math.max(0, Math.min(n - 1, next)));
  }

  #mark(idx) {
    this.marked = idx !== null && idx >= 0 ? idx : null;
    this.cursor?.replaceChildren();
    if (this.marked === null) {
      this.readout.textContent = '';
      this.readout.setAttribute('aria-live', 'off');
      return;
    }
    const { raw: first } = this.curves[this.series[0].key];
    const [x, marked] = [first.x[this.marked], names(first)[this.marked]];
    this.cursor.append(svg('line', { x1: this.x(x), x2: this.x(x), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
    const told = this.series.map(({ name, key }, series) => {
      const raw = this.curves[key]?.raw;
      const value = raw?.y[names(raw).indexOf(marked)];
      if (Number.isFinite(value)) {
        this.cursor.append(svg('circle', { class: `c${series % N_COLOURS}`, cx: this.x(x), cy: this.y(value), r: 3.5 }));
      }
      return `${this.series.length > 1 ? `${name} ` : ''}${value === null ? 'not finite' : number(value)}`;
    });
    const update = first.updates ? ` (update ${integer(marked)})` : '';
    this.readout.textContent = `${this.format(x)}${update}: ${told.join(' · ')}`;
  }
}
