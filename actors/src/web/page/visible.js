// Characters that can’t be seen, or that turn the direction of what follows, are shown by their numbers.

import { h } from "./elements.js";

// The same as in `label/render/visible.rs`.
const RANGES = [
  [0x0, 0x8], [0xb, 0xc], [0xe, 0x1f], [0x7f, 0x9f], [0xad, 0xad], [0x34f, 0x34f], [0x61c, 0x61c], [0x115f, 0x1160],
  [0x17b4, 0x17b5], [0x180e, 0x180e], [0x200b, 0x200f], [0x202a, 0x202e], [0x2060, 0x206f], [0x3164, 0x3164],
  [0xfeff, 0xfeff], [0xffa0, 0xffa0], [0xfff9, 0xfffb], [0xe0000, 0xe007f],
];
const escaped = (number) => `\\u{${number.toString(16)}}`;
const INVISIBLE = new RegExp(`[${RANGES.map(([first, last]) => `${escaped(first)}-${escaped(last)}`).join("")}]`, "u");
const JOINERS = ["\u200c", "\u200d"];

export const mark = (...number) => h("mark", { title: "a character that can’t be seen" }, number);

// A text as what an element may hold, with a mark for each character that can’t be seen. What stands before it tells whether
// a joiner at its beginning belongs there.
export function visible(text, textBefore = "") {
  if (!INVISIBLE.test(text)) return [text];
  const parts = [];
  let run = "";
  let before = [...textBefore].at(-1) ?? " ";
  for (const c of text) {
    // Joiners belong to the writing of Persian, Hindi and others, and to emoji: after a letter of those they stay.
    const isJoiner = JOINERS.includes(c) && before > "\u007f" && !INVISIBLE.test(before);
    if (INVISIBLE.test(c) && !isJoiner) {
      if (run !== "") parts.push(run);
      run = "";
      parts.push(mark(`U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`));
    } else {
      run += c;
    }
    before = c;
  }
  if (run !== "") parts.push(run);
  return parts;
}
