/** Choose a signal, a blend, or weights of one's own by sliders. */

import { element, find } from "./dom.js";

const OWN = "weights of my own";

/** Fill the menu and the sliders, and return an object whose `read` gives `model` or `weights` of a request. */
export function startWeights(service, onChange) {
  const menu = find("model");
  const groups = [["Blends", service.blends], ["Signals", service.signals]];
  for (const [label, models] of groups.filter(([, found]) => found.length)) {
    menu.append(element("optgroup", { label }, ...models.map(({ id }) => element("option", { value: id }, id))));
  }
  menu.append(element("option", { value: "" }, OWN));
  menu.value = service.default;
  const sliders = new Map(service.signals.map(({ id }) => [id, addSlider(id, () => {
    menu.value = "";
    onChange();
  })]));
  const show = () => {
    if (menu.value === "") return;
    const weights = service.blends.find(({ id }) => id === menu.value)?.weights ?? { [menu.value]: 1 };
    for (const [id, set] of sliders) set.value = weights[id] ?? 0;
  };
  menu.addEventListener("change", () => {
    show();
    onChange();
  });
  show();
  return { read: () => (menu.value === "" ? { weights: readWeights(sliders) } : { model: menu.value }) };
}

function readWeights(sliders) {
  return Object.fromEntries([...sliders].map(([id, slider]) => [id, slider.value]));
}

/** Add a slider with the number beside it; the returned object has the number as `value`. */
function addSlider(id, onChange) {
  const slider = element("input", { type: "range", id: `weight-${id}`, min: -1, max: 1, step: 0.05 });
  const output = element("output", { for: `weight-${id}` });
  const show = () => { output.textContent = Number(slider.value).toFixed(2); };
  slider.addEventListener("input", () => {
    show();
    onChange();
  });
  find("sliders").append(element("div", { class: "row" }, element("label", { for: `weight-${id}` }, id), slider, output));
  return {
    get value() { return Number(slider.value); },
    set value(weight) {
      // A blend may have a weight beyond the usual range.
      slider.min = Math.min(-1, weight);
      slider.max = Math.max(1, weight);
      slider.value = weight;
      show();
    },
  };
}
