// Elements, and what the pages of this folder make of them.

import { h } from "/web/elements.js";

export { byId, h, mathml } from "/web/elements.js";
export { mark, visible } from "/web/visible.js";

export const kbd = (key) => h("kbd", { "aria-hidden": "true" }, key);

export const letter = (index) => String.fromCharCode(65 + index);

export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(Boolean));
}
