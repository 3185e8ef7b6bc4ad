// What is put down is kept: a moment after each change, and before anything else is done.

import { ask, askUntilAnswered } from "./api.js";
import { byId } from "./dom.js";

const PAUSE_MS = 600;

export function tell(state, text) {
  const saved = byId("saved");
  saved.dataset.state = state;
  saved.textContent = text;
}

export class Drafts {
  #timer = null;
  #sending = Promise.resolve();
  #pending = null;

  // Keeps the draft soon. It is looked at when it is sent.
  changed(handle, draft) {
    this.#pending = { handle, draft };
    tell("unsaved", "Not saved yet");
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.flush().catch(() => {}), PAUSE_MS);
  }

  // Forgets what is waiting, since something else says it; and waits for what is on its way, which must not come after.
  async drop() {
    clearTimeout(this.#timer);
    this.#pending = null;
    await this.#sending.catch(() => {});
  }

  get isWaiting() {
    return this.#pending !== null;
  }

  // Sends what is waiting, after what is on its way.
  flush() {
    clearTimeout(this.#timer);
    this.#sending = this.#sending.catch(() => {}).then(async () => {
      const sent = this.#pending;
      if (!sent) return;
      await askUntilAnswered("/api/draft", sent, () => tell("failed", "Not saved: no connection. Trying again…"));
      if (this.#pending === sent) {
        this.#pending = null;
        tell("saved", "Draft saved");
      }
    });
    this.#sending.catch((error) => tell("failed", `Not saved: ${error.message}`));
    return this.#sending;
  }

  // On the way out there is no time to wait for an answer.
  sendOff() {
    if (this.#pending) ask("/api/draft", this.#pending, { keepalive: true }).catch(() => {});
  }
}
