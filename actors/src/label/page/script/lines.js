// One line over versions, as SVG.

import { h, svg } from "/web/elements.js";

import { fixed, number } from "./words.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [640, 150, 46, 8, 10, 22];

// `points` are { x, y, error }, `domain` the versions from left to right, `range` the values from bottom to top where they
// are known; `even` is a value at which a dashed line stands.
export function lines({ title, points, domain, range, even }) {
  const values = points.flatMap(({ y, error }) => [y - (error ?? 0), y + (error ?? 0)]);
  const [low, high] = range ?? [Math.min(...values), Math.max(...values)];
  const span = high > low ? high - low : 1;
  const width = domain[1] > domain[0] ? domain[1] - domain[0] : 1;
  const x = (version) => LEFT + ((version - domain[0]) / width) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / span) * (HEIGHT - TOP - BOTTOM);
  const cut = (value) => Math.min(high, Math.max(low, value));
  const at = ({ x: version, y: value }) => `${x(version).toFixed(1)},${y(value).toFixed(1)}`;
  const bottom = HEIGHT - BOTTOM;
  return h("figure", {},
    h("figcaption", {}, title),
    svg("svg", { class: "lines", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": described(title, points) },
      svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: bottom, y2: bottom }),
      [low, high].map((value) => svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, fixed(value))),
      svg("text", { x: LEFT, y: HEIGHT - 5 }, `v${number(domain[0])}`),
      svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end" }, `v${number(domain[1])}`),
      even === undefined ? [] : svg("line", { class: "even", x1: LEFT, x2: WIDTH - RIGHT, y1: y(even), y2: y(even) }),
      svg("polyline", { class: "line", points: points.map(at).join(" ") }),
      points.filter(({ error }) => error).map((point) => svg("line", {
        class: "error", x1: x(point.x), x2: x(point.x), y1: y(cut(point.y - point.error)), y2: y(cut(point.y + point.error)),
      })),
      points.length > 60 ? [] : points.map((point) => svg("circle", { class: "dot", cx: x(point.x), cy: y(point.y), r: 3 }))));
}

function described(title, points) {
  const [first, last] = [points[0], points.at(-1)];
  return `${title}: ${fixed(first.y)} at version ${number(first.x)}, ${fixed(last.y)} at version ${number(last.x)}`;
}
