// People against reward models over a run's versions, and the newest labels.

import { Refused, ask } from "./api.js";
import { byId, fill, h, visible } from "./dom.js";
import { lines } from "./lines.js";
import { ARMS, fixed, number, percent, when } from "./words.js";

const AGAIN_MS = 10_000;

function verdict({ change, scores }, enough) {
  if (scores.length === 0) {
    return h("p", { class: "calm" }, "The run’s scores are not known here: start ", h("code", {}, "collimate label"), " with ", h("code", {}, "--run RUN_DIR"), ".");
  }
  if (change === null) {
    return h("p", { class: "calm" }, `Too few rankings to tell of a change: it takes ${enough} earlier and ${enough} recent ones of versions whose scores are known.`);
  }
  const { since, n, scores: [before, after], agreements: [was, is], agreement_error: error, is_alarm: isAlarm } = change;
  const numbers = `From v${number(since)} on the mean score is ${fixed(after)}, before ${fixed(before)}; people agree with the reward model on ${percent(is)} of the pairs (${number(n[1])} rankings), before on ${percent(was)} (${number(n[0])}); the standard error of that difference is ${percent(error)}.`;
  return isAlarm
    ? h("p", { class: "alarm", role: "alert" }, h("strong", {}, "Over-optimisation: the score rises while agreement with people falls. "), numbers)
    : h("p", { class: "calm" }, h("strong", {}, "No alarm. "), numbers);
}

function charts({ points, scores }) {
  const versions = [...points.flatMap((point) => point.versions), ...scores.map(([version]) => version)];
  const domain = [Math.min(...versions), Math.max(...versions)];
  const agreement = points.map(({ versions: [first, last], agreement: y, standard_error: error }) => ({ x: (first + last) / 2, y, error }));
  return [
    lines({ title: "Share of pairs that the reward model orders as people do, ± standard error", points: agreement, domain, range: [0, 1], even: 0.5 }),
    scores.length > 0 && lines({ title: "Mean score of the run’s rollouts", points: scores.map(([x, y]) => ({ x, y })), domain }),
  ];
}

const one = (enough) => (series) => h("section", { class: "panel" },
  h("h2", { dir: "auto" }, series.run),
  h("p", { class: "quiet", dir: "auto" }, `Scored by ${series.reward_model ?? "no reward model that is known"}; ${number(series.n_rankings)} rankings of what its policy wrote.`),
  verdict(series, enough), charts(series));

function labels({ labels: newest, n_labels: n }) {
  const heads = ["Prompt", "Labeler", "When", "Asked", "Policy", "Read by"];
  const row = (label) => h("tr", {},
    h("th", { scope: "row", class: "prompt", dir: "auto" }, h("a", { href: `/effect?task=${encodeURIComponent(label.task)}` }, visible(label.prompt || "(empty)"))),
    h("td", { dir: "auto" }, label.labeler),
    h("td", {}, when(label.time)),
    h("td", {}, ARMS[label.arm] ?? "–"),
    h("td", {}, label.policy_version === null ? "–" : `v${number(label.policy_version)}`),
    h("td", {}, label.n_uses === 0 ? "none yet" : `${number(label.n_uses)} reward model${label.n_uses === 1 ? "" : "s"}`));
  const some = newest.length < n ? `The newest ${number(newest.length)} of ${number(n)} rankings` : `Rankings (${number(n)})`;
  return h("section", { class: "section" }, h("h2", {}, some),
    newest.length === 0
      ? h("p", { class: "quiet" }, "None so far.")
      : h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Rankings" },
        h("table", { class: "labels" },
          h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))),
          h("tbody", {}, newest.map(row)))));
}

async function refresh() {
  try {
    const view = await ask("/api/effects");
    const { scrollX, scrollY } = window;
    fill(byId("main"), h("div", { class: "overview" },
      h("h1", {}, "People and the reward model"),
      view.series.length === 0
        ? h("p", { class: "quiet" }, "Nobody has ranked what a run’s policy wrote yet. In the page of a run that was started with --labels, “Ask people” makes tasks of its rollouts.")
        : view.series.map(one(view.enough)),
      labels(view)));
    scrollTo(scrollX, scrollY);
    byId("saved").textContent = `As of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    byId("saved").textContent = error.message;
    if (error instanceof Refused && error.status < 500) {
      fill(byId("main"), h("section", { class: "notice" }, h("h1", {}, "People and the reward model"), h("p", {}, error.message)));
      return;
    }
  }
  setTimeout(refresh, AGAIN_MS);
}

await refresh();
