"""Write the section of the experiments' page about how often served models agree with people."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assay_training.evaluation.results import LENGTH, MODEL
from assay_training.reward_model.card import format_interval, get_statistic

Results = Mapping[str, Any]

FOLDER = Path(__file__).parent / "results"
AGREEMENT = (
    "Served models on data sets that none was trained on: preference signals and blends by pairwise accuracy, absolute "
    "signals by AUC or Spearman's correlation. `likelihood`, `relevance` and `judge` need no labels. A mean is for "
    "each token of the completion. `crs_relevance_05` is `crs` with 0.05 relevance; the weights were fixed before. "
    "Intervals are 95 %, by group. The last column is the paired difference to `crs`. The command is "
    "`python -m assay_experiments.agreement URL --data DIR --source NAME:FORMAT --model NAME …`."
)


def format_agreement() -> list[str]:
    """Return the section of served models beside the length, model by model; empty without results."""
    lines = ["## agreement of served models", "", AGREEMENT, ""]
    lines += ["| | n | model | length | model - length | model - crs |", "|---|---|---|---|---|---|"]
    for model, domain, numbers in _iterate_domains(_read("agreement")):
        found = get_statistic(numbers)
        cells = (
            format_interval(found[MODEL]),
            format_interval(found[LENGTH]),
            *(format_interval(numbers["difference"].get(other), signed=True) for other in (LENGTH, "crs")),
        )
        lines.append(f"| {model}, {domain} | {_count(numbers)} | {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 6 else []


def _iterate_domains(kept: Results) -> Iterator[tuple[str, str, Results]]:
    for model, sources in kept.items():
        for stored in sources.values():
            # With one source, the domain of all pairs would repeat it.
            yield from ((model, domain, numbers) for domain, numbers in stored["results"].items() if domain != "all")


def _read(name: str) -> Results:
    path = FOLDER / f"{name}.json"
    found: Results = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _count(numbers: Results) -> int:
    """Return the number of pairs or items."""
    return int(numbers["accuracy"][MODEL]["n"] if "accuracy" in numbers else numbers["errors"][MODEL]["all"][0])
