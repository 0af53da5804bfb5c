/** The median of some numbers, with the least and the most of them. */
export function spread(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const text = (value) => (value < 10 ? value.toFixed(2) : value.toFixed(0));
  return `${text(sorted[sorted.length >> 1])} (${text(sorted[0])} to ${text(sorted.at(-1))})`;
}
