// The list of rollouts, and the one that is read.

import { get, ofRound, post } from './api.js';
import { Comparison } from './compare.js';
import { byId, debounced, h, integer, number, visible } from './dom.js';
import { List, MOST_ROWS, PAGE, bringIntoSight, pair } from './list.js';
import { Tokens } from './tokens.js';

const SORTS = [
  ['id', false, 'newest first'], ['id', true, 'oldest first'],
  ['score', false, 'highest score'], ['score', true, 'lowest score'],
  ['gold', false, 'highest gold score'], ['gold', true, 'lowest gold score'],
  ['kl', false, 'highest KL'], ['kl', true, 'lowest KL'],
  ['n_tokens', false, 'longest'], ['n_tokens', true, 'shortest'],
];

/**
 * The rollouts of a prompt that one is compared with: the first, and those next to it. All of a prompt's may be more than
 * are read at once.
 */
async function besides(id, promptId) {
  const of = { prompt_id: promptId, sort: 'id' };
  const parts = await Promise.all([
    get('rollouts', { ...of, ascending: true, limit: 100 }),
    get('rollouts', { ...of, up_to_id: id, limit: 200 }),
    get('rollouts', { ...of, after_id: id, ascending: true, limit: 200 }),
  ]);
  const rows = new Map(parts.flatMap((part) => part.rows).map((row) => [row.id, row]));
  return [...rows.values()].sort((one, other) => one.id - other.id);
}

export class Rollouts {
  constructor() {
    this.element = byId('rollouts');
    this.total = 0;
    this.#filters();
    this.list = new List('row', 'Rollouts', {
      fill: (row) => this.#row(row),
      choose: async ({ id }, isPointed) => {
        await this.open(id);
        if (isPointed) bringIntoSight(this.detail);
      },
    });
    this.count = h('p', { class: 'muted count', role: 'status' });
    this.fresh = h('button', { type: 'button', class: 'fresh', hidden: true, onclick: () => this.refresh() });
    this.detail = h('div', { class: 'detail', 'aria-live': 'off' });
    this.element.append(this.filters,
      h('div', { class: 'split' },
        h('div', { class: 'side' }, h('div', { class: 'count-line' }, this.count, this.fresh), this.list.element),
        this.detail));
    this.scheduled = debounced(() => this.#countFresh(), 700);
  }

  #filters() {
    const ask = debounced(() => this.refresh(), 250);
    this.search = h('input', { id: 'search', type: 'search', placeholder: 'text in prompt or response', oninput: ask });
    this.sort = h('select', { id: 'sort', onchange: () => this.refresh() },
      SORTS.map(([, , name], idx) => h('option', { value: idx }, name)));
    const version = (id, label) => h('input', { id, type: 'number', min: 0, step: 1, 'aria-label': label, oninput: ask });
    this.from = version('from-version', 'From version');
    this.to = version('to-version', 'To version');
    this.prompt = version('prompt-id', 'Number of the prompt');
    this.filters = h('form', { class: 'tools', role: 'search', onsubmit: (event) => event.preventDefault() },
      pair('search', 'Search', this.search),
      pair('sort', 'Sort', this.sort),
      pair('from-version', 'Versions', this.from, h('span', { 'aria-hidden': 'true' }, '–'), this.to),
      pair('prompt-id', 'Prompt', this.prompt));
  }

  begin(run) {
    for (const option of this.sort.options) option.hidden = option.textContent.includes('gold') && !run.settings?.has_gold;
    this.last = run.last?.[0] ?? 0;
    this.canAskPeople = run.can_ask_people;
    if (run.root !== this.root) {
      this.root = run.root;
      this.opened = null;
      this.detail.replaceChildren(h('p', { class: 'empty' }, 'Choose a rollout to read it.'));
    }
    this.refresh();
  }

  #query() {
    const [sort, ascending] = SORTS[Number(this.sort.value) || 0];
    return {
      sort, ascending, search: this.search.value.trim(),
      from_version: this.from.value, to_version: this.to.value, prompt_id: this.prompt.value,
    };
  }

  /** Asks anew, from the top. */
  async refresh() {
    const asked = (this.asked = { query: this.#query(), newest: null });
    this.fresh.hidden = true;
    try {
      const [all, first] = await Promise.all([
        get('rollouts', { limit: 1 }),
        get('rollouts', { ...asked.query, limit: PAGE }),
      ]);
      if (asked !== this.asked) return;
      asked.newest = all.rows[0]?.id ?? 0;
      this.total = first.total;
      this.#tellCount();
      // What came since the list was asked for is not in it: rows stay where they are.
      const rest = { ...asked.query, limit: PAGE, up_to_id: asked.newest };
      this.list.show(first.total, first.rows, (offset) => get('rollouts', { ...rest, offset }).then(({ rows }) => rows));
    } catch (error) {
      this.count.textContent = error.message;
    }
  }

  #tellCount() {
    const shown = Math.min(this.total, MOST_ROWS);
    const cut = shown < this.total ? `, the first ${integer(shown)} here` : '';
    const short = this.search.value.trim();
    const beginnings = short && [...short].length < 3 ? ' (under three letters: looked for in what the list shows)' : '';
    this.count.textContent = `${integer(this.total)} rollout${this.total === 1 ? '' : 's'}${cut}${beginnings}`;
  }

  /** An update is done: new rollouts are told of, and wait. */
  updated() {
    this.scheduled();
  }

  async #countFresh() {
    const asked = this.asked;
    if (!asked || asked.newest === null) return;
    if (this.total === 0) {
      this.refresh();
      return;
    }
    const { sort: _, ascending: __, ...filter } = asked.query;
    const { total } = await get('rollouts', { ...filter, after_id: asked.newest, limit: 0 });
    if (asked !== this.asked) return;
    this.fresh.hidden = total === 0;
    this.fresh.textContent = `${integer(total)} new`;
  }

  draw() {
    this.list.draw();
  }

  #row(row) {
    return [
      h('div', { class: 'row-head' },
        h('strong', {}, number(row.score, 3)),
        row.gold !== null ? h('span', {}, `gold ${number(row.gold, 3)}`) : null,
        h('span', {}, `KL ${number(row.kl, 3)}`),
        h('span', {}, `${integer(row.n_tokens)} tokens`),
        h('span', { class: 'right' }, `v${row.version}`)),
      h('p', { class: 'row-text', dir: 'auto' },
        h('span', { class: 'muted' }, visible(row.prompt.slice(-40))), visible(row.response.slice(0, 160))),
    ];
  }

  async open(id) {
    const opened = (this.opened = id);
    const record = await get(`rollouts/${id}`);
    if (opened !== this.opened) return;
    const compare = h('button', { type: 'button', onclick: () => this.#compare(id, record) }, 'Compare with another version');
    const asked = h('span', { class: 'muted asked', role: 'status' });
    const ask = this.canAskPeople
      ? h('button', { type: 'button', id: 'ask-people', onclick: () => this.#askPeople(id, ask, asked) }, 'Ask people')
      : null;
    const fact = (name, value) => h('div', {}, h('dt', {}, name), h('dd', {}, value));
    const versions = [...new Set(record.versions)];
    this.detail.replaceChildren(
      h('h2', {}, `Prompt ${record.prompt_id}, sample ${record.sample_idx}`),
      h('dl', { class: 'facts' },
        fact('trained on at', `v${record.version}`),
        fact('sampled by', versions.length ? versions.map((version) => `v${version}`).join(', ') : '–'),
        fact('score', number(record.score)),
        record.gold === undefined ? [] : fact('gold', number(record.gold)),
        fact('KL', `${number(record.kl)} nats`),
        // Records from before these were kept have neither.
        record.kl_penalty === 0 && record.reward === 0
          ? []
          : [fact('KL penalty', number(record.kl_penalty)), fact('reward', number(record.reward))],
        fact('tokens', integer(record.response_tokens.length)),
        fact('ended', record.finish === 'end' ? 'by itself' : 'by its length')),
      h('div', { class: 'tools' }, compare, ask, asked),
      new Tokens(record).element);
    this.detail.scrollTop = 0;
  }

  /** Makes a ranking task of the prompt's responses. */
  async #askPeople(id, button, told) {
    button.disabled = true;
    try {
      const { n_responses: n, is_new: isNew } = await post(ofRound(`rollouts/${id}/label`), {});
      told.textContent = isNew ? `${n} responses to this prompt are people’s next task.` : 'People have this task already.';
    } catch (error) {
      told.textContent = error.message;
      button.disabled = false;
    }
  }

  async #compare(id, record) {
    const rows = await besides(id, record.prompt_id);
    if (id !== this.opened) return;
    this.detail.replaceChildren(new Comparison(record, id, rows, () => this.open(id)).element);
    this.detail.scrollTop = 0;
  }
}
