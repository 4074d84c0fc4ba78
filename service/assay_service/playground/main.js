/** Start the page: ask the service what it serves, then show both views. */

import { find } from "./dom.js";
import { startFileView } from "./file_view.js";
import { startRankView } from "./rank_view.js";
import { describe } from "./service.js";
import { startTabs } from "./tabs.js";

startTabs(find("tabs"));
try {
  const service = await describe();
  const names = service.signals.map((signal) => `${signal.id} (${signal.kind})`).join(", ");
  find("service").textContent = `Version ${service.version}, signals ${names}, fingerprint ${service.fingerprint.slice(0, 12)}`;
  startRankView(service);
  startFileView(service);
} catch (error) {
  find("service").textContent = "";
  find("failure").textContent = error.message;
  find("failure").hidden = false;
}
