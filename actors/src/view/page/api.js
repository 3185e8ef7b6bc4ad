// What the server is asked, and what it tells by itself.

import { Refused, ask } from '/web/requests.js';

export { Refused };

/** In place of a round's number: the curves are of all rounds, everything else of the run that is followed. */
export const ALL = 'all';

let round = null;

/** Whose curves and rollouts are asked for from now on: those of a round, or, with null, of the run that is followed. */
export function choose(number) {
  round = number;
}

/** Whether the curves are of all rounds. */
export const isOfAll = () => round === ALL;

/** A path, of the run that is chosen. */
export function ofRound(path) {
  if (round === null || (isOfAll() && path !== 'curves')) return path;
  return `rounds/${round}/${path}`;
}

/** What the server says of the run that is chosen. */
export async function get(path, query = {}) {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== '');
  const text = pairs.length ? `?${new URLSearchParams(pairs)}` : '';
  return ask(`/api/${ofRound(path)}${text}`);
}

/** The run that is chosen; with what its curves begin with as `all`, where those are of all rounds. */
export async function getRun() {
  const run = await get('run');
  if (isOfAll()) run.all = await get('rounds/all/run');
  return run;
}

export const post = (path, body) => ask(`/api/${path}`, body, { method: 'POST' });

const RETRY_MS = 2000;

/**
 * Hears messages from the one after `after` on. A browser comes again by itself and says what it heard last; where it has
 * given up (the server was gone, or is another one now), listening begins anew once the run is told of again, and `onBack`
 * is called with that, or with null where the session is over.
 */
export function listen(after, { onMessage, onState, onBack }) {
  let source = null;
  const open = (id) => {
    source = new EventSource(`/api/events?after=${encodeURIComponent(id)}`);
    source.onopen = () => onState(true);
    source.onmessage = (event) => onMessage(JSON.parse(event.data));
    source.onerror = () => {
      onState(false);
      if (source.readyState === EventSource.CLOSED) setTimeout(again, RETRY_MS);
    };
  };
  const again = async () => {
    try {
      const run = await getRun();
      open(run.id);
      onBack(run);
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        onBack(null);
        return;
      }
      setTimeout(again, RETRY_MS);
    }
  };
  open(after);
}
