// One task on which labelers differ: what was asked, what each of them said, and the ranking that the admin settles it by.

import { ask } from "./api.js";
import { areKeysOn, showKeys } from "./dialogs.js";
import { verdictOf } from "./differences.js";
import { byId, fill, h, kbd, letter, visible } from "./dom.js";
import { fullDraft, isRanked, notes } from "./form.js";
import { listen } from "./keys.js";
import { makeRanking, makeVerdict } from "./ranking.js";
import { makeResponse } from "./responses.js";
import { tell } from "./saving.js";
import { steering } from "./steering.js";
import { turnView } from "./text.js";
import { inWords, percent, when } from "./words.js";

const task = new URLSearchParams(location.search).get("task") ?? "";
// Whether something is put down that the server does not have.
let isChanged = false;
let isBusy = false;

function problem(error) {
  byId("problem").hidden = !error;
  byId("problem").textContent = error?.message ?? "";
}

// What a labeler said of one response beside its rank, if anything.
function remarks({ scores, flags }, index, labels) {
  const score = scores[index];
  const said = [
    score !== null && score !== undefined && `overall ${score} of 7`,
    ...(flags[index] ?? []).map((flag) => labels.get(flag) ?? flag),
  ].filter(Boolean);
  return said.length > 0 && h("li", {}, `${letter(index)}: ${said.join("; ")}`);
}

function opinion(labels) {
  return (one) => {
    const all = one.ranks.map((_, index) => remarks(one, index, labels)).filter(Boolean);
    return h("li", { class: "opinion" },
      h("h3", { dir: "auto" }, one.labeler),
      h("p", { class: "order" }, verdictOf(one)),
      all.length > 0 && h("ul", {}, all),
      one.notes && h("p", { class: "notes-text", dir: "auto" }, visible(one.notes)),
      h("p", { class: "quiet" }, `Revision ${one.revision}, ${when(one.time)}`));
  };
}

function said({ opinions, merged, agreement }, labels) {
  const together = [
    opinions.length > 0 && `Merged: ${inWords(merged)}`,
    agreement !== null && `agreement ${percent(agreement)}`,
  ].filter(Boolean);
  return h("section", { class: "said" }, h("h2", {}, "What labelers said"),
    opinions.length > 0 ? h("ul", {}, opinions.map(opinion(labels))) : h("p", { class: "quiet" }, "Nobody has ranked it."),
    together.length > 0 && h("p", { class: "quiet" }, together.join(" · ")));
}

function show(view, form) {
  const { kind, responses } = view;
  const n = responses.length;
  const draft = fullDraft(view.draft, n);
  let settled = view.settled;
  let isSource = false;

  const changed = () => {
    isChanged = true;
    tell("unsaved", "Not settled like this yet");
    update();
  };
  const getPlaces = () => draft.places;
  const setPlaces = (places) => {
    draft.places = places;
    changed();
  };
  const turns = view.turns.map(turnView);
  const cards = responses.map((response, index) => makeResponse(index, response, { kind, n, draft, form, changed }));
  const ranking = kind === "rank" ? makeRanking(getPlaces, setPlaces, (index) => cards[index].card.focus()) : null;
  const verdict = kind === "compare" ? makeVerdict(getPlaces, setPlaces) : null;

  // Nothing happens twice at once. What is refused is told, and leaves the page as it is.
  const doing = async (path, body, done) => {
    if (isBusy) return;
    isBusy = true;
    problem(null);
    update();
    tell("saving", "Saving…");
    const before = JSON.stringify(draft);
    try {
      settled = (await ask(path, body)).settled;
      isChanged = JSON.stringify(draft) !== before;
      if (isChanged) tell("unsaved", "Not settled like this yet");
      else tell("saved", done);
    } catch (error) {
      tell("failed", "Not saved");
      problem(error);
    } finally {
      isBusy = false;
      update();
    }
  };
  const state = h("small", { id: "state" });
  const allBad = h("button", { type: "button", id: "all-bad", onclick: () => { draft.all_bad = !draft.all_bad; changed(); } }, "All bad ", kbd("a"));
  const toggleSource = () => {
    isSource = !isSource;
    [...turns, ...cards].forEach((text) => text.show(isSource));
    update();
  };
  const source = h("button", { type: "button", id: "source", onclick: toggleSource }, "Source ", kbd("m"));
  const takeBack = h("button", {
    type: "button",
    id: "take-back",
    onclick: async () => {
      await doing("/api/take-back", { task }, "Taken back: what labelers said counts");
      // The button goes, and must not take the focus along.
      if (takeBack.hidden) settle.focus();
    },
  }, "Take back");
  const settleIt = () => isRanked(draft) && doing("/api/settle", { task, draft }, "Settled");
  const settle = h("button", { type: "button", id: "settle", class: "main", onclick: settleIt });

  const update = () => {
    cards.forEach((card) => card.update());
    ranking?.update();
    verdict?.update();
    state.textContent = settled
      ? `Settled by ${settled.by}, ${when(settled.time)} (revision ${settled.revision}): ${verdictOf(settled.ranking)}`
      : "Not settled: what labelers said counts";
    allBad.setAttribute("aria-pressed", String(draft.all_bad));
    source.setAttribute("aria-pressed", String(isSource));
    takeBack.hidden = !settled;
    settle.disabled = !isRanked(draft);
    fill(settle, settled ? "Settle anew " : "Settle ", kbd("Ctrl ⏎"));
  };
  fill(byId("main"), h("div", { class: "task beside" },
    h("h1", {}, "Settle a disagreement", state),
    said(view, new Map(form.flags.map(({ name, label }) => [name, label]))),
    h("section", { class: "prompt", "aria-label": "Prompt", tabindex: "0" }, turns.map(({ view: turn }) => turn)),
    h("div", { class: "responses" }, cards.map(({ card }) => card), notes(draft, changed))));
  fill(byId("actions"), ranking?.area, verdict?.area, ranking?.told, h("div", { class: "doings" }, takeBack, allBad, source, settle));
  byId("actions").hidden = false;
  update();
  const help = () => showKeys({ kind, n, flags: form.flags, isSettling: true });
  const page = { draft, flags: form.flags, cards, verdict, setPlaces, changed, toggleSource };
  listen({ ...steering(() => page), submit: settleIt, help }, areKeysOn);
  byId("open-keys").addEventListener("click", help);
  byId("open-keys").hidden = false;
}

addEventListener("beforeunload", (event) => isChanged && event.preventDefault());
try {
  const [{ form }, view] = await Promise.all([ask("/api/me"), ask(`/api/disagreements/${encodeURIComponent(task)}`)]);
  show(view, form);
} catch (error) {
  fill(byId("main"), h("section", { class: "notice" }, h("h1", {}, "Settle a disagreement"), h("p", {}, error.message)));
}
