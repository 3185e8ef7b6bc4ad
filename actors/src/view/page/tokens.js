// A rollout token by token, coloured by a number; each number says which model computed it.

import { h, number, visible } from './dom.js';

/** Tokens in one block: blocks out of sight are not laid out. */
const BLOCK = 250;

const sum = (a, b) => a.map((value, idx) => value - b[idx]);

/** What tokens are coloured by: a name, the numbers, who computed them, and whether both signs mean something. */
function colourings(record) {
  const versions = [...new Set(record.versions)].map((version) => `v${version}`).join(', ');
  const sampled = `by the policy that sampled each token (${versions}), while it sampled`;
  const found = [{ name: 'log-probability', of: record.logprobs, by: sampled, isSigned: false }];
  const detail = record.tokens;
  if (!detail) return found;
  const reference = 'by the reference: the frozen SFT model (v0)';
  found.push(
    { name: 'reference log-probability', of: detail.ref_logprobs, by: reference, isSigned: false },
    {
      name: 'KL (k1)', of: sum(record.logprobs, detail.ref_logprobs), isSigned: true,
      by: `log-probability ${sampled}, less that ${reference}`,
    },
    { name: 'value', of: detail.values, by: `by the value model of v${detail.values_version}, before each token`, isSigned: true },
    {
      name: 'advantage', of: detail.advantages, isSigned: true,
      by: `from the scores, the KL penalty and the values of v${detail.values_version}, as the policy's loss used it`,
    },
  );
  return found;
}

/** How strong a colour is, from 0 to 1, over the largest of the numbers. */
const strength = (value, largest) => (largest > 0 ? Math.min(1, Math.abs(value) / largest) : 0);

/** The text of each token of the response; null where nobody knows it. */
export const textsOf = (record) => record.tokens?.response ?? record.texts ?? null;

/** What a rollout that was not recorded token by token lacks. */
function lack(record) {
  if (record.tokens) return null;
  const told = (text) => h('p', { class: 'muted' }, `This rollout was not recorded token by token (ppo.n_rollouts_in_detail): ${text}`);
  if (record.texts) return told('it has log-probabilities alone.');
  if (!record.logprobs?.length) return told('it has no colours.');
  return told('it has no colours, since the run’s tokenizer, which says where each token ends, is not found.');
}

export class Tokens {
  constructor(record) {
    this.record = record;
    this.colourings = colourings(record);
    this.text = h('div', { class: 'tokens', dir: 'auto', tabindex: 0, role: 'region', 'aria-label': 'Prompt and response' });
    this.readout = h('p', { class: 'readout', 'aria-live': 'polite' });
    this.by = h('p', { class: 'muted' });
    this.select = h('select', { id: 'colour', onchange: () => this.colour() },
      h('option', { value: '' }, 'nothing'),
      this.colourings.map(({ name }, idx) => h('option', { value: idx }, name)));
    this.pieces = textsOf(record);
    if (this.pieces?.join('') === record.response) {
      this.spans = [];
      this.#fill(record.prompt, this.pieces);
      this.select.value = '0';
    } else {
      this.text.append(h('span', { class: 'masked' }, visible(record.prompt)), h('span', {}, visible(record.response)));
      this.select.disabled = true;
    }
    this.element = h('div', {},
      h('div', { class: 'tools' }, h('label', { for: 'colour' }, 'Colour by'), this.select, lack(record)),
      this.by, this.text, this.readout);
    if (this.spans) {
      this.text.addEventListener('pointerover', (event) => this.#tell(event.target));
      this.text.addEventListener('keydown', (event) => this.#key(event));
      this.colour();
    }
  }

  #fill(promptText, pieces) {
    // The prompt is not trained on.
    this.text.append(h('span', { class: 'masked', title: 'the prompt: not trained on' }, visible(promptText)));
    for (let from = 0; from < pieces.length; from += BLOCK) {
      const block = h('span', { class: 'block' });
      pieces.slice(from, from + BLOCK).forEach((piece, place) => {
        const span = document.createElement('span');
        span.className = 'token';
        span.dataset.idx = from + place;
        span.append(...visible(piece, pieces[from + place - 1]));
        if (piece === '') span.dataset.mark = from + place === pieces.length - 1 && this.record.finish === 'end' ? '⏹' : '·';
        this.spans.push(span);
        block.append(span);
      });
      this.text.append(block);
    }
  }

  colour() {
    const chosen = this.colourings[this.select.value];
    this.by.textContent = chosen ? `Computed ${chosen.by}. The darker, the further from 0.${chosen.isSigned ? ' Blue is above 0, orange below.' : ''}` : '';
    const largest = chosen ? Math.max(...chosen.of.map((value) => (Number.isFinite(value) ? Math.abs(value) : 0)), 0) : 0;
    this.spans.forEach((span, idx) => {
      const value = chosen?.of[idx];
      const isNumber = Number.isFinite(value);
      span.classList.toggle('masked', Boolean(chosen) && !isNumber);
      span.classList.toggle('below', isNumber && chosen.isSigned && value < 0);
      span.style.setProperty('--strength', isNumber ? strength(value, largest).toFixed(3) : '0');
    });
  }

  #tell(target) {
    const idx = Number(target.closest('.token')?.dataset.idx);
    if (!Number.isInteger(idx)) return;
    this.marked = idx;
    const numbers = this.colourings.map(({ name, of }) => `${name} ${number(of[idx])}`);
    const piece = this.pieces[idx];
    this.readout.replaceChildren(...visible(
      `Token ${idx + 1} (${JSON.stringify(piece)}, id ${this.record.response_tokens[idx]}, sampled by v${this.record.versions[idx]}): ${numbers.join(' · ')}`));
  }

  #key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined || this.spans.length === 0) return;
    event.preventDefault();
    const idx = Math.max(0, Math.min(this.spans.length - 1, (this.marked ?? -1) + step));
    this.spans[this.marked]?.classList.remove('marked');
    this.spans[idx].classList.add('marked');
    this.spans[idx].scrollIntoView({ block: 'nearest' });
    this.#tell(this.spans[idx]);
  }
}
