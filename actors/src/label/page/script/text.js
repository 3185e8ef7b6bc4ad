// Texts of prompts and responses. They are hostile: the server sends them as a tree of element names, and only the names
// below become elements.

import { h } from "./dom.js";

const ELEMENTS = new Set([
  "p", "h3", "h4", "h5", "em", "strong", "del", "code", "pre", "blockquote", "ul", "ol", "li", "br", "hr",
  "table", "thead", "tr", "th", "td", "mark",
]);
const CLASSES = { math: "math", image: "image" };
const BLOCKS = new Set(["p", "h3", "h4", "h5", "blockquote", "ul", "ol", "li", "td", "th", "pre"]);

function element(node) {
  if (typeof node === "string") return document.createTextNode(node);
  const children = (node.children ?? []).map(element);
  if (node.name === "a" && /^https?:\/\//i.test(node.href)) {
    return h("a", { href: node.href, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
  }
  if (CLASSES[node.name]) return h("span", { class: CLASSES[node.name] }, children);
  if (node.name === "mark") return h("mark", { title: "a character that can’t be seen" }, children);
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
