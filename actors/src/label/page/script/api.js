// Requests to the server that this page came from.

export class Refused extends Error {
  constructor(status, problem) {
    super(problem);
    this.status = status;
  }
}

export async function ask(path, body, options = {}) {
  const request = body === undefined
    ? {}
    : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, { ...request, ...options });
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, content.error ?? `the server answers ${answer.status}`);
  return content;
}

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
