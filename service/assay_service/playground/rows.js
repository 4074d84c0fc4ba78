/** Read the lines of a JSON Lines file as items of `POST /v1/score`; pure. */

/** Return `{items: [{line, item}], faults: [{line, message}]}` of the text of a file. */
export function readRows(text) {
  const items = [];
  const faults = [];
  for (const [place, content] of text.split("\n").entries()) {
    if (!content.trim()) continue;
    const line = place + 1;
    try {
      for (const item of expand(JSON.parse(content))) items.push({ line, item });
    } catch (error) {
      faults.push({ line, message: error instanceof SyntaxError ? "is not JSON" : error.message });
    }
  }
  return { items, faults };
}

function expand(row) {
  if (row === null || typeof row !== "object" || Array.isArray(row)) throw new Error("is not an object");
  const { prompt, completion, messages, completions, chosen, rejected } = row;
  if (messages !== undefined) return [{ messages }];
  if (prompt === undefined) throw new Error("has neither `prompt` nor `messages`");
  if (completion !== undefined) return [{ prompt, completion, ...finish(row) }];
  if (Array.isArray(completions)) {
    return completions.map((entry) => ({ prompt, ...(typeof entry === "string" ? { completion: entry } : entry) }));
  }
  if (typeof chosen === "string" && typeof rejected === "string") return [chosen, rejected].map((text) => ({ prompt, completion: text }));
  throw new Error("has none of `completion`, `completions`, or `chosen` and `rejected` as texts");
}

function finish(row) {
  return row.finish_reason === undefined ? {} : { finish_reason: row.finish_reason };
}
