/** Compute what the charts show; pure functions on arrays of numbers. */

/** Return the mean. */
export function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Return the standard deviation of a sample, 0 for fewer than two values. */
export function deviation(values) {
  if (values.length < 2) return 0;
  const center = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - center) ** 2, 0) / (values.length - 1));
}

/** Return Pearson's correlation; null where it is not defined. */
export function correlate(xs, ys) {
  const [mx, my, sx, sy] = [mean(xs), mean(ys), deviation(xs), deviation(ys)];
  if (xs.length < 2 || sx === 0 || sy === 0) return null;
  return xs.reduce((sum, x, i) => sum + (x - mx) * (ys[i] - my), 0) / ((xs.length - 1) * sx * sy);
}

/** Return the ranks of the values from 0; equal values share the mean of their ranks. */
export function rankAll(values) {
  const order = values.map((_, index) => index).sort((a, b) => values[a] - values[b]);
  const ranks = new Array(values.length);
  for (let start = 0; start < order.length;) {
    let end = start;
    while (end < order.length && values[order[end]] === values[order[start]]) end += 1;
    for (let place = start; place < end; place += 1) ranks[order[place]] = (start + end - 1) / 2;
    start = end;
  }
  return ranks;
}

/** Return bins of equal width over the values: `[{from, to, count}]`; all values equal give one bin. */
export function bin(values, count) {
  const [low, high] = extent(values);
  if (low === high) return [{ from: low, to: high, count: values.length }];
  const width = (high - low) / count;
  const bins = Array.from({ length: count }, (_, i) => ({ from: low + i * width, to: low + (i + 1) * width, count: 0 }));
  for (const value of values) bins[Math.min(count - 1, Math.floor((value - low) / width))].count += 1;
  return bins;
}

/** Return the least and the greatest value; a loop, because arguments of `Math.min` are limited in number. */
export function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}
