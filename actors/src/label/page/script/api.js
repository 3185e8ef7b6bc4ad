// Requests that outlast a server that is away for a while.

import { Refused, ask } from "/web/requests.js";

export { Refused, ask };

const LONGEST_WAIT_MS = 10_000;

// Asks until there is an answer: a server that restarts, or a train in a tunnel, loses nothing. `waiting` is told of each
// failure. What the server refuses is not asked again.
export async function askUntilAnswered(path, body, waiting) {
  for (let wait = 500; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
    try {
      return await ask(path, body);
    } catch (error) {
      if (error instanceof Refused && error.status < 500) throw error;
      waiting(error);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}
