/** Draw bars, histograms and scatter plots as SVG, each with a text for readers who cannot see it. */

import { svg } from "./dom.js";
import { bin, extent } from "./statistics.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [440, 220, 48, 36, 8];
const BINS = 24;

/** Return a bar from zero to `value`, on a scale from `-limit` to `limit`. */
export function drawLogit(value, limit) {
  const end = 50 + 50 * Math.max(-1, Math.min(1, value / limit));
  return svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", class: "bar", "aria-hidden": "true" },
    svg("rect", { x: 0, y: 0, width: 100, height: 8, class: "track" }),
    svg("rect", { x: Math.min(50, end), y: 0, width: Math.abs(end - 50), height: 8, class: value < 0 ? "minus" : "plus" }),
    svg("rect", { x: 49.8, y: 0, width: 0.4, height: 8, class: "zero" }));
}

/** Return a bar from 0 to a probability. */
export function drawProbability(value) {
  return svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", class: "bar", "aria-hidden": "true" },
    svg("rect", { x: 0, y: 0, width: 100, height: 8, class: "track" }),
    svg("rect", { x: 0, y: 0, width: 100 * value, height: 8, class: "probability" }));
}

/** Return a histogram of `values`; `label` is the name of the horizontal axis. */
export function drawHistogram(values, label) {
  const bins = bin(values, BINS);
  const most = Math.max(...bins.map(({ count }) => count));
  const width = (WIDTH - LEFT) / bins.length;
  const bars = bins.map(({ from, to, count }, place) => {
    const height = (HEIGHT - BOTTOM - TOP) * count / most;
    const shown = { x: LEFT + place * width, y: HEIGHT - BOTTOM - height, width: width - 1, height, class: "plus" };
    return svg("rect", shown, svg("title", {}, `${format(from)} to ${format(to)}: ${count}`));
  });
  const [low, high] = extent(values);
  return frame(`Histogram of ${label}: ${values.length} items from ${format(low)} to ${format(high)}`,
    bars, { label, range: [low, high] }, { label: "items", range: [0, most] });
}

/** Return a scatter plot of the points `[{x, y, title}]`. */
export function drawScatter(points, xLabel, yLabel) {
  const x = { label: xLabel, range: extent(points.map((point) => point.x)) };
  const y = { label: yLabel, range: extent(points.map((point) => point.y)) };
  const dots = points.map((point) => svg("circle", {
    cx: LEFT + (WIDTH - LEFT - 8) * scale(point.x, x.range) + 4,
    cy: HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP - 8) * scale(point.y, y.range) - 4,
    r: 2.5,
    class: "dot",
  }, svg("title", {}, point.title)));
  return frame(`${yLabel} against ${xLabel}: ${points.length} items`, dots, x, y);
}

/** Return a number with four significant digits. */
export function format(value) {
  return Number(value.toPrecision(4)).toString();
}

function scale(value, [low, high]) {
  return low === high ? 0.5 : (value - low) / (high - low);
}

function frame(title, marks, x, y) {
  const text = (content, attributes) => svg("text", attributes, content);
  const floor = HEIGHT - BOTTOM;
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img", "aria-label": title },
    svg("line", { x1: LEFT, y1: floor, x2: WIDTH, y2: floor, class: "axis" }),
    svg("line", { x1: LEFT, y1: TOP, x2: LEFT, y2: floor, class: "axis" }),
    ...marks,
    text(format(x.range[0]), { x: LEFT, y: floor + 14 }),
    text(format(x.range[1]), { x: WIDTH, y: floor + 14, "text-anchor": "end" }),
    text(x.label, { x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle" }),
    text(format(y.range[0]), { x: LEFT - 4, y: floor, "text-anchor": "end" }),
    text(format(y.range[1]), { x: LEFT - 4, y: TOP + 10, "text-anchor": "end" }),
    text(y.label, { x: 12, y: floor / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${floor / 2})` }));
}
