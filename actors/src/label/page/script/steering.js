// What keys do to the responses of a task, whoever ranks them: a labeler, or the admin who settles it.
//
// A page is { draft, flags, cards, verdict, setPlaces, changed, toggleSource }; `verdict` where two are compared.

import { byId } from "./dom.js";

// The response that keys are about: the one in focus, or the first without a place.
function focused({ draft }) {
  const focus = document.activeElement;
  const index = focus?.closest?.(".response")?.dataset.index ?? focus?.dataset?.response;
  return index === undefined ? Math.max(0, draft.places.indexOf(null)) : Number(index);
}

function step(page, by) {
  const { cards } = page;
  if (cards.length === 0) return;
  const hasFocus = document.activeElement?.closest?.(".response");
  const index = hasFocus ? focused(page) + by : 0;
  cards[Math.min(Math.max(index, 0), cards.length - 1)].card.focus();
}

// Places the response in focus, and goes to the next one without a place.
function place(page, digit) {
  const { draft, cards, verdict } = page;
  if (verdict) return verdict.choose(digit);
  if (digit > draft.places.length || cards.length === 0) return;
  const index = focused(page);
  const places = [...draft.places];
  places[index] = digit === 0 ? null : digit;
  page.setPlaces(places);
  const next = [...places.keys()].map((at) => (index + 1 + at) % places.length).find((at) => places[at] === null);
  cards[digit === 0 || next === undefined ? index : next].card.focus();
}

function score(page, digit) {
  if (page.cards.length === 0 || digit < 1 || digit > 7) return;
  const index = focused(page);
  page.draft.scores[index] = digit;
  page.cards[index].card.focus();
  page.changed();
}

const LETTERS = {
  j: (page) => step(page, 1),
  k: (page) => step(page, -1),
  a: () => byId("all-bad")?.click(),
  m: (page) => page.toggleSource(),
  n: () => byId("notes")?.focus(),
};

// What `listen` of `keys.js` is to be told, for the page that there is when a key is pressed, if there is one.
export function steering(getPage) {
  const withPage = (act) => (digit) => {
    const page = getPage();
    if (page) act(page, digit);
  };
  return {
    place: withPage(place),
    score: withPage(score),
    letter: (key) => {
      const page = getPage();
      if (!page) return null;
      if (LETTERS[key]) return () => LETTERS[key](page);
      const flag = page.cards.length > 0 && page.flags.find((one) => one.key === key);
      return flag ? () => page.cards[focused(page)].flag(flag.name) : null;
    },
  };
}
