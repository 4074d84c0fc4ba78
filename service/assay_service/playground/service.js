/** Call the service. Paths are relative, so that the page also works behind a path prefix. */

/** The API key, in the memory of this page only: neither stored, nor part of an address or of a shown command. */
let key = null;

/** Send this API key with all requests from now on. */
export function useKey(text) {
  key = text;
}

/** Return whether requests carry an API key. */
export function hasKey() {
  return key !== null;
}

/** An answer that is not a result: `message` is a sentence for the user. */
export class ServiceError extends Error {}

/** Return the signals, blends and default of the service. */
export async function describe() {
  const [models, info] = await Promise.all([call("v1/models"), call("info")]);
  return {
    fingerprint: info.fingerprint,
    version: info.version,
    default: info.default,
    signals: models.data.filter((model) => model.kind !== "blend"),
    blends: models.data.filter((model) => model.kind === "blend"),
    maxItems: info.limits.max_items,
  };
}

/** Return the ranking of the completions of one prompt; the body is that of `POST /v1/rank`. */
export function rank(body, signal) {
  return call("v1/rank", body, signal);
}

/** Return the scores of items; the body is that of `POST /v1/score`. */
export function score(body, signal) {
  return call("v1/score", body, signal);
}

/** Return the text that each signal scores for one item, or the item's error. */
export async function render(item) {
  const answer = await call("v1/render", { items: [item] });
  return answer.data[0];
}

async function call(path, body, signal) {
  const authorization = key === null ? {} : { authorization: `Bearer ${key}` };
  const options = body === undefined ? { headers: authorization } : {
    method: "POST",
    headers: { "content-type": "application/json", ...authorization },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, { ...options, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServiceError("The service cannot be reached. Is it still running?");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  const refusal = answer?.error;
  if (refusal) {
    const wait = Number(response.headers.get("retry-after"));
    throw Object.assign(new ServiceError(`${refusal.param ? `${refusal.param}: ` : ""}${refusal.message} (${refusal.code})`), {
      status: response.status,
      retryAfterMs: refusal.retryable ? 1000 * (wait || 1) : null,
    });
  }
  throw new ServiceError(`The service answered with status ${response.status} and no JSON.`);
}
