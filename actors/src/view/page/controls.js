// Commands to a run that goes on in the server's process.

import { post } from './api.js';
import { byId, h, number } from './dom.js';

const FIELDS = [
  ['kl_coef', 'KL coefficient', 'batch/kl_coef'],
  ['lr', "Policy's learning rate", 'train/lr'],
  ['value_lr', "Value model's learning rate", null],
];

export class Controls {
  constructor(tell) {
    this.tell = tell;
    this.element = byId('controls');
    this.settings = {};
    this.pause = h('button', { type: 'button', id: 'pause', onclick: () => this.#send(this.isPaused ? 'resume' : 'pause') }, 'Pause');
    this.checkpoint = h('button', { type: 'button', id: 'checkpoint', onclick: () => this.#send('checkpoint') }, 'Checkpoint now');
    this.change = h('button', { type: 'button', id: 'change', onclick: () => this.#open() }, 'Change settings…');
    this.element.append(this.pause, this.checkpoint, this.change);
    this.#dialog();
  }

  #dialog() {
    this.inputs = new Map();
    const fields = FIELDS.map(([key, label]) => {
      const input = h('input', { id: `new-${key}`, name: key, inputmode: 'decimal', autocomplete: 'off', 'aria-describedby': `now-${key}` });
      const now = h('span', { id: `now-${key}`, class: 'muted' });
      this.inputs.set(key, { input, now });
      return h('div', { class: 'field' }, h('label', { for: `new-${key}` }, label), input, now);
    });
    this.problem = h('p', { class: 'problem', role: 'alert' });
    this.dialog = h('dialog', { 'aria-labelledby': 'change-title' },
      h('form', { id: 'change-form', onsubmit: (event) => this.#submit(event) },
        h('h2', { id: 'change-title' }, 'Change settings'),
        h('p', {}, 'They hold from the next batch on. The journal has the update with which they begin, so that a replay comes to the same weights. An empty field changes nothing.'),
        fields, this.problem,
        h('div', { class: 'buttons' },
          h('button', { type: 'button', onclick: () => this.dialog.close() }, 'Cancel'),
          h('button', { type: 'submit', class: 'primary' }, 'Change'))));
    document.body.append(this.dialog);
  }

  begin(run) {
    this.settings = { ...run.settings };
    // What was changed last is what a field shows as the present value.
    for (const event of run.events) this.happened(event);
    this.setCommandable(run.is_commandable);
    this.show(run.status);
  }

  setCommandable(isCommandable) {
    this.element.hidden = !isCommandable;
    if (!isCommandable && this.dialog.open) this.dialog.close();
  }

  show(status) {
    this.isPaused = status?.roles.some((role) => role.state === 'paused') ?? false;
    this.pause.textContent = this.isPaused ? 'Resume' : 'Pause';
    this.pause.classList.toggle('primary', this.isPaused);
  }

  happened(event) {
    if (event.event !== 'changed') return;
    for (const change of event.changes) Object.assign(this.settings, change);
  }

  /** Whether an event is the answer to a command from here: checkpoints also come by themselves. */
  hasAskedFor(event) {
    const isIt = event.event === 'checkpointed' && this.asksForCheckpoint;
    if (isIt) this.asksForCheckpoint = false;
    return isIt;
  }

  #open() {
    for (const [key] of FIELDS) {
      const { input, now } = this.inputs.get(key);
      input.value = '';
      now.textContent = `now ${number(this.settings[key])}`;
    }
    this.problem.textContent = '';
    this.dialog.showModal();
  }

  async #submit(event) {
    event.preventDefault();
    const settings = {};
    for (const [key, label] of FIELDS) {
      const text = this.inputs.get(key).input.value.trim();
      if (text === '') continue;
      const value = Number(text.replace(',', '.'));
      if (!Number.isFinite(value)) {
        this.problem.textContent = `${label}: “${text}” is no number`;
        return;
      }
      settings[key] = value;
    }
    try {
      await post('settings', settings);
      this.dialog.close();
      this.tell('Asked for: it holds from the next batch on.');
    } catch (error) {
      this.problem.textContent = error.message;
    }
  }

  async #send(command) {
    try {
      await post(`control/${command}`);
      if (command === 'checkpoint') {
        this.asksForCheckpoint = true;
        this.tell(this.isPaused ? 'Asked for: it is kept once the run goes on.' : 'Asked for: it is kept before the next update.');
      }
    } catch (error) {
      this.tell(error.message, true);
    }
  }
}
