// One task: what was asked, what people said, which reward model read that, and what followed.

import { ask } from "./api.js";
import { byId, fill, h, visible } from "./dom.js";
import { lines } from "./lines.js";
import { ARMS, fixed, inWords, number, percent, when } from "./words.js";

const USED = { training: "trained on it", heldout: "was measured on it", nothing: "left it out: it is too long" };

const facts = (pairs) => h("dl", { class: "facts" },
  pairs.filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { dir: "auto" }, value))));

function question({ task, arm }) {
  const turns = typeof task.prompt === "string" ? [{ role: "text", content: task.prompt }] : task.prompt;
  const { run, policy_version: version, versions, seed, reward_model: model } = task.origin;
  return h("section", { class: "panel" },
    h("h2", {}, "What was asked"),
    turns.map(({ role, content }) => h("p", { class: "prompt-text", dir: "auto" }, visible(role === "text" ? content : `${role}: ${content}`))),
    h("ol", { class: "responses-list" }, (task.responses ?? []).map((response) => h("li", { dir: "auto" }, visible(response)))),
    facts([
      ["asked", arm === null ? null : ARMS[arm]],
      ["run", run],
      ["policy", versions ? versions.map((one) => `v${number(one)}`).join(", ") : version === undefined ? null : `v${number(version)}`],
      ["seed", seed === undefined ? null : String(seed)],
      ["reward model then", model],
    ]));
}

const scored = (name, by) => by && facts([
  [name, by.reward_model ?? "not known"],
  ["scores", by.scores.map(fixed).join(", ")],
  ["margin", by.margin === null ? "– (all tie)" : fixed(by.margin)],
  ["orders as the labeler", by.agreement === null ? null : `${percent(by.agreement)} of the pairs`],
]);

function followed({ updates, n_updates: n }) {
  if (n === 0) return h("p", { class: "quiet" }, "No update of PPO against it so far.");
  const points = updates.map(([x, y]) => ({ x, y }));
  const [first, last] = [points[0], points.at(-1)];
  return [
    h("p", {}, `${number(n)} update${n === 1 ? "" : "s"} of PPO followed: the mean score went from ${fixed(first.y)} to ${fixed(last.y)}.`),
    lines({ title: "Mean score of the updates that followed", points, domain: [first.x, last.x] }),
  ];
}

function use(before) {
  return (one) => h("div", { class: "section" },
    h("h3", { dir: "auto" }, `${one.run}: its reward model ${USED[one.used]}`),
    scored("after", one.after),
    before?.margin !== null && before !== null && one.after && one.after.margin !== null
      && h("p", {}, `The margin went from ${fixed(before.margin)} to ${fixed(one.after.margin)}.`),
    one.used !== "nothing" && followed(one));
}

const label = (one) => h("section", { class: "panel" },
  h("h2", { dir: "auto" }, `${one.labeler}: ${inWords(one.ranks)}`),
  h("p", { class: "quiet" }, `Revision ${one.revision}, ${when(one.time)}`),
  scored("before", one.before) || h("p", { class: "quiet" }, "No reward model’s scores from before are known."),
  one.uses.length === 0 ? h("p", { class: "quiet" }, "No reward model has read it yet.") : one.uses.map(use(one.before)));

const task = new URLSearchParams(location.search).get("task") ?? "";
try {
  const view = await ask(`/api/effects/${encodeURIComponent(task)}`);
  fill(byId("main"), h("div", { class: "overview" }, h("h1", {}, "What became of a label"), question(view),
    view.labels.length > 0 ? view.labels.map(label) : h("p", { class: "quiet" }, "Nobody has ranked it yet.")));
} catch (error) {
  fill(byId("main"), h("section", { class: "notice" }, h("h1", {}, "What became of a label"), h("p", {}, error.message)));
}
