// Elements, and numbers as text.

export { byId, h, svg } from '/web/elements.js';
export { visible } from '/web/visible.js';

/** A number for people: as many digits as say something. */
export function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (!Number.isFinite(value)) return value > 0 ? '∞' : '−∞';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) {
    return Number(value.toPrecision(digits)).toExponential().replace('e+', 'e').replaceAll('-', '−');
  }
  if (Number.isInteger(value)) return value.toLocaleString('en').replace('-', '−');
  return Number(value.toPrecision(digits)).toLocaleString('en', { maximumSignificantDigits: digits }).replace('-', '−');
}

export const integer = (value) => Math.round(value).toLocaleString('en');

export function duration(seconds) {
  if (!(seconds >= 0)) return '–';
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

export const words = (name) => name.replaceAll('_', ' ');

/** Runs `run` once things have calmed down for `ms`, and at the latest after four times as long. */
export function debounced(run, ms) {
  let timer = 0;
  let first = 0;
  return () => {
    const now = performance.now();
    if (timer === 0) first = now;
    clearTimeout(timer);
    const wait = Math.max(0, Math.min(ms, first + 4 * ms - now));
    timer = setTimeout(() => {
      timer = 0;
      run();
    }, wait);
  };
}
