// The page on which people label: it gets a task, shows it, keeps what is put down, and hands it in.

import { Refused, ask, askUntilAnswered } from "./api.js";
import { areKeysOn, listUnfinished, showKeys } from "./dialogs.js";
import { byId, fill, h, kbd } from "./dom.js";
import { fullDraft, isRanked, notes } from "./form.js";
import { listen } from "./keys.js";
import { makeRanking, makeVerdict } from "./ranking.js";
import { makeResponse } from "./responses.js";
import { Drafts, tell } from "./saving.js";
import { steering } from "./steering.js";
import { renderNodes, turnView } from "./text.js";

const TITLES = {
  rank: ["Rank the responses", "1 is best; the same place is a tie"],
  compare: ["Which response is better?", ""],
  write: ["Write a response", ""],
};
const AGAIN_MS = 15_000;

const drafts = new Drafts();
let form = { flags: [], guidelines: [] };
// What is on the page, as `steering.js` takes it, with { task, texts, update, isComplete }; or null.
let current = null;
let isSource = false;
let isBusy = false;
let again = null;

// Each tab goes on with its own task after it is loaded anew.
const own = {
  get handle() { return sessionStorage.getItem("handle"); },
  set handle(handle) { handle ? sessionStorage.setItem("handle", handle) : sessionStorage.removeItem("handle"); },
  // Tasks to come back to after a look at an earlier one.
  get later() { return JSON.parse(sessionStorage.getItem("later") ?? "[]"); },
  set later(handles) { sessionStorage.setItem("later", JSON.stringify(handles)); },
};
// Before there is a task, it is told what most tasks take.
const help = () => showKeys({ kind: current?.task.kind ?? "rank", n: current?.cards.length ?? 9, flags: form.flags, isSettling: false });

function problem(error) {
  const box = byId("problem");
  box.hidden = !error;
  box.textContent = error ? (error.message ?? String(error)) : "";
}

function showProgress({ n_answered, n_last_hour }) {
  byId("progress").textContent = `${n_answered} answered · ${n_last_hour} in the last hour`;
}

// One thing at a time. What is refused is told, and leaves the page as it is.
async function doing(work) {
  if (isBusy) return;
  isBusy = true;
  problem(null);
  current?.update();
  try {
    await work();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) notice("Open your link", error.message);
    else problem(error);
  } finally {
    isBusy = false;
    current?.update();
  }
}

function notice(title, text, ...more) {
  current = null;
  byId("actions").hidden = true;
  fill(byId("main"), h("section", { class: "notice" }, h("h1", {}, title), h("p", {}, text), more));
}

async function getNext() {
  clearTimeout(again);
  const [handle, ...later] = own.handle ? [own.handle, ...own.later] : own.later;
  own.later = later;
  const next = await askUntilAnswered("/api/next", { handle: handle ?? null }, () => tell("failed", "No connection. Trying again…"));
  if (next.state === "task") return show(next.task);
  own.handle = null;
  const undo = h("button", { type: "button", onclick: goBack }, "Back to the last one");
  if (next.state === "wait") {
    notice("Nothing to do for a moment", "Others are at the last tasks. If one of them comes back, it appears here.", undo);
    again = setTimeout(() => doing(getNext), AGAIN_MS);
  } else if (next.state === "done") {
    notice("All done", "There is no task left for you. Thank you.", undo);
    again = setTimeout(() => doing(getNext), 4 * AGAIN_MS);
  } else {
    notice("Thank you", "Your answers to the first tasks differ too much from what was agreed on for them. Please talk to who runs the project.");
  }
}

function show(task) {
  own.handle = task.handle;
  const n = task.responses.length;
  const draft = fullDraft(task.draft, n);
  const changed = () => {
    drafts.changed(task.handle, draft);
    page.update();
  };
  const page = { task, draft, flags: form.flags, cards: [], texts: [], verdict: null, changed, toggleSource };
  current = page;

  page.setPlaces = (places) => {
    draft.places = places;
    changed();
  };
  const getPlaces = () => draft.places;

  const turns = task.turns.map(turnView);
  page.texts.push(...turns);
  page.cards = task.responses.map((response, index) =>
    makeResponse(index, response, { kind: task.kind, n, draft, form, changed }));
  page.texts.push(...page.cards);

  const [title, hint] = TITLES[task.kind];
  const again = task.revision > 0 ? `Your answer (revision ${task.revision}) stands until you submit again` : hint;
  const work = task.kind === "write" ? writing(draft, changed) : h("div", { class: "responses" }, page.cards.map(({ card }) => card), notes(draft, changed));
  fill(byId("main"), h("div", { class: task.kind === "write" ? "task" : "task beside" },
    h("h1", {}, title, again && h("small", {}, again)),
    form.guidelines.length > 0 && h("section", { class: "guidelines text", "aria-label": "Guidelines" }, renderNodes(form.guidelines)),
    h("section", { class: "prompt", "aria-label": "Prompt", tabindex: "0" }, turns.map(({ view }) => view)),
    work));

  const parts = actions(page, getPlaces, changed);
  page.update = () => {
    page.cards.forEach((card) => card.update());
    parts.update();
  };
  page.texts.forEach(({ show: showText }) => showText(isSource));
  page.update();
  tell(task.revision > 0 ? "saved" : "", task.revision > 0 ? "Saved" : "");
  scrollTo(0, 0);
  (task.kind === "write" ? byId("written") : byId("main")).focus({ preventScroll: true });
}

function writing(draft, changed) {
  const area = h("textarea", { id: "written", class: "written", dir: "auto", oninput: (event) => { draft.response = event.target.value; changed(); } });
  area.value = draft.response;
  return h("div", { class: "responses" },
    h("div", { class: "field" }, h("label", { for: "written" }, "Your response, as the assistant should have answered"), area),
    notes(draft, changed));
}

// The strip at the bottom. What it holds depends on the kind of task.
function actions(page, getPlaces, changed) {
  const { task, draft } = page;
  const goTo = (index) => page.cards[index].card.focus();
  const ranking = task.kind === "rank" ? makeRanking(getPlaces, page.setPlaces, goTo) : null;
  page.verdict = task.kind === "compare" ? makeVerdict(getPlaces, page.setPlaces) : null;

  const allBad = task.kind !== "write" && h("button", { type: "button", id: "all-bad", onclick: () => { draft.all_bad = !draft.all_bad; changed(); } }, "All bad ", kbd("a"));
  const source = h("button", { type: "button", id: "source", onclick: toggleSource }, "Source ", kbd("m"));
  const submit = h("button", { type: "button", id: "submit", class: "main", onclick: handIn }, "Submit ", kbd("Ctrl ⏎"));
  fill(byId("actions"),
    ranking?.area, page.verdict?.area, ranking?.told,
    h("div", { class: "doings" },
      h("button", { type: "button", id: "undo", onclick: goBack }, "Undo ", kbd("u")),
      h("button", { type: "button", id: "skip", onclick: skip }, "Skip ", kbd("s")),
      allBad, source, submit));
  byId("actions").hidden = false;
  const isComplete = () => (task.kind === "write" ? draft.response.trim() !== "" : isRanked(draft));
  page.isComplete = isComplete;
  const update = () => {
    ranking?.update();
    page.verdict?.update();
    if (allBad) allBad.setAttribute("aria-pressed", String(draft.all_bad));
    source.setAttribute("aria-pressed", String(isSource));
    submit.disabled = isBusy || !isComplete();
  };
  return { update };
}

function toggleSource() {
  isSource = !isSource;
  current?.texts.forEach(({ show: showText }) => showText(isSource));
  current?.update();
}

// "Saved" is said when the server has said so, which it does when its disk has it.
function handIn() {
  const page = current;
  if (!page || !page.isComplete()) return;
  return doing(async () => {
    await drafts.drop();
    tell("saving", "Saving…");
    const request = { handle: page.task.handle, key: crypto.randomUUID?.() ?? randomKey(), draft: page.draft };
    try {
      const stored = await askUntilAnswered("/api/answer", request, () => tell("failed", "Not saved: no connection. Trying again…"));
      showProgress(stored.progress);
    } catch (error) {
      tell("failed", "Not saved");
      throw error;
    }
    own.handle = null;
    await getNext();
    tell("saved", "Saved");
  });
}

// `randomUUID` is there over HTTPS and on this machine alone.
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function skip() {
  const page = current;
  if (!page) return;
  return doing(async () => {
    await drafts.drop();
    await askUntilAnswered("/api/skip", { handle: page.task.handle, draft: page.draft }, () => tell("failed", "No connection. Trying again…"));
    own.handle = null;
    await getNext();
    tell("", "Skipped");
    await lookAtUnfinished();
  });
}

// Back to what was answered or skipped last. What is on the page now comes again afterwards.
function goBack() {
  return doing(async () => {
    await drafts.flush();
    const before = current?.task.handle ?? null;
    const task = await ask("/api/undo", { current: before });
    if (before && before !== task.handle) own.later = [before, ...own.later.filter((handle) => handle !== before)];
    show(task);
  });
}

async function lookAtUnfinished() {
  const list = (await ask("/api/unfinished")).filter(({ handle }) => handle !== own.handle);
  listUnfinished(list, (handle) => doing(async () => {
    await drafts.flush();
    const before = current?.task.handle;
    const task = await ask("/api/resume", { handle });
    if (before && before !== handle) own.later = [before, ...own.later];
    show(task);
    await lookAtUnfinished();
  }));
}

const steer = steering(() => current);
const LETTERS = { s: skip, u: goBack };

listen({ ...steer, submit: handIn, help, letter: (key) => LETTERS[key] ?? steer.letter(key) }, areKeysOn);

addEventListener("visibilitychange", () => document.visibilityState === "hidden" && drafts.sendOff());
addEventListener("beforeunload", (event) => {
  if (drafts.isWaiting) {
    drafts.sendOff();
    event.preventDefault();
  }
});
byId("open-keys").addEventListener("click", help);
byId("open-unfinished").addEventListener("click", () => byId("unfinished").showModal());

await doing(async () => {
  const me = await askUntilAnswered("/api/me", undefined, () => tell("failed", "No connection. Trying again…"));
  if (me.is_admin) return location.replace("/overview");
  form = me.form;
  showProgress(me.progress);
  await getNext();
  await lookAtUnfinished();
});
