// What the server is asked, and what it tells by itself.

export class Refused extends Error {
  constructor(status, problem) {
    super(problem);
    this.status = status;
  }
}

async function answer(response) {
  const body = await response.json().catch(() => ({ error: response.statusText }));
  if (!response.ok) throw new Refused(response.status, body.error ?? response.statusText);
  return body;
}

export async function get(path, query = {}) {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== '');
  const text = pairs.length ? `?${new URLSearchParams(pairs)}` : '';
  return answer(await fetch(`/api/${path}${text}`, { credentials: 'same-origin' }));
}

export async function post(path, body) {
  const request = { method: 'POST', credentials: 'same-origin' };
  if (body !== undefined) {
    request.headers = { 'content-type': 'application/json' };
    request.body = JSON.stringify(body);
  }
  return answer(await fetch(`/api/${path}`, request));
}

const RETRY_MS = 2000;

/**
 * Hears messages from the one after `after` on. A browser comes again by itself and says what it heard last; where it has
 * given up (the server was gone, or is another one now), `onLost` is called, and listening begins anew once `get('run')`
 * is answered.
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
      const run = await get('run');
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
