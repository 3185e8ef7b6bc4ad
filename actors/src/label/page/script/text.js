// Texts of prompts and responses. They are hostile: the server sends them as a tree of element names, and only the names
// below become elements.

import { h, mark, mathml } from "./dom.js";

const ELEMENTS = new Set([
  "p", "h3", "h4", "h5", "em", "strong", "del", "code", "pre", "blockquote", "ul", "ol", "li", "br", "hr",
  "table", "thead", "tr", "th", "td", "mark",
]);
const MATHML = new Set([
  "mfrac", "mi", "mmultiscripts", "mn", "mo", "mover", "mpadded", "mprescripts", "mroot", "mrow", "mspace", "msqrt",
  "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover",
]);
const ATTRIBUTES = new Set([
  "accent", "accentunder", "alttext", "class", "display", "displaystyle", "form", "height", "largeop", "linethickness",
  "lspace", "mathvariant", "maxsize", "minsize", "movablelimits", "rspace", "scriptlevel", "stretchy", "symmetric", "width",
]);
// A formula whose source is longer may be wider than a telephone.
const NARROW = 24;
const CLASSES = { latex: "latex", image: "image" };
const BLOCKS = new Set(["p", "h3", "h4", "h5", "blockquote", "ul", "ol", "li", "td", "th", "pre"]);

const attributesOf = (node) => Object.fromEntries(Object.entries(node.attributes ?? {}).filter(([name]) => ATTRIBUTES.has(name)));

function formula(node, children) {
  const attributes = attributesOf(node);
  const made = mathml("math", { ...attributes, title: attributes.alttext }, children);
  const isDisplay = attributes.display === "block";
  if (!isDisplay && attributes.alttext.length <= NARROW) return made;
  return h("span", { class: isDisplay ? "formula display" : "formula", role: "group", tabindex: "0", "aria-label": "formula" }, made);
}

function element(node) {
  if (typeof node === "string") return document.createTextNode(node);
  const children = (node.children ?? []).map(element);
  if (node.name === "a" && /^https?:\/\//i.test(node.href)) {
    return h("a", { href: node.href, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
  }
  if (CLASSES[node.name]) return h("span", { class: CLASSES[node.name] }, children);
  if (node.name === "mark") return mark(children);
  if (node.name === "math") return formula(node, children);
  if (MATHML.has(node.name)) return mathml(node.name, attributesOf(node), children);
  if (!ELEMENTS.has(node.name)) return h("span", {}, children);
  // Each block has its own direction: Arabic and English may stand in one text.
  return h(node.name, { dir: BLOCKS.has(node.name) && "auto" }, children);
}

// A text that can be shown as it is rendered or exactly as it was written.
export function textView({ raw, nodes }, isVerbatim) {
  const view = h("div", { class: isVerbatim ? "text verbatim" : "text", dir: "auto" });
  const show = (isSource) => {
    if (isSource) view.replaceChildren(h("pre", { class: "source", dir: "auto", tabindex: "0", "aria-label": "source" }, raw));
    else view.replaceChildren(...nodes.map(element));
  };
  show(false);
  return { view, show };
}

const ROLES = { system: "Instructions to the assistant", user: "User", assistant: "Assistant", text: "Prompt" };

// A turn of a prompt.
export function turnView(turn) {
  const { view, show } = textView(turn, turn.role === "text");
  return { view: h("section", { class: "turn", "data-role": turn.role }, h("h3", {}, ROLES[turn.role]), view), show };
}

export const renderNodes = (nodes) => nodes.map(element);
