// What is put down of a task, whoever does it.

import { h } from "./dom.js";

// A draft that has a place for each of n responses.
export function fullDraft(draft, n) {
  const each = (values, empty) => (values.length === n ? values : Array.from({ length: n }, empty));
  return { ...draft, places: each(draft.places, () => null), scores: each(draft.scores, () => null), flags: each(draft.flags, () => []) };
}

// Whether each response has a place, or none has and all are bad.
export function isRanked(draft) {
  const n_placed = draft.places.filter((place) => place !== null).length;
  return n_placed === draft.places.length || (draft.all_bad && n_placed === 0);
}

export function notes(draft, changed) {
  const area = h("textarea", { id: "notes", dir: "auto", rows: "2", oninput: (event) => { draft.notes = event.target.value; changed(); } });
  area.value = draft.notes;
  return h("div", { class: "notes" }, h("label", { for: "notes" }, "Notes"), area);
}
