// One prompt's responses by two versions, side by side and aligned token by token.

import { get } from './api.js';
import { h, integer, number, visible } from './dom.js';
import { textsOf } from './tokens.js';

/** Cells of the table of common subsequences; longer pairs are shown unaligned. */
const MOST_CELLS = 16_000_000;

/**
 * Cuts two sequences into parts that are the same and parts that are not: [isSame, nOfFirst, nOfSecond] each, by their
 * longest common subsequence.
 */
export function align(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let [n, m] = [a.length, b.length];
  while (n > start && m > start && a[n - 1] === b[m - 1]) {
    n -= 1;
    m -= 1;
  }
  const parts = [];
  const add = (isSame, nA, nB) => {
    if (nA === 0 && nB === 0) return;
    const last = parts.at(-1);
    if (last && last[0] === isSame) {
      last[1] += nA;
      last[2] += nB;
    } else {
      parts.push([isSame, nA, nB]);
    }
  };
  add(true, start, start);
  const [height, width] = [n - start, m - start];
  if (height * width > MOST_CELLS) {
    add(false, height, width);
  } else {
    const stride = width + 1;
    const longest = new Uint16Array((height + 1) * stride);
    for (let i = height - 1; i >= 0; i -= 1) {
      for (let j = width - 1; j >= 0; j -= 1) {
        longest[i * stride + j] = a[start + i] === b[start + j]
          ? longest[(i + 1) * stride + j + 1] + 1
          : Math.max(longest[(i + 1) * stride + j], longest[i * stride + j + 1]);
      }
    }
    let [i, j] = [0, 0];
    while (i < height && j < width) {
      if (a[start + i] === b[start + j]) {
        add(true, 1, 1);
        i += 1;
        j += 1;
      } else if (longest[(i + 1) * stride + j] >= longest[i * stride + j + 1]) {
        add(false, 1, 0);
        i += 1;
      } else {
        add(false, 0, 1);
        j += 1;
      }
    }
    add(false, height - i, width - j);
  }
  add(true, a.length - n, b.length - m);
  return parts;
}

export class Comparison {
  constructor(record, id, rows, back) {
    this.rows = rows;
    this.prompt = record.prompt;
    const choice = (name, chosen) => {
      const select = h('select', { id: name, onchange: () => this.#load() },
        rows.map((row) => h('option', { value: row.id, selected: row.id === chosen },
          `v${row.version}, sample ${row.sample_idx}: score ${number(row.score, 3)}`)));
      select.value = chosen;
      return select;
    };
    const other = rows.find((row) => row.version !== record.version) ?? rows.find((row) => row.id !== id) ?? rows[0];
    const [first, second] = [other.id, id].sort((one, two) => one - two);
    this.first = choice('compare-first', first);
    this.second = choice('compare-second', second);
    this.table = h('div', { class: 'aligned', tabindex: 0, role: 'region', 'aria-label': 'Two responses, aligned' });
    this.note = h('p', { class: 'muted', role: 'status' });
    this.element = h('div', {},
      h('h2', {}, `Prompt ${record.prompt_id} by two versions`),
      h('p', { class: 'prompt', dir: 'auto' }, visible(record.prompt)),
      h('div', { class: 'tools' },
        h('label', { for: 'compare-first' }, 'Left'), this.first,
        h('label', { for: 'compare-second' }, 'Right'), this.second,
        h('button', { type: 'button', onclick: back }, 'Back')),
      this.note, this.table);
    if (rows.length < 2) this.note.textContent = 'This prompt was recorded once.';
    this.#load();
  }

  async #load() {
    const asked = (this.asked = {});
    const [a, b] = await Promise.all([this.first, this.second].map((select) => get(`rollouts/${select.value}`)));
    if (asked !== this.asked) return;
    const parts = align(a.response_tokens, b.response_tokens);
    const nSame = parts.reduce((sum, [isSame, n]) => sum + (isSame ? n : 0), 0);
    this.note.textContent =
      `${integer(nSame)} tokens are the same, of ${integer(a.response_tokens.length)} and ${integer(b.response_tokens.length)}.`;
    const head = (record) => h('h3', {}, `v${record.version}: score ${number(record.score, 3)}, KL ${number(record.kl, 3)}`);
    const cells = [head(a), head(b)];
    const [textsA, textsB] = [textsOf(a), textsOf(b)];
    if (textsA && textsB) {
      let [i, j] = [0, 0];
      for (const [isSame, n, m] of parts) {
        const cell = (texts) => h('p', { class: isSame ? 'same' : 'differs', dir: 'auto' }, visible(texts.join('')));
        cells.push(cell(textsA.slice(i, i + n)), cell(textsB.slice(j, j + m)));
        i += n;
        j += m;
      }
    } else {
      this.note.textContent += ' The text of each token is not known of both, so they stand side by side as they are.';
      cells.push(...[a, b].map((record) => h('p', { class: 'differs', dir: 'auto' }, visible(record.response))));
    }
    this.table.replaceChildren(...cells);
  }
}
