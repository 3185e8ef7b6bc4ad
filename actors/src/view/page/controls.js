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
    this.replace = h('button', { type: 'button', id: 'replace', onclick: () => this.#openReplacing() }, 'Replace reward model…');
    this.element.append(this.pause, this.checkpoint, this.change, this.replace);
    this.#dialog();
    this.#replacingDialog();
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

  #replacingDialog() {
    this.rewardModel = h('input', { id: 'new-reward-model', name: 'dir', dir: 'ltr', autocomplete: 'off', spellcheck: 'false', required: true, 'aria-describedby': 'now-reward-model' });
    this.rewardModelNow = h('span', { id: 'now-reward-model', class: 'muted', dir: 'auto' });
    this.replacingProblem = h('p', { class: 'problem', role: 'alert' });
    this.replaceNow = h('button', { type: 'submit', class: 'primary' }, 'Replace');
    this.replacing = h('dialog', { 'aria-labelledby': 'replace-title' },
      h('form', { id: 'replace-form', onsubmit: (event) => this.#submitReplacing(event) },
        h('h2', { id: 'replace-title' }, 'Replace the reward model'),
        h('p', {}, 'What is in flight is trained on with the old one’s scores; every batch after that has the new one’s alone. The value model is warmed up anew. The journal has both, so that a replay comes to the same weights.'),
        h('div', { class: 'field' }, h('label', { for: 'new-reward-model' }, 'Directory on the run’s machine'), this.rewardModel, this.rewardModelNow),
        this.replacingProblem,
        h('div', { class: 'buttons' },
          h('button', { type: 'button', onclick: () => this.replacing.close() }, 'Cancel'),
          this.replaceNow)));
    document.body.append(this.replacing);
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
    if (!isCommandable) for (const dialog of [this.dialog, this.replacing]) if (dialog.open) dialog.close();
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

  #openReplacing() {
    const now = this.settings.reward_model;
    this.rewardModel.value = '';
    // What was there at the start is named by its directory alone.
    this.rewardModelNow.textContent = now ? `now ${now.dir ?? now}` : '';
    this.replacingProblem.textContent = '';
    this.replacing.showModal();
  }

  async #submitReplacing(event) {
    event.preventDefault();
    this.replacingProblem.textContent = '';
    this.replaceNow.disabled = true;
    try {
      await post('reward-model', { dir: this.rewardModel.value.trim() });
      this.replacing.close();
    } catch (error) {
      this.replacingProblem.textContent = error.message;
    } finally {
      this.replaceNow.disabled = false;
    }
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
