/** The view that ranks the completions of one prompt, again after every change. */

import { writeCurl, writePython } from "./code.js";
import { element, find } from "./dom.js";
import { describeItem, showRanking } from "./ranking.js";
import { hasKey, rank } from "./service.js";
import { startWeights } from "./weights.js";

const DELAY_MS = 300; // after the last key, so that not every letter is scored
const EXAMPLE = {
  prompt: "What can I do against a sore throat?",
  completions: [
    "Drink warm tea with honey, gargle with salt water and rest your voice. If it lasts longer than a week, or you have a high fever, see a doctor.",
    "Something warm is good I guess.",
    "The tower was built in 1889 and is open until eleven in the evening.",
    "You should shut up for ever, nobody wants to hear you anyway.",
  ],
};

/** Show the example, and rank it. */
export function startRankView(service) {
  const refresh = delay(() => refreshRanking(weights), DELAY_MS);
  const weights = startWeights(service, refresh);
  find("prompt").value = EXAMPLE.prompt;
  for (const text of EXAMPLE.completions) addCompletion(text, refresh);
  find("inputs").addEventListener("input", refresh);
  find("inputs").addEventListener("submit", (event) => event.preventDefault());
  find("add").addEventListener("click", () => {
    addCompletion("", refresh).querySelector("textarea").focus();
    refresh();
  });
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", () => copy(button, find(button.dataset.copy).textContent));
  }
  refresh.now();
}

function addCompletion(text, refresh) {
  const number = 1 + Math.max(0, ...cards().map((card) => Number(card.dataset.number)));
  const id = `completion-${number}`;
  const remove = element("button", {
    type: "button",
    "aria-label": `Remove completion ${number}`,
    onclick: () => {
      const next = card.nextElementSibling ?? card.previousElementSibling;
      card.remove();
      (next?.querySelector("textarea") ?? find("add")).focus();
      refresh();
    },
  }, "Remove");
  const area = element("textarea", { id, rows: 3 });
  area.value = text;
  const card = element("div", { class: "card", "data-number": number },
    element("label", { for: id }, `Completion ${number}`), area,
    element("div", { class: "row" },
      element("label", {}, element("input", { type: "checkbox" }), " was cut off by a length limit"), remove));
  find("completions").append(card);
  return card;
}

function cards() {
  return [...find("completions").children];
}

/** Return the texts of the page as the body of `POST /v1/rank`, and the numbers of its completions. */
function readInputs(rule) {
  const completions = cards().map((card) => {
    const text = card.querySelector("textarea").value;
    return card.querySelector("[type=checkbox]").checked ? { completion: text, finish_reason: "length" } : text;
  });
  return {
    body: { prompt: find("prompt").value, completions, ...rule },
    numbers: cards().map((card) => Number(card.dataset.number)),
  };
}

let running = new AbortController();

async function refreshRanking(weights) {
  running.abort(); // an answer for older texts must not replace that for newer ones
  running = new AbortController();
  const { signal } = running;
  const { body, numbers } = readInputs(weights.read());
  const origin = new URL(".", location.href).href.replace(/\/$/, "");
  find("curl").textContent = writeCurl(origin, body, hasKey());
  find("python").textContent = writePython(origin, body, hasKey());
  if (body.completions.length === 0) {
    showRanking(find("ranking"), { results: [], errors: [] }, []);
    find("status").textContent = "Add a completion.";
    return;
  }
  find("status").textContent = "Scoring …";
  try {
    const answer = await rank(body, signal);
    const items = numbers.map((number, index) => ({ number, item: describeItem(body, index) }));
    showRanking(find("ranking"), answer, items);
    find("status").textContent = summarize(answer, items);
  } catch (error) {
    if (signal.aborted) return;
    showRanking(find("ranking"), { results: [], errors: [] }, []);
    find("status").textContent = error.message;
  }
}

function summarize({ results, errors, model }, items) {
  const failed = errors.length ? ` ${errors.length} without a score.` : "";
  if (!results.length) return `No completion has a score.${failed}`;
  return `Completion ${items[results[0].index].number} is first of ${results.length} by ${model}.${failed}`;
}

async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "The browser does not allow copying";
  }
  setTimeout(() => { button.textContent = label; }, 2000);
}

/** Return a function that runs `work` once its calls have paused for `ms`; `now` runs it at once. */
function delay(work, ms) {
  let timer;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(work, ms);
  };
  return Object.assign(later, { now: work });
}
