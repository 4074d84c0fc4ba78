"""Write the sections of the experiments' page about the embedded bases, and about signals without labels."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assay_training.evaluation.results import LENGTH, MODEL

Results = Mapping[str, Any]

FOLDER = Path(__file__).parent / "results"
EMBEDDED = (
    "Both bases have the same held-out quarter of the groups and the same seed. The language model has one adapter and "
    "two heads (`training/configs/smollm2.yaml`). The encoder has the adapters of the embedded models, trained without "
    "these groups. The numbers are pairwise accuracies, Spearman's correlations or AUCs, with 95 % intervals by group. "
    "The last column is the paired difference. The command is `python -m assay_experiments.embedded --data DIR`."
)
AGREEMENT = (
    "Served models on held-out groups: preference signals and blends by pairwise accuracy, absolute signals by rank. "
    "`likelihood`, `relevance` and `judge` need no labels. A mean is for each token of the completion. Intervals are "
    "95 %, by group. The command is `python -m assay_experiments.agreement URL --data DIR --model NAME …`."
)


def format_embedded() -> list[str]:
    """Return the section of both embedded bases; empty without results."""
    lines = ["## embedded bases", "", EMBEDDED, ""]
    lines += ["| | n | language model | encoder | length | language model - encoder |", "|---|---|---|---|---|---|"]
    for head, domains in _read("embedded").items():
        for domain, numbers in domains.items():
            found = _find_statistic(numbers)
            values = [_format(found[name]) for name in (MODEL, "encoder", LENGTH)]
            difference = _format(numbers["difference"]["encoder"], sign="+")
            lines.append(f"| {head}, {domain} | {_count(numbers)} | {' | '.join(values)} | {difference} |")
    return [*lines, ""] if len(lines) > 6 else []


def format_agreement() -> list[str]:
    """Return the section of served models beside the length, model by model; empty without results."""
    lines = ["## agreement of served models", "", AGREEMENT, ""]
    lines += ["| | n | model | length | model - length |", "|---|---|---|---|---|"]
    for model, domain, numbers in _iterate_domains(_read("agreement")):
        found = _find_statistic(numbers)
        cells = _format(found[MODEL]), _format(found[LENGTH]), _format(numbers["difference"][LENGTH], sign="+")
        lines.append(f"| {model}, {domain} | {_count(numbers)} | {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 6 else []


def _iterate_domains(kept: Results) -> Iterator[tuple[str, str, Results]]:
    for model, stored in kept.items():
        for domain, numbers in stored["results"].items():
            yield model, domain, numbers


def _read(name: str) -> Results:
    path = FOLDER / f"{name}.json"
    found: Results = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _find_statistic(numbers: Results) -> Results:
    found: Results = numbers["accuracy"] if "accuracy" in numbers else numbers["rank"]
    return found


def _count(numbers: Results) -> int:
    """Return the number of pairs or items."""
    return int(numbers["accuracy"][MODEL]["n"] if "accuracy" in numbers else numbers["errors"][MODEL]["all"][0])


def _format(estimate: Results | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
