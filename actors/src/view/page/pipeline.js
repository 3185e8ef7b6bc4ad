// The flow as it is: who works, how busy, what waits where, and how old the tokens are.

import { byId, duration, h, integer, number, svg, words } from './dom.js';

/** Where each role stands, side by side or one above another. */
const WIDE = {
  size: [1000, 330],
  box: [150, 84],
  at: {
    prompt_source: [20, 30], generator: [225, 30], reference_scorer: [430, 30], reward_scorer: [635, 30],
    experience_buffer: [840, 30], learner: [635, 210], pretrain_mixer: [840, 210], recorder: [430, 210],
  },
};
const NARROW = {
  size: [340, 860],
  box: [150, 84],
  at: {
    prompt_source: [95, 10], generator: [95, 130], reference_scorer: [95, 250], reward_scorer: [95, 370],
    experience_buffer: [95, 490], learner: [10, 630], pretrain_mixer: [180, 630], recorder: [10, 760],
  },
};
const HOPS = [
  ['prompt_source', 'generator', 'generator', 'prompts'],
  ['generator', 'reference_scorer', 'reference_scorer', 'rollouts'],
  ['reference_scorer', 'reward_scorer', 'reward_scorer', 'rollouts'],
  ['reward_scorer', 'experience_buffer', 'experience_buffer', 'rollouts'],
  ['experience_buffer', 'learner', 'learner', 'batches'],
  ['pretrain_mixer', 'learner', 'pretrain_mixer', 'texts'],
  ['learner', 'recorder', 'recorder', 'updates'],
];
const NARROW_PX = 640;
/** A role that has failed, or is about to be started again, is what its group shows. */
const WORST_FIRST = ['failed', 'restarting', 'paused', 'starting', 'running', 'finished'];

export class Pipeline {
  constructor() {
    this.element = byId('pipeline');
    this.drawing = h('div', { class: 'drawing' });
    this.tickets = h('div', { class: 'tickets' });
    this.rows = h('tbody');
    this.empty = h('p', { class: 'empty' }, 'PPO has not begun.');
    this.note = h('p', { class: 'muted' });
    this.content = h('div', { hidden: true },
      this.note, this.drawing, this.tickets,
      h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Every actor' },
        h('table', {},
          h('caption', {}, 'Every actor'),
          h('thead', {}, h('tr', {},
            ['Actor', 'State', 'Busy', 'Waiting', 'Items', 'Tokens', 'Restarts'].map((name) => h('th', { scope: 'col' }, name)))),
          this.rows)));
    this.element.append(this.empty, this.content);
    this.numbers = {};
    this.busy = new Map();
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  begin(run) {
    this.previous = null;
    this.numbers = run.numbers;
    this.busy.clear();
    this.status = null;
    this.empty.hidden = false;
    this.content.hidden = true;
    this.show(run.status, run.is_live);
  }

  /** An update's numbers: what fits in a queue, and how old the tokens were. */
  updated({ numbers }) {
    this.numbers = numbers;
  }

  show(status, isLive) {
    if (!status) return;
    // Busy since the last look where there was one, else since the start.
    const since = this.previous && this.previous.elapsed_s < status.elapsed_s ? this.previous : null;
    for (const { role, busy_s: busyS } of status.roles) {
      const key = `${role.role}-${role.idx}`;
      const before = since?.roles.find((other) => `${other.role.role}-${other.role.idx}` === key);
      const [worked, passed] = before
        ? [busyS - before.busy_s, status.elapsed_s - since.elapsed_s]
        : [busyS, status.elapsed_s];
      const share = passed > 0 ? Math.max(0, Math.min(1, worked / passed)) : 0;
      const last = this.busy.get(key);
      // Half a second says little: a running mean says more.
      this.busy.set(key, before && last !== undefined ? last * 0.7 + share * 0.3 : share);
    }
    this.previous = status;
    this.status = status;
    this.isLive = isLive;
    this.draw();
  }

  draw() {
    if (!this.status || this.element.hidden) return;
    this.empty.hidden = true;
    this.content.hidden = false;
    this.note.textContent = this.isLive
      ? `As of now, ${duration(this.status.elapsed_s)} after PPO began.`
      : `As it was last, ${duration(this.status.elapsed_s)} after PPO began.`;
    const layout = this.element.clientWidth < NARROW_PX ? NARROW : WIDE;
    this.drawing.replaceChildren(this.#drawing(layout));
    this.#showTickets();
    this.#showRows();
  }

  #group(role) {
    const actors = this.status.roles.filter((line) => line.role.role === role);
    if (actors.length === 0) return null;
    const state = WORST_FIRST.find((worst) => actors.some((actor) => actor.state === worst)) ?? 'starting';
    const busy = actors.reduce((sum, actor) => sum + this.busy.get(`${role}-${actor.role.idx}`), 0) / actors.length;
    return { actors, state, busy, waiting: actors[0].queue_depth };
  }

  #drawing({ size: [width, height], box: [boxWidth, boxHeight], at }) {
    const picture = svg('svg', { viewBox: `0 0 ${width} ${height}`, class: 'flow', role: 'img' });
    const told = [];
    const place = (role) => ({ x: at[role][0], y: at[role][1], cx: at[role][0] + boxWidth / 2, cy: at[role][1] + boxHeight / 2 });
    picture.append(svg('defs', {}, svg('marker', {
      id: 'arrow', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto-start-reverse',
    }, svg('path', { d: 'M0 0L8 4L0 8z' }))));
    for (const [from, to, inbox, unit] of HOPS) {
      const [here, there] = [this.#group(from), this.#group(to)];
      if (!here || !there) continue;
      picture.append(this.#hop(place(from), place(to), boxWidth, boxHeight, inbox, unit));
    }
    picture.append(this.#weights(place('learner'), place('generator'), boxWidth, boxHeight, width < 500));
    for (const role of Object.keys(at)) {
      const group = this.#group(role);
      if (!group) continue;
      const { x, y } = place(role);
      const name = group.actors.length > 1 ? `${words(role)} ×${group.actors.length}` : words(role);
      told.push(`${name}: ${group.state}, busy ${Math.round(group.busy * 100)} %`);
      picture.append(svg('g', { class: `role ${group.state}`, transform: `translate(${x} ${y})` },
        svg('rect', { width: boxWidth, height: boxHeight, rx: 8 }),
        svg('text', { class: 'role-name', x: 12, y: 24 }, name),
        svg('circle', { class: 'lamp', cx: 17, cy: 43, r: 4 }),
        svg('text', { class: 'role-state', x: 27, y: 47 }, group.state),
        svg('text', { class: 'role-busy', x: boxWidth - 12, y: 47, 'text-anchor': 'end' }, `${Math.round(group.busy * 100)} %`),
        svg('rect', { class: 'bar-back', x: 12, y: 60, width: boxWidth - 24, height: 8, rx: 4 }),
        svg('rect', { class: 'bar', x: 12, y: 60, width: (boxWidth - 24) * group.busy, height: 8, rx: 4 })));
    }
    picture.setAttribute('aria-label', `The flow. ${told.join('. ')}`);
    return picture;
  }

  #hop(from, to, boxWidth, boxHeight, inbox, unit) {
    let path;
    let label;
    if (Math.abs(from.cy - to.cy) < 1) {
      const right = to.x > from.x;
      const [start, end] = [right ? from.x + boxWidth : from.x, right ? to.x : to.x + boxWidth];
      path = `M${start} ${from.cy}H${end}`;
      label = [(start + end) / 2, from.cy - 10, 'middle'];
    } else {
      const middle = (from.y + boxHeight + to.y) / 2;
      const end = Math.abs(from.cx - to.cx) < 1 ? to.cx : to.cx + 30;
      path = `M${from.cx} ${from.y + boxHeight}V${middle}H${end}V${to.y}`;
      label = [Math.max(from.cx, end) + 10, middle + 4, 'start'];
    }
    const waiting = this.#group(inbox)?.waiting ?? 0;
    const fits = this.numbers[`flow/queues/${inbox}/capacity`];
    const text = fits ? `${waiting}/${fits}` : `${waiting}`;
    const isFull = fits > 0 && waiting >= fits;
    return svg('g', { class: isFull ? 'hop full' : 'hop' },
      svg('title', {}, `${waiting}${fits ? ` of ${fits}` : ''} ${unit} wait`),
      svg('path', { d: path, 'marker-end': 'url(#arrow)' }),
      svg('text', { x: label[0], y: label[1], 'text-anchor': label[2] }, text));
  }

  /** The newest weights on their way back. */
  #weights(learner, generator, boxWidth, boxHeight, isNarrow) {
    const stale = this.numbers['batch/staleness/mean'];
    const label = stale === undefined ? `v${this.status.version}` : `v${this.status.version} · staleness ${number(stale, 2)}`;
    if (isNarrow) {
      const x = 20;
      return svg('g', { class: 'hop weights' },
        svg('path', { d: `M${learner.x + 20} ${learner.y}L${x + 10} ${generator.cy}L${generator.x} ${generator.cy}`, 'marker-end': 'url(#arrow)' }),
        svg('text', { x: 8, y: generator.cy - 26 }, `v${this.status.version}`),
        stale === undefined ? null : svg('text', { x: 8, y: generator.cy - 10 }, `stale ${number(stale, 2)}`));
    }
    const y = learner.y - 34;
    return svg('g', { class: 'hop weights' },
      svg('path', {
        d: `M${learner.x + 30} ${learner.y}L${learner.x + 30} ${y}L${generator.cx} ${y}L${generator.cx} ${generator.y + boxHeight}`,
        'marker-end': 'url(#arrow)',
      }),
      svg('text', { x: generator.cx + 12, y: y - 8 }, `weights ${label}`));
  }

  #showTickets() {
    const { tickets, n_issued_again: again } = this.status;
    const states = [
      ['trained', tickets.trained, 'trained'],
      ['dropped', tickets.dropped, 'dropped'],
      ['in flight', tickets.in_flight, 'in-flight'],
    ];
    const total = Math.max(1, tickets.issued);
    const reasons = Object.entries(tickets.dropped_by_reason ?? {}).map(([reason, n]) => `${integer(n)} ${words(reason)}`);
    const bar = svg('svg', { class: 'ticket-bar', viewBox: '0 0 1000 14', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
    let from = 0;
    for (const [, n, kind] of states) {
      bar.append(svg('rect', { class: kind, x: (1000 * from) / total, y: 0, width: (1000 * n) / total, height: 14 }));
      from += n;
    }
    this.tickets.replaceChildren(
      h('h2', {}, 'Tickets'),
      h('p', {}, `${integer(tickets.issued)} issued = `,
        states.map(([name, n, kind], idx) => h('span', { class: `key ${kind}` }, `${idx ? ' + ' : ''}${integer(n)} ${name}`)),
        reasons.length ? ` (dropped: ${reasons.join(', ')})` : '',
        again ? `; ${integer(again)} issued again after a failure` : ''),
      bar);
  }

  #showRows() {
    const row = (line) => {
      const name = `${words(line.role.role)} ${line.role.idx}`;
      const busy = this.busy.get(`${line.role.role}-${line.role.idx}`);
      const cells = [line.state, `${Math.round(busy * 100)} %`, integer(line.queue_depth), integer(line.n_items), integer(line.n_tokens), integer(line.n_restarts)];
      return h('tr', {}, h('th', { scope: 'row' }, name), cells.map((text) => h('td', {}, text)));
    };
    this.rows.replaceChildren(...this.status.roles.map(row));
  }
}
