// What opens over a page: the keys, and what is not handed in yet.

import { byId, fill, h, visible } from "./dom.js";
import { KEYS } from "./keys.js";

// Whether single keys do anything.
export const areKeysOn = () => localStorage.getItem("keys") !== "off";

const head = (dialog, title) => h("header", {},
  h("h2", { id: `${dialog.id}-title` }, title),
  h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, "Close"));

// What keys do with a task of this kind and so many responses, for a labeler or for the admin who settles it.
export function showKeys({ kind, n, flags, isSettling }) {
  const dialog = byId("keys");
  const entry = (key, does) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, does)];
  const title = () => (areKeysOn() ? "Turn single keys off" : "Turn single keys on");
  const turn = h("button", { type: "button" }, title());
  turn.addEventListener("click", () => {
    localStorage.setItem("keys", areKeysOn() ? "off" : "on");
    turn.textContent = title();
  });
  const hasResponses = kind !== "write";
  const letters = KEYS.filter((one) => (hasResponses || !one.ofResponses) && !(isSettling && one.ofLabelers));
  fill(dialog, head(dialog, "Keys"),
    h("dl", { class: "keys" },
      kind === "rank" && [
        entry(`1 – ${n}`, "place of the response in focus (two on one place tie)"),
        entry("0", "no place"),
        entry("← →", "move a letter of the ranking"),
      ],
      kind === "compare" && [entry("1", "A is better"), entry("2", "B is better"), entry("0", "a tie")],
      hasResponses && entry("Shift 1 – 7", "overall score of the response in focus"),
      letters.map(({ key, does }) => entry(key, does)),
      hasResponses && flags.map(({ key, label }) => entry(key, label)),
      entry("Ctrl ⏎", isSettling ? "settle" : "submit"),
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
