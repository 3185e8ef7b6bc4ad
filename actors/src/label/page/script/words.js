// How numbers and rankings are said.

import { letter } from "./dom.js";

export const percent = (value) => `${(100 * value).toFixed(1)} %`;
export const number = (value) => new Intl.NumberFormat("en").format(value);
export const fixed = (value) => value.toFixed(2).replace("-", "−");
export const when = (time) => new Date(time).toLocaleString();

export const ARMS = { random: "drawn at random", acquired: "chosen by a reward model", picked: "picked from a run" };

// A = B > C.
export function inWords(ranks) {
  const used = [...new Set(ranks)].sort((a, b) => a - b);
  const tier = (rank) => ranks.flatMap((other, index) => (other === rank ? [letter(index)] : [])).join(" = ");
  return used.map(tier).join(" > ");
}
