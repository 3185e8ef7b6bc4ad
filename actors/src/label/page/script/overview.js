// What the admin sees: progress, agreement, labelers, disagreements.

import { Refused, ask } from "./api.js";
import { byId, fill, h, visible } from "./dom.js";
import { fixed, inWords, number, percent } from "./words.js";

const AGAIN_MS = 10_000;

const interval = ({ low, high }, show) => `95 %: ${show(low)} to ${show(high)}`;

function figure(title, value, note, ...more) {
  return h("div", { class: "figure" }, h("dt", {}, title), h("dd", {}, h("strong", {}, value), note && h("span", {}, note), more));
}

function figures(view) {
  const { tasks, pairwise, alpha, share_of_first: first } = view;
  const none = ["–", "not enough data"];
  return h("dl", { class: "figures" },
    figure("Answers", number(tasks.n_answers), `of ${number(tasks.n_wanted)}; ${number(tasks.n_open)} tasks open, ${number(tasks.n_taken)} taken`,
      h("progress", { max: Math.max(1, tasks.n_wanted), value: tasks.n_answers, "aria-label": "Answers of those that are wanted" })),
    figure("Pace", `${number(view.n_last_hour)} / h`, "answers in the last hour"),
    pairwise ? figure("Pairwise agreement", percent(pairwise.value), `${interval(pairwise, percent)}; n = ${number(pairwise.n)}`) : figure("Pairwise agreement", ...none),
    alpha ? figure("Krippendorff’s alpha", fixed(alpha.value), `${interval(alpha, fixed)}; ${number(alpha.n)} prompts`) : figure("Krippendorff’s alpha", ...none),
    view.self_consistency === null ? figure("Self-consistency", ...none) : figure("Self-consistency", percent(view.self_consistency), `${number(view.n_repeats)} hidden repeats`),
    first ? figure("First shown wins", percent(first.value), `${interval(first, percent)}; 50 % without bias`) : figure("First shown wins", ...none));
}

// What is measured on tasks that were chosen for being hard would not hold for others.
const chosen = ({ n_chosen: n }) => n > 0
  && h("p", { class: "quiet" }, `Agreement, consistency and position bias leave out ${number(n)} ranking${n === 1 ? "" : "s"} of tasks that a reward model or a person has chosen.`);

function labelers(view) {
  const heads = ["Labeler", "Answers", "Last hour", "Skipped", "Median time", "Screening", "Agrees with others", "With themselves", "First shown wins"];
  const screening = ({ has_passed, screening_agreement: mean }) =>
    (mean === null ? "–" : `${percent(mean)}${has_passed === null ? "" : has_passed ? ", passed" : ", failed"}`);
  const row = (one) => h("tr", {},
    h("th", { scope: "row", dir: "auto" }, one.name),
    [
      number(one.n_answered), number(one.n_last_hour), number(one.n_skipped),
      one.median_seconds === null ? "–" : `${Math.round(one.median_seconds)} s`,
      screening(one),
      one.agreement === null ? `not enough data (${one.n_shared})` : `${percent(one.agreement)} ± ${(100 * one.standard_error).toFixed(1)}`,
      one.self_consistency === null ? "–" : `${percent(one.self_consistency)} (${one.n_repeats})`,
      one.share_of_first ? percent(one.share_of_first.value) : "–",
    ].map((text) => h("td", {}, text)));
  return h("section", { class: "section" }, h("h2", {}, "Labelers"),
    h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Labelers" },
      h("table", { class: "labelers" },
        h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, view.labelers.map(row)))));
}

function disagreements(view) {
  const one = ({ prompt, responses, opinions, merged, agreement }) => h("article", { class: "disagreement" },
    h("h3", { dir: "auto" }, visible(prompt)),
    h("ol", {}, responses.map((response) => h("li", { dir: "auto" }, visible(response)))),
    h("dl", { class: "opinions" },
      opinions.map(({ labeler, ranks }) => h("div", {}, h("dt", { dir: "auto" }, labeler), h("dd", {}, inWords(ranks)))),
      h("div", {}, h("dt", {}, "merged"), h("dd", {}, inWords(merged))),
      h("div", {}, h("dt", {}, "agreement"), h("dd", {}, percent(agreement)))));
  return h("section", { class: "section" }, h("h2", {}, "Disagreements, the worst first"),
    view.disagreements.length > 0 ? view.disagreements.map(one) : h("p", { class: "quiet" }, "None so far."));
}

async function refresh() {
  try {
    const view = await ask("/api/overview");
    // What somebody reads does not move under them.
    const { scrollX, scrollY } = window;
    fill(byId("main"), h("div", { class: "overview" }, h("h1", {}, "How it is going"), figures(view), chosen(view), labelers(view), disagreements(view)));
    scrollTo(scrollX, scrollY);
    byId("saved").textContent = `As of ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    byId("saved").textContent = error.message;
    if (error instanceof Refused && error.status < 500) {
      fill(byId("main"), h("section", { class: "notice" }, h("h1", {}, "Overview"), h("p", {}, error.message)));
      return;
    }
  }
  setTimeout(refresh, AGAIN_MS);
}

await refresh();
