/** Show a ranking: places, scores, the logit and probability of each signal, errors, and what exactly was scored. */

import { drawLogit, drawProbability, format } from "./charts.js";
import { element } from "./dom.js";
import { render } from "./service.js";

/** Return completion `index` of a rank request as an item of `POST /v1/render`. */
export function describeItem(body, index) {
  const entry = body.completions[index];
  return typeof entry === "string"
    ? { prompt: body.prompt, completion: entry }
    : { prompt: body.prompt, ...entry };
}

/** Replace the list by an answer of `POST /v1/rank`; `items` has number and item of each completion. */
export function showRanking(list, answer, items) {
  const logits = answer.results.flatMap((row) => Object.values(row.signals).map(({ logit }) => Math.abs(logit)));
  const limit = Math.max(1, ...logits);
  list.replaceChildren(
    ...answer.results.map((row) => showPlace(row, items[row.index], limit)),
    ...answer.errors.map((row) => showError(row, items[row.index])));
}

function showPlace(row, { number, item }, limit) {
  const margin = row.margin === null ? "" : `, ${format(row.margin)} above the next`;
  return element("li", { class: "card" },
    element("h3", {}, `Completion ${number}`),
    element("p", {}, element("strong", {}, format(row.score)), element("span", { class: "muted" }, margin)),
    element("p", { class: "excerpt" }, excerpt(item.completion)),
    element("table", {},
      element("caption", { class: "hidden" }, `Signals of completion ${number}`),
      element("thead", {}, element("tr", {}, ...["Signal", "Logit", "Probability", "Tokens"].map(
        (title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...Object.entries(row.signals).map(([name, value]) => showSignal(name, value, limit)))),
    showDetails(item, number));
}

function showSignal(name, value, limit) {
  const spread = value.std === undefined ? "" : ` ± ${format(value.std)}`;
  const cut = value.truncated_tokens ? `, ${value.truncated_tokens} cut` : "";
  const dropped = value.dropped_tokens ? `, ${value.dropped_tokens} dropped` : "";
  return element("tr", {},
    element("th", { scope: "row" }, name),
    element("td", {}, `${format(value.logit)}${spread}`, drawLogit(value.logit, limit)),
    element("td", {}, ...(value.prob === undefined ? ["–"] : [format(value.prob), drawProbability(value.prob)])),
    element("td", {}, `${value.prompt_tokens} + ${value.completion_tokens}${cut}${dropped}`));
}

function showError(row, { number, item }) {
  return element("li", { class: "card failed" },
    element("h3", {}, `Completion ${number}: no score`),
    element("p", { class: "error" }, `${row.error.message} (${row.error.code})`),
    element("p", { class: "excerpt" }, excerpt(item.completion)));
}

/** Return a part that asks the service for the exact text once it is opened. */
function showDetails(item, number) {
  const content = element("div", {});
  const details = element("details", {},
    element("summary", {}, "What exactly was scored", element("span", { class: "hidden" }, ` for completion ${number}`)),
    content);
  details.addEventListener("toggle", async () => {
    if (!details.open || content.childElementCount) return;
    content.replaceChildren(element("p", { class: "muted" }, "Rendering …"));
    try {
      const row = await render(item);
      content.replaceChildren(...(row.error
        ? [element("p", { class: "error" }, `${row.error.message} (${row.error.code})`)]
        : Object.entries(row.signals).map(([name, signal]) => showRendered(name, signal))));
    } catch (error) {
      content.replaceChildren(element("p", { class: "error" }, error.message));
    }
  });
  return details;
}

function showRendered(name, signal) {
  const { policy, start, end, characters } = signal.score_position;
  const read = end - start === 1 ? `token ${start}` : `tokens ${start} to ${end - 1}`;
  return element("div", {},
    element("h4", {}, name),
    element("p", { class: "muted" }, `${signal.ids.length} tokens; the head reads ${read} (${policy})`),
    element("pre", { tabindex: 0, "aria-label": `Text that ${name} scores` }, ...markText(signal.text, characters)));
}

/** Return the text with the characters from `span[0]` to `span[1]` marked; a null span marks nothing. */
function markText(text, span) {
  if (!span) return [text];
  const characters = [...text]; // the service counts code points
  const part = (from, to) => characters.slice(from, to).join("");
  return [part(0, span[0]), element("mark", {}, part(...span)), part(span[1], characters.length)];
}

function excerpt(text) {
  return text.length > 160 ? `${text.slice(0, 160)} …` : text || "(empty)";
}
