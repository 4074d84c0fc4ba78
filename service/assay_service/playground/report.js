/** Show what the scores of a file look like. */

import { drawHistogram, drawScatter, format } from "./charts.js";
import { element } from "./dom.js";
import { correlate, deviation, extent, mean, rankAll } from "./statistics.js";

const MOST_SHOWN = 20;
const MOST_POINTS = 2000;

/** Fill `place` with tables and charts of scored rows `[{line, item, answer}]` and of faulty lines. */
export function showReport(place, rows, faults, service) {
  const scored = rows.filter(({ answer }) => !answer.error);
  const refused = rows.filter(({ answer }) => answer.error)
    .map(({ line, answer }) => ({ line, message: `${answer.error.message} (${answer.error.code})` }));
  const names = service.signals.map(({ id }) => id);
  const parts = scored.length ? [
    showTable("Signals", ["Signal", "Mean", "Standard deviation", "Least", "Greatest", "Correlation with length"],
      names.map((name) => summarize(name, scored))),
    ...names.flatMap((name) => showSignal(name, scored)),
    ...listPairs(names).flatMap(([first, second]) => showDisagreement(first, second, scored)),
  ] : [];
  place.replaceChildren(...parts, ...showFaults([...faults, ...refused]));
}

function readLogits(name, rows) {
  return rows.map(({ answer }) => answer.signals[name].logit);
}

function readLengths(name, rows) {
  return rows.map(({ answer }) => answer.signals[name].completion_tokens);
}

function summarize(name, rows) {
  const logits = readLogits(name, rows);
  const [low, high] = extent(logits);
  const length = correlate(logits, readLengths(name, rows));
  return [name, ...[mean(logits), deviation(logits), low, high].map(format), length === null ? "–" : format(length)];
}

function showSignal(name, rows) {
  const logits = readLogits(name, rows);
  const points = thin(rows).map((row) => ({
    x: row.answer.signals[name].completion_tokens,
    y: row.answer.signals[name].logit,
    title: describe(row),
  }));
  return [
    element("h2", {}, name),
    element("div", { class: "columns" },
      drawHistogram(logits, `logit of ${name}`), drawScatter(points, "completion tokens", `logit of ${name}`)),
  ];
}

function showDisagreement(first, second, rows) {
  const [x, y] = [first, second].map((name) => rankAll(readLogits(name, rows)));
  const agreement = correlate(x, y);
  const worst = rows.map((row, index) => ({ row, gap: (y[index] - x[index]) / Math.max(1, rows.length - 1) }))
    .sort((a, b) => Math.abs(b.gap) - Math.abs(a.gap)).slice(0, MOST_SHOWN);
  const points = thin(rows).map((row) => ({
    x: row.answer.signals[first].logit,
    y: row.answer.signals[second].logit,
    title: describe(row),
  }));
  const spearman = agreement === null ? "not defined" : format(agreement);
  return [
    element("h2", {}, `${first} and ${second}`),
    element("p", {}, `Rank correlation (Spearman): ${spearman}. The table begins with the items whose ranks differ most.`),
    drawScatter(points, `logit of ${first}`, `logit of ${second}`),
    showTable(`Greatest disagreement of ${first} and ${second}`, ["Line", "Item", first, second, "Difference of ranks, of 1"],
      worst.map(({ row, gap }) => [row.line, excerpt(row.item),
        ...[first, second].map((name) => format(row.answer.signals[name].logit)), format(gap)])),
  ];
}

function showFaults(faults) {
  if (!faults.length) return [];
  const more = faults.length > MOST_SHOWN ? `, the first ${MOST_SHOWN}` : "";
  return [
    element("h2", {}, "Without a score"),
    showTable(`${faults.length} lines or items without a score${more}`, ["Line", "Reason"],
      faults.slice(0, MOST_SHOWN).map(({ line, message }) => [line, message])),
  ];
}

function showTable(caption, head, rows) {
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    element("table", {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...head.map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...rows.map(([title, ...cells]) => element("tr", {},
        element("th", { scope: "row" }, title), ...cells.map((cell) => element("td", {}, cell)))))));
}

function listPairs(names) {
  return names.flatMap((first, place) => names.slice(place + 1).map((second) => [first, second]));
}

/** Return at most `MOST_POINTS` rows at equal distances, because a browser draws more of them slowly. */
function thin(rows) {
  const step = Math.ceil(rows.length / MOST_POINTS);
  return rows.filter((_, index) => index % step === 0);
}

function describe({ line, item }) {
  return `line ${line}: ${excerpt(item)}`;
}

function excerpt(item) {
  const content = item.completion ?? item.messages?.at(-1)?.content;
  const text = typeof content === "string" ? content : JSON.stringify(content) ?? "";
  return text.length > 100 ? `${text.slice(0, 100)} …` : text;
}
