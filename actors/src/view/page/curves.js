// All charts, with one axis, one smoothing and one zoom for all of them.

import { get } from './api.js';
import { catalogue } from './catalogue.js';
import { Chart } from './chart.js';
import { byId, debounced, duration, h, integer, number } from './dom.js';

const AXES = { update: 0, tokens: 1, time: 2, labels: 3 };
/** Share of the width that is left free beside a line of many updates at one place, so that the frame does not cut it. */
const ROOM = 0.04;
/** Points that may be added to a curve before it is gathered into buckets anew. */
const MOST_POINTS = 6000;

export class Curves {
  constructor() {
    this.element = byId('curves');
    this.axis = 'update';
    this.smoothing = 0;
    this.range = null;
    this.charts = [];
    this.columns = [];
    this.before = [0, 0, 0];
    /** What is asked of the server and not answered yet. */
    this.asked = null;
    this.redraw = debounced(() => this.draw(), 120);
    this.#tools();
    this.grid = h('div', { class: 'groups' });
    this.empty = h('p', { class: 'empty' }, 'No update is done yet.');
    this.element.append(this.tools, this.empty, this.grid);
    new ResizeObserver(() => this.redraw()).observe(this.grid);
  }

  #tools() {
    this.axisSelect = h('select', { id: 'axis', onchange: () => this.#ask({ axis: this.axisSelect.value }) },
      h('option', { value: 'update' }, 'updates'),
      h('option', { value: 'tokens' }, 'tokens trained on'),
      h('option', { value: 'time' }, 'time'),
      h('option', { value: 'labels' }, 'labels'));
    const smoothing = h('input', { id: 'smoothing', type: 'range', min: 0, max: 0.99, step: 0.01, value: 0 });
    const told = h('output', { for: 'smoothing' }, 'none');
    smoothing.addEventListener('input', () => {
      const weight = Number(smoothing.value);
      told.textContent = weight > 0 ? number(weight, 2) : 'none';
      this.smoothing = weight;
      this.reload();
    });
    this.whole = h('button', { type: 'button', hidden: true, onclick: () => this.#ask({ range: null }) }, 'Show all');
    this.tools = h('div', { class: 'tools' },
      h('span', { class: 'pair' }, h('label', { for: 'axis' }, 'Over'), this.axisSelect),
      h('span', { class: 'pair' }, h('label', { for: 'smoothing' }, 'Smoothing'), smoothing, told),
      this.whole,
      h('p', { class: 'muted hint' }, 'Drag over a chart to look closer, double-click for all. What was recorded stays visible under a smooth line.'));
    this.reload = debounced(() => this.#load(), 150);
  }

  /** Begins anew with what is known of a run, or of all rounds up to it. */
  async begin(run) {
    const of = run.all ? 'all rounds' : run.root;
    if (of !== this.of) {
      this.of = of;
      this.range = null;
      this.whole.hidden = true;
    }
    this.columns = (run.all ?? run).columns;
    // Where the updates go on that are told of.
    this.before = run.all?.before ?? [0, 0, 0];
    this.timeless = run.settings?.mode === 'deterministic';
    this.#offer();
    this.#build();
    await this.#load();
  }

  /** Lets one choose among the axes that there are numbers for. */
  #offer() {
    const why = {
      time: this.timeless && 'a deterministic run keeps none',
      labels: !this.columns.includes('n_labels') && 'nothing tells how many',
    };
    for (const option of this.axisSelect.options) {
      const reason = why[option.value];
      option.disabled = Boolean(reason);
      option.textContent = option.textContent.replace(/ \(.*/, '') + (reason ? ` (${reason})` : '');
    }
    if (!why[this.axis]) return;
    this.axis = this.axisSelect.value = 'update';
    this.range = null;
    this.whole.hidden = true;
  }

  #build() {
    this.charts = [];
    const settings = {
      zoom: (from, to) => this.#ask({ range: from === undefined ? null : [from, to] }),
      format: (value) => this.#place(value),
    };
    const group = ({ title, charts }) => {
      const made = charts.map((chart) => new Chart(chart, settings));
      this.charts.push(...made);
      return h('section', { class: 'group', 'aria-label': title },
        h('h2', {}, title), h('div', { class: 'charts' }, made.map((chart) => chart.element)));
    };
    this.grid.replaceChildren(...catalogue(this.columns).map(group));
    this.empty.hidden = this.charts.length > 0;
  }

  #place(value) {
    if (this.axis === 'time') return duration(value);
    return this.axis === 'tokens' ? number(value, 3) : integer(value);
  }

  #ask({ axis = this.axis, range = axis === this.axis ? this.range : null }) {
    this.axis = axis;
    this.range = range;
    this.whole.hidden = range === null;
    this.#load();
  }

  async #load() {
    if (this.columns.length === 0) return;
    const asked = (this.asked = {});
    const curves = await get('curves', {
      columns: this.charts.flatMap((chart) => chart.series.map(({ key }) => key)).join(','),
      axis: this.axis,
      from: this.range?.[0],
      to: this.range?.[1],
      n_buckets: 400,
      smoothing: this.smoothing,
    });
    // An answer to an older question is no answer.
    if (asked !== this.asked) return;
    this.asked = null;
    this.charts.forEach((chart) => chart.show(curves, this.range, this.axis === 'labels' ? ROOM : 0));
  }

  draw() {
    if (this.element.hidden) return;
    this.charts.forEach((chart) => chart.draw());
  }

  /** An update is done. */
  updated({ at, numbers }) {
    const isNew = Object.keys(numbers).some((name) => name !== 'version' && !this.columns.includes(name));
    if (isNew) {
      this.columns = [...new Set([...this.columns, ...Object.keys(numbers).filter((name) => name !== 'version')])];
      this.#offer();
      this.#build();
      this.reload();
      return;
    }
    // Whoever looks at a part is not disturbed; a smooth line is the server's to make.
    if (this.range !== null) return;
    // An answer that is on its way may be without it, and takes the place of what is drawn.
    if (this.asked || this.smoothing > 0 || this.charts.some((chart) => chart.nPoints > MOST_POINTS)) {
      this.reload();
      return;
    }
    // Labels do not go on counting from round to round: they are what the reward model has learnt from, of all rounds.
    const places = at.map((place, axis) => (place === null ? null : place + (this.before[axis] ?? 0)));
    this.charts.forEach((chart) => chart.push(places[AXES[this.axis]], places[AXES.update], numbers));
    this.redraw();
  }
}
