"""Compare the two embedded bases on the same held-out groups, pair by pair and item by item.

    assay train reward --config training/configs/smollm2.yaml --data DIR
    python -m assay_experiments.embedded --data DIR [--out runs/experiments/embedded]

The encoder's two models are trained here, with the configurations of the embedded ones, but without folds. With the
same seed and the same share, their held-out groups are those of the language model. Results go to
`training/assay_experiments/results/embedded.json`.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from assay_training.algorithms.folds import HELD_OUT
from assay_training.config.base import read
from assay_training.config.data import Split
from assay_training.config.joint import JointConfig
from assay_training.config.reward import RewardConfig
from assay_training.evaluation.results import LENGTH, MODEL, compute_results
from assay_training.evaluation.rows import Logits, Rows
from assay_training.records.record import Judged
from assay_training.reward_model.baselines import predict_length
from assay_training.reward_model.prediction import finish_training
from assay_training.reward_model.run import RewardRun

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
ENCODER = "encoder"


def main(
    data: Annotated[Path, typer.Option(help="Folder of the data sets.", exists=True)],
    config: Annotated[Path, typer.Option(help="Configuration of the language model.")] = CONFIGS / "smollm2.yaml",
    language_model: Annotated[Path, typer.Option(help="Its run directory.")] = Path("runs/smollm2"),
    out: Annotated[Path, typer.Option(help="Folder of the encoder's runs.")] = Path("runs/experiments/embedded"),
) -> None:
    """Train the encoder's models on the groups that the language model was trained on, and compare both."""
    joint = read(config, JointConfig)
    results = {}
    for name, head in joint.build_head_configs().items():
        new = RewardRun(head, data, language_model / "heads" / name)
        own = read(CONFIGS / f"{name}.yaml", RewardConfig)
        split = Split(held_out=joint.split.held_out)
        old = RewardRun(_change(own, split, joint.seed), data, out / name)
        results[name] = compare(new, old)
    text = json.dumps(results, indent=1, sort_keys=True)
    (HERE / "results" / "embedded.json").write_text(f"{text}\n")
    typer.echo(text)


def _change(config: RewardConfig, split: Split, seed: int) -> RewardConfig:
    """Return a configuration with another split and seed."""
    changed = config.model_copy(update={"split": split, "seed": seed})
    changed._folder = config._folder
    return changed


def compare(new: RewardRun, old: RewardRun) -> dict[str, Any]:
    """Return the results of a model beside those of another one, on the records that both were tested on."""
    logits = [_predict(run) for run in (new, old)]
    examples = [example for example in new.select_part(HELD_OUT) if example.record in logits[1]]
    records = [example.record for example in examples]
    contenders: dict[str, Logits] = {
        MODEL: [logits[0][record] for record in records],
        ENCODER: [logits[1][record] for record in records],
        LENGTH: predict_length(new.exclude_parts(HELD_OUT), examples),
    }
    return compute_results(Rows.of(records, contenders), new.config.objective, new.config.seed)


def _predict(run: RewardRun) -> dict[Judged, list[float]]:
    """Return the logits of a run by held-out record; a run that has none yet is trained."""
    held_out = run.select_part(HELD_OUT)
    stored: list[list[float]] | None = run.run.read_json("held_out.json")
    if stored is None:
        model = run.fit("model", run.exclude_parts(HELD_OUT))
        finish_training(model, run.config.optimizer)
        stored = run.predict(model, held_out)
        run.run.write_json("held_out.json", stored)
    return {example.record: row for example, row in zip(held_out, stored, strict=True)}


if __name__ == "__main__":
    typer.run(main)
