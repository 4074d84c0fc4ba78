"""Write the sections of the experiments' page about the embedded bases, and about signals without labels."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assay_training.evaluation.results import LENGTH, MODEL
from assay_training.reward_model.card import format_interval, get_statistic

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
            found = get_statistic(numbers)
            values = [format_interval(found[name]) for name in (MODEL, "encoder", LENGTH)]
            difference = format_interval(numbers["difference"]["encoder"], signed=True)
            lines.append(f"| {head}, {domain} | {_count(numbers)} | {' | '.join(values)} | {difference} |")
    return [*lines, ""] if len(lines) > 6 else []


def format_agreement() -> list[str]:
    """Return the section of served models beside the length, model by model; empty without results."""
    lines = ["## agreement of served models", "", AGREEMENT, ""]
    lines += ["| | n | model | length | model - length |", "|---|---|---|---|---|"]
    for model, domain, numbers in _iterate_domains(_read("agreement")):
        found = get_statistic(numbers)
        cells = (
            format_interval(found[MODEL]),
            format_interval(found[LENGTH]),
            format_interval(numbers["difference"][LENGTH], signed=True),
        )
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


def _count(numbers: Results) -> int:
    """Return the number of pairs or items."""
    return int(numbers["accuracy"][MODEL]["n"] if "accuracy" in numbers else numbers["errors"][MODEL]["all"][0])
