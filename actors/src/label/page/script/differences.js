// How disagreements are listed.

import { h, visible } from "./dom.js";
import { inWords, number, percent, when } from "./words.js";

// What a ranking says, all bad included.
export const verdictOf = ({ ranks, all_bad: allBad }) => inWords(ranks) + (allBad ? " · all bad" : "");

const state = (settled) => (settled
  ? h("p", { class: "state" }, h("strong", {}, "Settled"), ` by ${settled.by}, ${when(settled.time)}: ${verdictOf(settled.ranking)}`)
  : h("p", { class: "state" }, "Not settled"));

const one = ({ task, prompt, responses, opinions, merged, agreement, settled }) => h("article", { class: "disagreement" },
  h("h3", { dir: "auto" }, h("a", { href: `/settle?task=${encodeURIComponent(task)}` }, visible(prompt || "(empty)"))),
  state(settled),
  h("ol", {}, responses.map((response) => h("li", { dir: "auto" }, visible(response)))),
  opinions.length > 0 && h("dl", { class: "opinions" },
    opinions.map(({ labeler, ranks }) => h("div", {}, h("dt", { dir: "auto" }, labeler), h("dd", {}, inWords(ranks)))),
    h("div", {}, h("dt", {}, "merged"), h("dd", {}, inWords(merged))),
    agreement !== null && h("div", {}, h("dt", {}, "agreement"), h("dd", {}, percent(agreement)))));

export function differences({ n_disagreements: n, n_settled: nSettled, disagreements }) {
  if (n === 0) return h("p", { class: "quiet" }, "None so far.");
  const counts = `${number(n)} disagreement${n === 1 ? "" : "s"}, ${number(nSettled)} of them settled. Those that are not settled come first, the worst before the others.`;
  return [h("p", { class: "quiet" }, counts), disagreements.map(one)];
}
