// What each letter does. The server refuses to start where a flag's key is one of these. Some are of use where there are
// responses alone, and some to labelers alone.

export const KEYS = [
  { key: "j", does: "next response", ofResponses: true },
  { key: "k", does: "previous response", ofResponses: true },
  { key: "a", does: "all bad: none is acceptable", ofResponses: true },
  { key: "m", does: "Markdown, or the text exactly as it was written" },
  { key: "n", does: "notes" },
  { key: "s", does: "skip", ofLabelers: true },
  { key: "u", does: "undo: back to the last one", ofLabelers: true },
];

const isTyping = (target) => target.matches("textarea, input, select");

// Tells `actions` which key was pressed. `isOn` says whether single keys do anything: they can be turned off, for those who
// steer by voice.
export function listen(actions, isOn) {
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      return actions.submit();
    }
    if (isTyping(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || !isOn()) return;
    const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code)?.[1];
    const act = digit !== undefined
      ? () => (event.shiftKey ? actions.score(Number(digit)) : actions.place(Number(digit)))
      : event.key === "?" ? actions.help : actions.letter(event.key.toLowerCase());
    if (act) {
      event.preventDefault();
      act();
    }
  });
}
