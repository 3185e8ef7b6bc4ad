// Elements by name, properties and children. Text is always set as text: what a model or a labeler wrote never becomes a
// part of the page.

const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";
// What a browser keeps beside the attribute of that name, which only says how it begins.
const LIVE = ["value", "checked", "selected"];

function filled(element, properties, children) {
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (LIVE.includes(key)) element[key] = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (name, properties, ...children) => filled(document.createElement(name), properties, children);

export const svg = (name, properties, ...children) => filled(document.createElementNS(SVG, name), properties, children);

export const mathml = (name, properties, ...children) => filled(document.createElementNS(MATHML, name), properties, children);

export const byId = (id) => document.getElementById(id);
