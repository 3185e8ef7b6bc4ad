// A card for each response: its text, its place, its score and its flags.

import { h, kbd, letter } from "./dom.js";
import { textView } from "./text.js";

const SCORES = [1, 2, 3, 4, 5, 6, 7];

// A row of numbers of which one is chosen, or none.
function steps(label, numbers, getChosen, choose) {
  const buttons = numbers.map((number) =>
    h("button", {
      type: "button",
      "aria-label": `${label} ${number}`,
      onclick: () => choose(getChosen() === number ? null : number),
    }, String(number)));
  const update = () => buttons.forEach((button, index) =>
    button.setAttribute("aria-pressed", String(getChosen() === numbers[index])));
  return { buttons, update };
}

export function makeResponse(index, response, { kind, n, draft, form, changed }) {
  const name = letter(index);
  const { view, show } = textView(response, false);
  const updates = [];

  const header = h("header", {}, h("h2", { class: "letter", "aria-label": `Response ${name}` }, name));
  if (kind === "rank") {
    const places = Array.from({ length: n }, (_, at) => at + 1);
    const row = steps(`Response ${name}, place`, places, () => draft.places[index], (place) => {
      draft.places[index] = place;
      changed();
    });
    updates.push(row.update);
    header.append(h("div", { class: "steps places", role: "group", "aria-label": `Place of response ${name}` }, h("span", {}, "Place"), row.buttons));
  }

  const score = steps(`Response ${name}, overall`, SCORES, () => draft.scores[index], (number) => {
    draft.scores[index] = number;
    changed();
  });
  updates.push(score.update);

  const toggle = (flag) => {
    const own = draft.flags[index];
    draft.flags[index] = own.includes(flag) ? own.filter((other) => other !== flag) : [...own, flag];
    changed();
  };
  const flagButtons = form.flags.map(({ name: flag, label, key }) => ({
    flag,
    button: h("button", { type: "button", "data-flag": flag, onclick: () => toggle(flag) }, `${label} `, kbd(key)),
  }));
  const summary = h("summary", {});
  const flags = h("details", { class: "flags" }, summary, h("ul", {}, flagButtons.map(({ button }) => h("li", {}, button))));
  updates.push(() => {
    const set = form.flags.filter(({ name: flag }) => draft.flags[index].includes(flag));
    summary.replaceChildren(set.length > 0 ? h("b", {}, `Flags: ${set.map(({ label }) => label.split(/[:,]/)[0]).join(" · ")}`) : "Flags");
    flagButtons.forEach(({ flag, button }) => button.setAttribute("aria-pressed", String(draft.flags[index].includes(flag))));
  });

  const judged = h("div", { class: "judged" },
    h("div", { class: "steps", role: "group", "aria-label": `Overall score of response ${name}, 1 is worst, 7 is best` },
      h("span", {}, "Overall"), score.buttons),
    form.flags.length > 0 && flags);
  if (form.flags.length === 0) flags.remove();
  const card = h("article", { class: "response", tabindex: "0", "aria-label": `Response ${name}`, "data-index": index }, header, view, judged);
  const update = () => updates.forEach((one) => one());
  update();
  return {
    card, update, show,
    flag: (flag) => {
      flags.open = true;
      toggle(flag);
    },
  };
}
