"""Turn the rates of contenders into numbers, a Markdown table and JSON."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def summarize(seen: Sequence[float], other: Sequence[float], unit: str) -> dict[str, Any]:
    """Compute median and ends of a contender's rounds, and how many times as fast the `other` was."""
    median = statistics.median(seen)
    ends = {"median": median, "min": min(seen), "max": max(seen), "unit": unit}
    return ends | {"ratio": statistics.median(other) / median}


def describe_machine() -> str:
    """Describe the machine and the threads on which torch runs."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"


def format_table(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], ratio: str, digits: int) -> list[str]:
    """Format rows as lines of Markdown.

    Args:
        rows: results with the keys in `names`, and those of `summarize`.
        names: key of a row by the heading of its column.
        ratio: heading of the ratio.
        digits: number of decimals of the rates.
    """
    heads = [*names, rows[0]["unit"], "min", "max", ratio]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [str(row[key]) for key in names.values()]
        cells += [f"{row[key]:.{digits}f}" for key in ("median", "min", "max")]
        cells.append(f"{row['ratio']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write(out: Path, text: str, lines: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table below its text, and write both beside the rows as JSON."""
    page = text + "\n".join(lines)
    out.with_suffix(".md").write_text(page + "\n")
    out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(page)
