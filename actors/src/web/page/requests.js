// Requests to the server that the page came from.

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
