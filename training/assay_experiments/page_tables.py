"""Print results as Markdown tables; a number is the mean over the seeds ± its standard error."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Results = dict[str, Any]
Column = tuple[str, Callable[[Results], float]]


def format_cell(values: Iterable[float]) -> str:
    """Return mean ± standard error as text; a single seed has no error."""
    seen = list(values)
    error = f" ± {statistics.stdev(seen) / len(seen) ** 0.5:.3f}" if len(seen) > 1 else ""
    return f"{statistics.fmean(seen):.3f}{error}"


def format_table(rows: Sequence[Results], columns: Sequence[Column]) -> list[str]:
    """Return a Markdown table with a line per variant and a column per number."""
    lines = [f"| | {' | '.join(name for name, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        seeds = [row["results"] for row in rows if row["variant"] == variant]
        lines.append(f"| {variant} | {' | '.join(format_cell(map(value, seeds)) for _, value in columns)} |")
    return [*lines, ""]


def read_at(*path: str | int) -> Callable[[Results], float]:
    """Return a function that reads the number at a path of keys and indices."""

    def value(numbers: Any) -> float:  # noqa: ANN401 - JSON
        for step in path:
            numbers = numbers[step]
        return float(numbers)

    return value
