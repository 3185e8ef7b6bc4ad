// Elements, and what the pages of this folder make of them.

export { byId, h, mathml } from "/web/elements.js";
export { mark, visible } from "/web/visible.js";

export const letter = (index) => String.fromCharCode(65 + index);

export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(Boolean));
}
