// What the policy answered to each held-out prompt before PPO and after it, side by side.

import { get } from './api.js';
import { byId, debounced, h, integer, number, visible } from './dom.js';
import { List, PAGE, bringIntoSight, pair } from './list.js';

const SORTS = [
  ['id', true, 'in order'],
  ['gain', false, 'most gained'], ['gain', true, 'most lost'],
  ['gold_gain', false, 'most gold gained'], ['gold_gain', true, 'most gold lost'],
  ['after', false, 'highest score after'], ['after', true, 'lowest score after'],
  ['before', false, 'highest score before'], ['before', true, 'lowest score before'],
];

/** One number, or how it went from one to the other. */
const change = (before, after) => (after === undefined || after === null ? number(before, 3) : `${number(before, 3)} → ${number(after, 3)}`);

export class Evaluation {
  constructor() {
    this.element = byId('evaluation');
    const ask = debounced(() => this.refresh(), 250);
    this.search = h('input', { id: 'evaluation-search', type: 'search', placeholder: 'text in prompt or response', oninput: ask });
    this.sort = h('select', { id: 'evaluation-sort', onchange: () => this.refresh() },
      SORTS.map(([, , name], idx) => h('option', { value: idx }, name)));
    this.list = new List('pair', 'Held-out prompts', {
      fill: (row) => this.#row(row),
      choose: async ({ id }, isPointed) => {
        await this.open(id);
        if (isPointed) bringIntoSight(this.detail);
      },
    });
    this.count = h('p', { class: 'muted count', role: 'status' });
    this.detail = h('div', { class: 'detail', 'aria-live': 'off' });
    this.element.append(
      h('form', { class: 'tools', role: 'search', onsubmit: (event) => event.preventDefault() },
        pair('evaluation-search', 'Search', this.search),
        pair('evaluation-sort', 'Sort', this.sort)),
      h('div', { class: 'split' },
        h('div', { class: 'side' }, h('div', { class: 'count-line' }, this.count), this.list.element),
        this.detail));
  }

  begin(run) {
    for (const option of this.sort.options) option.hidden = option.textContent.includes('gold') && !run.settings?.has_gold;
    this.isWhole = false;
    if (run.root === this.root) return;
    this.root = run.root;
    this.opened = null;
    this.detail.replaceChildren(h('p', { class: 'empty' }, 'Choose a prompt to read both responses.'));
  }

  /** Asks as long as there is nothing from after PPO: nobody tells when that is written. */
  draw() {
    if (!this.element.hidden && !this.isWhole) this.refresh();
  }

  async refresh() {
    const asked = (this.asked = {});
    const [sort, ascending] = SORTS[Number(this.sort.value) || 0];
    const query = { sort, ascending, search: this.search.value.trim(), limit: PAGE };
    try {
      const { total, rows, has_after: hasAfter } = await get('evaluation', query);
      if (asked !== this.asked) return;
      this.isWhole = hasAfter;
      this.count.textContent = `${integer(total)} held-out prompt${total === 1 ? '' : 's'}${hasAfter ? '' : ', of which none is answered by the trained policy yet'}`;
      this.list.show(total, rows, (offset) => get('evaluation', { ...query, offset }).then((page) => page.rows));
    } catch (error) {
      this.count.textContent = error.message;
    }
  }

  #row({ id, prompt, response, before, after }) {
    return [
      h('div', { class: 'row-head' },
        h('strong', {}, change(before.score, after?.score)),
        before.gold === null ? null : h('span', {}, `gold ${change(before.gold, after?.gold)}`),
        h('span', { class: 'right' }, `prompt ${integer(id)}`)),
      h('p', { class: 'row-text', dir: 'auto' }, h('span', { class: 'muted' }, visible(prompt.slice(-40))), visible(response.slice(0, 160))),
    ];
  }

  async open(id) {
    const opened = (this.opened = id);
    const { before, after } = await get(`evaluation/${id}`);
    if (opened !== this.opened) return;
    const head = (name, { score, gold, kl, n_tokens: nTokens, finish }) => {
      const goldText = gold === undefined ? '' : `, gold ${number(gold, 3)}`;
      const ended = finish === 'end' ? 'ended by itself' : 'ended by its length';
      return h('h3', {}, `${name}: score ${number(score, 3)}${goldText}, KL ${number(kl, 3)}, ${integer(nTokens)} tokens, ${ended}`);
    };
    const text = ({ response }) => h('p', { class: 'differs', dir: 'auto' }, visible(response));
    this.detail.replaceChildren(
      h('h2', {}, `Held-out prompt ${integer(id)}`),
      h('p', { class: 'prompt', dir: 'auto' }, visible(before.prompt)),
      h('div', { class: 'aligned', tabindex: 0, role: 'region', 'aria-label': 'Responses before and after PPO' },
        head('Before', before),
        after ? head('After', after) : h('h3', {}, 'After'),
        text(before),
        after ? text(after) : h('p', { class: 'muted' }, 'PPO has not ended.')));
    this.detail.scrollTop = 0;
  }
}
