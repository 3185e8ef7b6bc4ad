// All disagreements, a part at a time.

import { ask } from "./api.js";
import { differences } from "./differences.js";
import { byId, fill, h } from "./dom.js";
import { number } from "./words.js";

function parts({ from, n_listed: n, n_disagreements: nAll, disagreements }) {
  const to = (start, text) => h("a", { href: `/disagreements?from=${start}` }, text);
  const [hasBefore, hasAfter] = [from > 0, from + n < nAll];
  return (hasBefore || hasAfter) && h("nav", { class: "parts", "aria-label": "Parts of the list" },
    hasBefore && to(Math.max(0, from - n), "Those before"),
    h("span", { class: "quiet" }, disagreements.length === 0
      ? "None here"
      : `${number(from + 1)} to ${number(from + disagreements.length)} of ${number(nAll)}`),
    hasAfter && to(from + n, "Those after"));
}

const title = h("h1", {}, "Disagreements");
const from = Math.max(0, Math.trunc(Number(new URLSearchParams(location.search).get("from"))) || 0);
try {
  const view = await ask(`/api/disagreements?from=${from}`);
  fill(byId("main"), h("div", { class: "overview" }, title,
    h("section", { class: "section" }, h("h2", {}, "What labelers differ on"), differences(view), parts(view))));
} catch (error) {
  fill(byId("main"), h("section", { class: "notice" }, title, h("p", {}, error.message)));
}
