"""What the experiments found, as a page.

    python training/experiments/page.py > docs/experiments.md

`findings.md` is written by hand; a section for every plan with results follows, and one for the probe texts. A number
is the mean over the seeds ± its standard error.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from assay_training.evaluation.results import STRENGTHS

HERE = Path(__file__).parent

Numbers = dict[str, Any]
Column = tuple[str, Callable[[Numbers], float]]


def cell(values: Iterable[float]) -> str:
    """Mean ± standard error."""
    seen = list(values)
    return f"{statistics.fmean(seen):.3f} ± {statistics.stdev(seen) / len(seen) ** 0.5:.3f}"


def table(rows: Sequence[Numbers], columns: Sequence[Column]) -> list[str]:
    """A line per variant, a column per number."""
    lines = [f"| | {' | '.join(name for name, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        seeds = [row["results"] for row in rows if row["variant"] == variant]
        lines.append(f"| {variant} | {' | '.join(cell(map(value, seeds)) for _, value in columns)} |")
    return [*lines, ""]


def at(*path: str | int) -> Callable[[Numbers], float]:
    """The number that lies there."""

    def value(numbers: Any) -> float:  # noqa: ANN401 - JSON
        for step in path:
            numbers = numbers[step]
        return float(numbers)

    return value


def accuracies(rows: Sequence[Numbers], domains: Sequence[str]) -> list[str]:
    """Over all pairs of each domain; the length baseline does not depend on the variant."""
    lines = table(rows, [(domain, at(domain, "accuracy", "model", "value")) for domain in domains])
    seeds = {row["seed"]: row["results"] for row in rows}.values()
    length = [cell(at(domain, "accuracy", "length", "value")(of) for of in seeds) for domain in domains]
    return [*lines[:-1], f"| *length* | {' | '.join(length)} |", ""]


def differences(rows: Sequence[Numbers], domains: Sequence[str]) -> list[str]:
    """Accuracies less those of the first variant with the same seed, and so the same held-out part."""
    first = {row["seed"]: row["results"] for row in rows if row["variant"] == rows[0]["variant"]}
    others = [row for row in rows if row["variant"] != rows[0]["variant"]]
    paired = [row | {"results": {"now": row["results"], "first": first[row["seed"]]}} for row in others]

    def less(domain: str) -> Callable[[Numbers], float]:
        value = at(domain, "accuracy", "model", "value")
        return lambda of: value(of["now"]) - value(of["first"])

    lines = table(paired, [(domain, less(domain)) for domain in domains])
    return [f"Accuracy, less that of *{rows[0]['variant']}* with the same seed:", "", *lines]


def margins(rows: Sequence[Numbers], domain: str) -> list[str]:
    """The moments of the margins, and the accuracy of best against worst."""

    def relative(of: Numbers) -> float:
        return float(of[domain]["margins"]["mean"] / of[domain]["margins"]["std"])

    names = {"mean margin": "mean", "share < 0": "share_negative", "skewness": "skewness", "kurtosis": "kurtosis"}
    moments = [(name, at(domain, "margins", key)) for name, key in names.items()]
    best: Column = ("best against worst", at(domain, "best against worst", "model", "value"))
    return [f"Margins, {domain}:", "", *table(rows, [best, moments[0], ("mean / std", relative), *moments[1:]])]


def strengths(rows: Sequence[Numbers], domain: str) -> list[str]:
    """Accuracy by preference strength, where a source has gaps."""
    names = [name for name in STRENGTHS if name in rows[0]["results"][domain]["by strength"]]
    if not names:
        return []
    columns = [(name, at(domain, "by strength", name, "model", "value")) for name in names]
    return [f"Accuracy by preference strength, {domain}:", "", *table(rows, columns)]


def preference(rows: Sequence[Numbers]) -> list[str]:
    """Of a plan of preference models."""
    domains = list(rows[0]["results"])
    if len(domains) == 2:  # a single source is all there is
        domains.remove("all")
    lines = ["Accuracy:", "", *accuracies(rows, domains), *differences(rows, domains)]
    lines += margins(rows, domains[-1] if len(domains) == 1 else "all")
    return lines + [line for domain in domains if domain != "all" for line in strengths(rows, domain)]


def absolute(rows: Sequence[Numbers]) -> list[str]:
    """Of a plan of absolute models: squared and absolute errors by bucket, and rank correlation."""
    domain = next(iter(rows[0]["results"]))
    buckets = ("low", "high", "mid", "all")
    errors = [
        (f"{b} {name}", at(domain, "errors", "model", b, i)) for i, name in ((1, "MSE"), (2, "MAE")) for b in buckets
    ]
    ranks = [("Spearman", at(domain, "rank", "model", "value")), ("of length", at(domain, "rank", "length", "value"))]
    return table(rows, [*errors, *ranks])


def section(plan: Path) -> list[str]:
    """A plan's results."""
    given = yaml.safe_load(plan.read_text())
    rows = json.loads((HERE / "results" / f"{plan.stem}.json").read_text())
    seeds = ", ".join(map(str, given["seeds"]))
    lines = [f"## {plan.stem}", "", given["about"].strip(), ""]
    lines += [
        f"`python training/experiments/sweep.py training/experiments/plans/{plan.name} --data DIR`, seeds {seeds}.",
        "",
    ]
    return lines + (preference if given["config"]["objective"]["kind"] == "preference" else absolute)(rows)


def probes() -> list[str]:
    """For each prompt the kinds of answers, as a model orders them."""
    lines = [
        "## probe texts",
        "",
        "Four answers to four prompts (thesis, Tables 24 to 27), from best to worst as each model orders them.",
        "",
    ]
    kept: dict[str, list[Numbers]] = json.loads((HERE / "results" / "probe.json").read_text())
    tables = list(dict.fromkeys(row["table"] for row in kept["thesis"]))
    lines += [f"| | {' | '.join(f'Table {table}' for table in tables)} |", "|---" * (len(tables) + 1) + "|"]
    for name, rows in kept.items():
        for signal in rows[0]["scores"]:
            orders = []
            for table in tables:
                answers = sorted((row for row in rows if row["table"] == table), key=lambda row: -row["scores"][signal])
                orders.append(" > ".join(f"{row['kind']} {row['scores'][signal]:.2f}" for row in answers))
            lines.append(f"| {name}, {signal} | {' | '.join(orders)} |")
    return [*lines, ""]


def main() -> None:
    """Prints the page."""
    plans = sorted((HERE / "plans").glob("*.yaml"))
    done = [plan for plan in plans if (HERE / "results" / f"{plan.stem}.json").is_file()]
    sys.stdout.write((HERE / "findings.md").read_text() + "\n")
    sys.stdout.write("\n".join([line for plan in done for line in section(plan)] + probes()))


if __name__ == "__main__":
    main()
