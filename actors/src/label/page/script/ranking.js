// The strip at the bottom: a box for each place, in which the letters of the responses stand. Two in one box tie.

import { h, kbd, letter } from "./dom.js";
import { makeDraggable } from "./drag.js";

// Places without holes: 2, 2, 5 becomes 1, 1, 2.
function closed(places) {
  const used = [...new Set(places.filter((place) => place !== null))].sort((a, b) => a - b);
  return places.map((place) => (place === null ? null : used.indexOf(place) + 1));
}

// Puts one before all that stand at `place` or after it.
export function inserted(places, response, place) {
  const moved = places.map((other, index) => (index !== response && other !== null && other >= place ? other + 1 : other));
  moved[response] = place;
  return closed(moved);
}

// The order in words: A = B > C.
export function inWords(places) {
  const used = [...new Set(places.filter((place) => place !== null))].sort((a, b) => a - b);
  const tier = (place) => places.flatMap((other, index) => (other === place ? [letter(index)] : [])).join(" = ");
  return used.map(tier).join(" > ");
}

export function makeRanking(getPlaces, setPlaces, goTo) {
  const n = getPlaces().length;
  const area = h("div", { class: "strip", role: "group", "aria-label": "Ranking: drag letters, or move them by arrow keys" });
  const told = h("p", { class: "quiet", role: "status" });

  const put = (response, place) => {
    const places = [...getPlaces()];
    places[response] = place;
    setPlaces(places);
  };
  const chips = getPlaces().map((_, response) => {
    const chip = h("button", { type: "button", class: "chip", "data-response": response }, letter(response));
    chip.addEventListener("click", () => goTo(response));
    chip.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const place = (getPlaces()[response] ?? 0) + step;
      if (place <= n) put(response, place < 1 ? null : place);
      chip.focus();
    });
    makeDraggable(chip, area, ({ dataset }) => {
      if (dataset.drop === "none") put(response, null);
      else if (dataset.drop.startsWith("before-")) setPlaces(inserted(getPlaces(), response, Number(dataset.drop.slice(7))));
      else put(response, Number(dataset.drop));
    });
    return chip;
  });

  const pool = h("div", { class: "tier pool", "data-drop": "none" });
  const tiers = Array.from({ length: n }, (_, index) => h("div", { class: "tier", "data-drop": index + 1 }));
  const gaps = tiers.map((_, index) => h("div", { class: "gap", "data-drop": `before-${index + 1}` }));
  area.append(pool, h("div", { class: "tiers", role: "group", "aria-label": "Best to worst" }, tiers.flatMap((tier, index) => [gaps[index], tier])));

  const update = () => {
    const places = getPlaces();
    const focused = document.activeElement;
    const inTier = (place) => chips.filter((_, response) => places[response] === place);
    pool.replaceChildren(...inTier(null));
    pool.hidden = inTier(null).length === 0;
    tiers.forEach((tier, index) => {
      const here = inTier(index + 1);
      tier.replaceChildren(
        h("span", { class: "n" }, String(index + 1)),
        ...here.flatMap((chip, at) => (at > 0 ? [h("span", { class: "tie", "aria-hidden": "true" }, "="), chip] : [chip])),
      );
      tier.classList.toggle("filled", here.length > 0);
    });
    chips.forEach((chip, response) => {
      const place = places[response];
      chip.setAttribute("aria-label", `Response ${letter(response)}, ${place === null ? "no place yet" : `place ${place}`}`);
    });
    if (chips.includes(focused)) focused.focus();
    const left = places.filter((place) => place === null).length;
    told.textContent = inWords(places) + (left > 0 && left < n ? ` · ${left} to go` : "");
  };
  update();
  return { area, told, update };
}

// Two responses: which one is better.
export function makeVerdict(getPlaces, setPlaces) {
  const verdicts = [
    { label: "A is better", places: [1, 2], key: "1" },
    { label: "Tie", places: [1, 1], key: "0" },
    { label: "B is better", places: [2, 1], key: "2" },
  ];
  const buttons = verdicts.map(({ label, places, key }) =>
    h("button", { type: "button", onclick: () => setPlaces(places) }, `${label} `, kbd(key)));
  const area = h("div", { class: "verdict", role: "group", "aria-label": "Which is better" }, buttons);
  const update = () => {
    const now = getPlaces();
    const order = Math.sign(now[1] - now[0]);
    verdicts.forEach(({ places }, index) => {
      const isIt = now[0] !== null && now[1] !== null && Math.sign(places[1] - places[0]) === order;
      buttons[index].setAttribute("aria-pressed", String(isIt));
    });
  };
  update();
  const byKey = (digit) => verdicts.find(({ key }) => key === String(digit));
  return { area, update, choose: (digit) => byKey(digit) && setPlaces(byKey(digit).places) };
}
