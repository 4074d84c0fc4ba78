"""Write the section of the experiments' page about how often served models agree with people."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from assay_training.evaluation.results import LENGTH, MODEL
from assay_training.reward_model.card import format_interval, get_statistic

Results = Mapping[str, Any]

FOLDER = Path(__file__).parent / "results"
SECTIONS = {
    "agreement": (
        "agreement of served models",
        "Served models on data sets that none was trained on: preference signals and blends by pairwise accuracy, "
        "absolute signals by AUC or Spearman's correlation. `likelihood`, `relevance` and `judge` need no labels. "
        "A mean is for each token of the completion. `crs_relevance_05` is `crs` with 0.05 relevance; the weights were "
        "fixed before. Intervals are 95 %, by group. The last column is the paired difference to `crs`, or of an "
        "absolute signal to `absolute`. The command is `python -m assay_experiments.agreement URL --data DIR "
        "--source NAME:FORMAT --model NAME …`.",
    ),
    "held_out": (
        "models on a held-out quarter",
        "The same on a quarter of the groups, which no model of this table has seen. `preference` and `absolute` are "
        "the embedded adapters, trained again without that quarter, and `crs` is their blend. "
        "The commands are in the docstring of `agreement.py`.",
    ),
}


def format_agreement() -> list[str]:
    """Return the sections that have results: served models beside the length, model by model."""
    return [
        line for name, (title, text) in SECTIONS.items() for line in _format_section(read_results(name), title, text)
    ]


def _format_section(kept: Results, title: str, text: str) -> list[str]:
    return [f"## {title}", "", text, "", *format_rows(kept), ""] if kept else []


def format_rows(kept: Results) -> list[str]:
    """Return a Markdown table of models and domains, with the length and differences beside them.

    Args:
        kept: results of models by source, as `agreement.py` stores them.
    """
    lines = ["| | n | model | length | model - length | model - embedded |", "|---|---|---|---|---|---|"]
    for model, domain, numbers in _iterate_domains(kept):
        found, differences = get_statistic(numbers), numbers["difference"]
        embedded = differences.get("crs" if "accuracy" in numbers else "absolute")
        cells = (
            format_interval(found[MODEL]),
            format_interval(found[LENGTH]),
            *(format_interval(other, signed=True) for other in (differences.get(LENGTH), embedded)),
        )
        lines.append(f"| {model}, {domain} | {_count(numbers)} | {' | '.join(cells)} |")
    return lines


def _iterate_domains(kept: Results) -> Iterator[tuple[str, str, Results]]:
    for model, sources in kept.items():
        for stored in sources.values():
            # With one other domain, that of all pairs would repeat it.
            domains = {name: numbers for name, numbers in stored["results"].items() if name != "all"}
            domains |= {"all": stored["results"]["all"]} if "all" in stored["results"] and len(domains) > 1 else {}
            yield from ((model, domain, numbers) for domain, numbers in domains.items())


def read_results(name: str) -> Results:
    """Return the stored results of one file; empty without it."""
    path = FOLDER / f"{name}.json"
    found: Results = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _count(numbers: Results) -> int:
    """Return the number of pairs or items."""
    return int(numbers["accuracy"][MODEL]["n"] if "accuracy" in numbers else numbers["errors"][MODEL]["all"][0])
