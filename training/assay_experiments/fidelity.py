"""Measure what int8 changes on pairs that people compared and no model was trained on.

    assay serve --config training/assay_experiments/fidelity.yaml
    python -m assay_experiments.fidelity URL --data DIR --model embedded_preference --model embedded_absolute

The small pipeline holds out fewer groups:

    python -m assay_experiments.fidelity URL --data DIR --model pipeline_preference --held-out 0.05

Every model is compared with the one that has the suffix `_int8`. Results go to
`training/assay_experiments/results/fidelity.json`.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from assay_client.client import RewardClient
from assay_experiments.agreement import OBJECTIVES, RESULTS, SEED, split_records
from assay_service.fidelity import Group, measure
from assay_training.config.data import Source
from assay_training.evaluation.results import MODEL, compute_results
from assay_training.evaluation.rewards.scores import Scores, fetch_scores
from assay_training.evaluation.rows import Rows
from assay_training.records.record import Judged

FILE = RESULTS / "fidelity.json"
SUFFIX = "_int8"
SOURCES = (Source(name="hh_rlhf", format="hh"), Source(name="feedbackqa", format="feedbackqa"))


def main(
    url: Annotated[str, typer.Argument(help="Address of a running service.")],
    data: Annotated[Path, typer.Option(help="Folder of the data sets.", exists=True)],
    model: Annotated[list[str], typer.Option(help="Signal in float32; the one with the suffix is in int8. Repeat it.")],
    records: Annotated[int, typer.Option(help="Largest number of records, drawn at random.")] = 1000,
    held_out: Annotated[float, typer.Option(help="Share of the groups to test, as in `split` of the training.")] = 0.25,
) -> None:
    """Score pairs in float32 and in int8, and store how far the logits, orders and accuracies differ.

    Raises:
        AssayError: the service cannot be reached, or does not have a model.
    """
    kept = json.loads(FILE.read_text()) if FILE.is_file() else {}
    _, tested = split_records("preference", SOURCES, data, held_out)
    drawn = random.Random(SEED).sample(tested, min(records, len(tested)))
    names = [name + suffix for name in model for suffix in ("", SUFFIX)]
    with RewardClient(url, timeout_s=3600, deadline_s=36000) as client:
        scores = fetch_scores(drawn, lambda _record, _kept: None, client, names)
    kept |= {name: compare(name, scores) for name in model}
    FILE.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def compare(name: str, scores: Scores[Judged]) -> dict[str, Any]:
    """Return the fidelity of a model in int8, and both accuracies with their paired difference."""
    exact, rounded = scores.by_model[name], scores.by_model[name + SUFFIX]
    rows = Rows.of(scores.records, {MODEL: rounded, "float32": exact})
    found = compute_results(rows, OBJECTIVES["preference"], SEED)["all"]
    return {
        "records": len(scores.records),
        "fidelity": measure(_group(exact, rounded), "float32").model_dump(),
        "accuracy": found["accuracy"],
        "difference": found["difference"]["float32"],
    }


def _group(exact: Sequence[Sequence[float]], rounded: Sequence[Sequence[float]]) -> list[Group]:
    return [Group(tuple(one), tuple(other)) for one, other in zip(exact, rounded, strict=True)]


if __name__ == "__main__":
    typer.run(main)
