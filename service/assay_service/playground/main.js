/** Start the page: ask the service what it serves, then show both views. */

import { find } from "./dom.js";
import { startFileView } from "./file_view.js";
import { startRankView } from "./rank_view.js";
import { describe, useKey } from "./service.js";
import { startTabs } from "./tabs.js";

startTabs(find("tabs"));
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(find("key").value.trim());
  start();
});
await start();

async function start() {
  find("failure").hidden = true;
  let service;
  try {
    service = await describe();
  } catch (error) {
    find("service").textContent = "";
    find("failure").textContent = error.message;
    find("failure").hidden = false;
    if (error.status === 401 || error.status === 403) find("key-form").hidden = false;
    return;
  }
  find("key-form").hidden = true;
  find("key").value = "";
  const names = service.signals.map((signal) => `${signal.id} (${signal.kind})`).join(", ");
  find("service").textContent = `Version ${service.version}, signals ${names}, fingerprint ${service.fingerprint.slice(0, 12)}`;
  startRankView(service);
  startFileView(service);
}
