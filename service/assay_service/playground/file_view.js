/** The view that scores a file, and shows histograms, scores against length, and where signals disagree. */

import { find } from "./dom.js";
import { showReport } from "./report.js";
import { readRows } from "./rows.js";
import { score } from "./service.js";

const BATCH = 32;
const MOST_BYTES = 64 * 2 ** 20;
const TRIES = 5;

/** Score the file that is dropped or chosen; a second file takes the place of the first. */
export function startFileView(service) {
  let running = new AbortController();
  const begin = (file) => {
    if (!file) return;
    running.abort(); // the run of the file before shows nothing more
    running = new AbortController();
    scoreFile(file, service, running.signal);
  };
  const drop = find("drop");
  find("file").addEventListener("change", (event) => begin(event.target.files[0]));
  find("stop").addEventListener("click", () => running.abort("stopped"));
  drop.addEventListener("dragover", (event) => event.preventDefault());
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    begin(event.dataTransfer.files[0]);
  });
}

async function scoreFile(file, service, signal) {
  find("report").replaceChildren();
  find("save").disabled = true;
  if (file.size > MOST_BYTES) {
    say(`${file.name} is larger than ${MOST_BYTES / 2 ** 20} MiB; use the command assay score.`);
    return;
  }
  const { items, faults } = readRows(await file.text());
  const rows = [];
  find("stop").disabled = false;
  const end = await scoreItems(items, rows, service, signal);
  if (signal.aborted && signal.reason !== "stopped") return; // another file has been chosen
  find("stop").disabled = true;
  say(end ?? `All ${items.length} items of ${file.name}: ${count(rows)} have a score, and ${faults.length} lines are faulty.`);
  showReport(find("report"), rows, faults, service);
  offer(rows, file.name);
}

/** Add the answers of all items to `rows`; return why it ended early, or null. */
async function scoreItems(items, rows, service, signal) {
  try {
    const size = Math.min(BATCH, service.maxItems);
    for (let start = 0; start < items.length; start += size) {
      rows.push(...await scoreBatch(items.slice(start, start + size), service, signal));
      find("file-progress").max = items.length;
      find("file-progress").value = rows.length;
      say(`${rows.length} of ${items.length} items`);
    }
    return null;
  } catch (error) {
    return `${signal.aborted ? "Stopped" : error.message} after ${rows.length} of ${items.length} items.`;
  }
}

/** Return line, item and answer of each item of a batch; a full queue is waited for. */
async function scoreBatch(batch, service, signal) {
  // Equal weights, so that the answer has the logits of all signals; the sum itself is not shown.
  const weights = Object.fromEntries(service.signals.map(({ id }) => [id, 1]));
  for (let tries = 1; ; tries += 1) {
    try {
      const answer = await score({ items: batch.map(({ item }) => item), weights }, signal);
      return batch.map((entry, place) => ({ ...entry, answer: answer.data[place] }));
    } catch (error) {
      if (!error.retryAfterMs || tries === TRIES) throw error;
      await new Promise((resolve) => { setTimeout(resolve, error.retryAfterMs); });
    }
  }
}

function say(text) {
  find("file-status").textContent = text;
}

function count(rows) {
  return rows.filter(({ answer }) => !answer.error).length;
}

let saved = null;

function offer(rows, name) {
  const button = find("save");
  const lines = rows.map(({ line, item, answer }) => JSON.stringify({ line, ...item, signals: answer.signals, error: answer.error }));
  if (saved) URL.revokeObjectURL(saved);
  saved = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "application/jsonl" }));
  button.disabled = rows.length === 0;
  button.onclick = () => {
    const link = Object.assign(document.createElement("a"), { href: saved, download: `${name}.scores.jsonl` });
    link.click();
  };
}
