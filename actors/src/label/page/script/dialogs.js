// What opens over the page: the keys, and what is not handed in yet.

import { byId, fill, h, visible } from "./dom.js";
import { KEYS } from "./keys.js";

// Whether single keys do anything.
export const areKeysOn = () => localStorage.getItem("keys") !== "off";

const head = (dialog, title) => h("header", {},
  h("h2", { id: `${dialog.id}-title` }, title),
  h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Close"));

export function showKeys(flags) {
  const dialog = byId("keys");
  const entry = (key, does) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, does)];
  const title = () => (areKeysOn() ? "Turn single keys off" : "Turn single keys on");
  const turn = h("button", { type: "button" }, title());
  turn.addEventListener("click", () => {
    localStorage.setItem("keys", areKeysOn() ? "off" : "on");
    turn.textContent = title();
  });
  fill(dialog, head(dialog, "Keys"),
    h("dl", { class: "keys" },
      entry("1 – 9", "place of the response in focus (two on one place tie); of two: which is better"),
      entry("0", "no place; of two: a tie"),
      entry("Shift 1 – 7", "overall score"),
      entry("← →", "move a letter of the ranking"),
      KEYS.map(({ key, does }) => entry(key, does)),
      flags.map(({ key, label }) => entry(key, label)),
      entry("Ctrl ⏎", "submit"),
      entry("Esc", "leave a text field"),
      entry("?", "this list")),
    turn);
  dialog.showModal();
}

// What is put down and not handed in, behind a button that is there while something is.
export function listUnfinished(list, takeUp) {
  const dialog = byId("unfinished");
  const button = byId("open-unfinished");
  button.hidden = list.length === 0;
  button.textContent = `Unfinished (${list.length})`;
  const open = (handle) => {
    dialog.close();
    takeUp(handle);
  };
  fill(dialog, head(dialog, "Unfinished"),
    h("ul", { class: "list" }, list.map(({ handle, begins, is_skipped: isSkipped }) =>
      h("li", {}, h("button", { type: "button", dir: "auto", onclick: () => open(handle) }, isSkipped ? "Skipped: " : "", visible(begins))))));
}
