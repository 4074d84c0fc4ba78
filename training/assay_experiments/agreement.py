"""Measure how often served models agree with people, on labels that no served model was trained on.

    assay serve --config training/assay_experiments/agreement.yaml
    python -m assay_experiments.agreement URL --data DIR --source qa_feedback_dev:qa_feedback --model crs

A blend or a preference signal is measured on pairs, an absolute signal on labelled items. Models of one call are
compared with each other, record by record, on all its sources together. Half of the groups fit the baseline of length,
the others are tested. Results go to `training/assay_experiments/results/agreement.json`.

`held_out.yaml` serves models that were trained without a quarter of the groups. KIND is preference and absolute:

    assay train reward --config training/assay_experiments/held_out/KIND.yaml --data DIR --out runs/held_out/KIND
    assay serve --config training/assay_experiments/held_out.yaml

They are tested on that quarter:

    python -m assay_experiments.agreement URL --data DIR --source hh_rlhf:hh --source feedbackqa:feedbackqa \
        --model crs --held-out 0.25 --results held_out
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from assay_client.client import RewardClient
from assay_training.algorithms.folds import HELD_OUT, assign_fold
from assay_training.config.data import Format, Source
from assay_training.config.objective import AbsoluteObjective, PreferenceObjective
from assay_training.data.examples import Example
from assay_training.evaluation.results import LENGTH, MODEL, compute_results
from assay_training.evaluation.rewards.scores import Scores, fetch_scores
from assay_training.evaluation.rows import Rows
from assay_training.records.record import Judged
from assay_training.records.sources import read_labelled, read_rankings
from assay_training.reward_model.baselines import predict_length
from assay_training.reward_model.checks import is_trainable

RESULTS = Path(__file__).parent / "results"
SEED = 7  # of the trainings, too, so that they hold out the same groups
OBJECTIVES: dict[str, PreferenceObjective | AbsoluteObjective] = {
    "preference": PreferenceObjective(kind="preference"),
    "absolute": AbsoluteObjective(kind="absolute", loss="logistic"),
}


def main(
    url: Annotated[str, typer.Argument(help="Address of a running service.")],
    data: Annotated[Path, typer.Option(help="Folder of the data sets.", exists=True)],
    source: Annotated[list[str], typer.Option(help="Data set and its format, as NAME:FORMAT; repeat it for more.")],
    model: Annotated[list[str], typer.Option(help="Signal or blend to measure; repeat it for more.")],
    records: Annotated[int, typer.Option(help="Largest number of records, drawn at random.")] = 1000,
    held_out: Annotated[float, typer.Option(help="Share of the groups to test, as in `split` of a training.")] = 0.5,
    results: Annotated[str, typer.Option(help="Name of the results' file.")] = "agreement",
) -> None:
    """Score records by models of one kind, and store the results of each model beside the length's.

    Raises:
        BadParameter: a format is unknown, or the models are of two kinds.
        AssayError: the service cannot be reached, or does not have a model.
    """
    sources = [parse_source(text) for text in source]
    path = RESULTS / f"{results}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    with RewardClient(url, timeout_s=3600, deadline_s=36000) as client:
        served = {card.id: "preference" if card.kind == "blend" else card.kind for card in client.models()}
        kinds = {served[name] for name in model}
        if len(kinds) > 1:
            raise typer.BadParameter("the models of one call must be of one kind: pairs or labelled items")
        fitted, tested = split_records(next(iter(kinds)), sources, data, held_out)
        drawn = random.Random(SEED).sample(tested, min(records, len(tested)))
        for name, found in measure(client, model, next(iter(kinds)), fitted, drawn).items():
            kept.setdefault(name, {})["+".join(one.name for one in sources)] = found
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def parse_source(text: str) -> Source:
    """Return the source that NAME:FORMAT names.

    Raises:
        BadParameter: the format is unknown.
    """
    name, _, found = text.partition(":")
    if found not in get_args(Format):
        raise typer.BadParameter(
            f"--source {text!r}: {found!r} is not a format; they are {', '.join(get_args(Format))}"
        )
    return Source.model_validate({"name": name, "format": found})


def split_records(
    kind: str, sources: Sequence[Source], data: Path, held_out: float
) -> tuple[list[Judged], list[Judged]]:
    """Return the records that the length is fitted on, and those that are tested.

    Args:
        kind: `preference` for pairs, `absolute` for labelled items.
        sources: data sets.
        data: folder of the data sets.
        held_out: share of the groups that are tested, 0..1; a training with this `split` and `SEED` has not seen them.
    """
    reader = read_rankings if kind == "preference" else read_labelled
    parts: tuple[list[Judged], list[Judged]] = [], []
    for record in reader(data, sources).records:
        if is_trainable(record):
            parts[assign_fold(record.group, folds=1, held_out=held_out, seed=SEED) == HELD_OUT].append(record)
    return parts


def measure(
    client: RewardClient, models: Sequence[str], kind: str, fitted: Sequence[Judged], tested: Sequence[Judged]
) -> dict[str, dict[str, Any]]:
    """Return the results of each model, with its difference to every other model and to the length.

    Args:
        client: client of the service.
        models: names of models of one kind.
        kind: `preference` for pairs, `absolute` for labelled items.
        fitted: records that the length is fitted on.
        tested: records to score.
    """
    # A record that one model refuses is dropped for all, and the number of records is reported.
    scores = fetch_scores(tested, lambda _record, _kept: None, client, models)
    length = predict_length([Example(r, ()) for r in fitted], [Example(r, ()) for r in scores.records])
    return {name: _compare(name, scores, length, kind) for name in models}


def _compare(name: str, scores: Scores[Judged], length: Sequence[Sequence[float]], kind: str) -> dict[str, Any]:
    """Return the results of one model; the others are its contenders."""
    others = {other: rows for other, rows in scores.by_model.items() if other != name}
    rows = Rows.of(scores.records, {MODEL: scores.by_model[name], LENGTH: length, **others})
    return {
        "kind": kind,
        "asked": scores.asked,
        "records": len(scores.records),
        "fingerprint": scores.fingerprints[name],
        "results": compute_results(rows, OBJECTIVES[kind], SEED),
    }


if __name__ == "__main__":
    typer.run(main)
