"""Measure how often served models agree with people, on the held-out groups of the language model's run.

    assay serve --config CONFIG                  # serves the models to measure
    python -m assay_experiments.agreement URL --data DIR --model relevance --model crs --model judge

A blend or a preference signal is measured on pairs, an absolute signal on labelled items. Models of the same kind are
compared with each other, record by record. Results go to `training/assay_experiments/results/agreement.json`.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from assay_client.client import RewardClient
from assay_training.algorithms.folds import HELD_OUT
from assay_training.config.base import read
from assay_training.config.joint import JointConfig
from assay_training.config.reward import RewardConfig
from assay_training.data.examples import Example
from assay_training.evaluation.results import LENGTH, MODEL, compute_results
from assay_training.evaluation.rewards.scores import Scores, fetch_scores
from assay_training.evaluation.rows import Rows
from assay_training.records.record import Judged
from assay_training.records.sources import read_labelled, read_rankings
from assay_training.reward_model.baselines import predict_length
from assay_training.reward_model.checks import find_fold, is_trainable

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "smollm2.yaml"
RESULTS = HERE / "results" / "agreement.json"


def main(
    url: Annotated[str, typer.Argument(help="Address of a running service.")],
    data: Annotated[Path, typer.Option(help="Folder of the data sets.", exists=True)],
    model: Annotated[list[str], typer.Option(help="Signal or blend to measure; repeat it for more.")],
    records: Annotated[int, typer.Option(help="Largest number of records of each kind, drawn at random.")] = 1000,
) -> None:
    """Score held-out records by the models, and store the results of each model beside the length's."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    heads = read(CONFIG, JointConfig).build_head_configs().values()
    with RewardClient(url, timeout_s=3600, deadline_s=36000) as client:
        kinds = {card.id: "preference" if card.kind == "blend" else card.kind for card in client.models()}
        for head in heads:
            own = [name for name in model if kinds[name] == head.objective.kind]
            if own:
                kept |= measure(client, own, head, data, records)
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def measure(
    client: RewardClient, models: Sequence[str], head: RewardConfig, data: Path, records: int
) -> dict[str, dict[str, Any]]:
    """Return the results of each model, with its difference to every other model and to the length.

    Args:
        client: client of the service.
        models: names of models of one kind.
        head: configuration of the head that was trained on the same data.
        data: folder of the data sets.
        records: largest number of records.
    """
    learned, held_out = split_records(head, data)
    drawn = random.Random(head.seed).sample(held_out, min(records, len(held_out)))
    scores = fetch_scores(drawn, lambda _record, _kept: None, client, models)
    assert not scores.failures, scores.failures  # every record of the run was rendered, so none is refused
    length = predict_length([Example(r, ()) for r in learned], [Example(r, ()) for r in scores.records])
    return {name: _compare(name, scores, length, head) for name in models}


def split_records(head: RewardConfig, data: Path) -> tuple[list[Judged], list[Judged]]:
    """Return the records that a head was trained on, and those that were held out."""
    reader = read_rankings if head.objective.kind == "preference" else read_labelled
    parts: tuple[list[Judged], list[Judged]] = [], []
    for record in reader(data, head.sources).records:
        if is_trainable(record):
            parts[find_fold(head, record) == HELD_OUT].append(record)
    return parts


def _compare(
    name: str, scores: Scores[Judged], length: Sequence[Sequence[float]], head: RewardConfig
) -> dict[str, Any]:
    """Return the results of one model; the others are its contenders."""
    others = {other: rows for other, rows in scores.by_model.items() if other != name}
    rows = Rows.of(scores.records, {MODEL: scores.by_model[name], LENGTH: length, **others})
    results: Mapping[str, Any] = compute_results(rows, head.objective, head.seed)
    return {
        "kind": head.objective.kind,
        "records": len(scores.records),
        "fingerprint": scores.fingerprints[name],
        "results": results,
    }


if __name__ == "__main__":
    typer.run(main)
