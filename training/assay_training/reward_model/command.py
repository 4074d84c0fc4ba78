"""Run `assay train reward`: one model tested on held-out groups, or folds, a final model and its card."""

from collections.abc import Sequence
from pathlib import Path

from assay_training.algorithms.folds import HELD_OUT
from assay_training.config.base import read
from assay_training.config.joint import JointConfig, has_several_heads
from assay_training.config.reward import RewardConfig
from assay_training.data.examples import Example
from assay_training.distributed.processes import print_once
from assay_training.evaluation import plots
from assay_training.evaluation.results import LENGTH, MODEL, compute_results
from assay_training.evaluation.rows import Rows
from assay_training.reward_model import summary
from assay_training.reward_model.baselines import compute_length_logits, fit_length
from assay_training.reward_model.cross_validation import cross_validate
from assay_training.reward_model.joint import JointRun
from assay_training.reward_model.run import RewardRun
from assay_training.reward_model.saving import save_heads


def run(config_path: Path, data: Path, out: Path | None) -> Path | None:
    """Train, test and save a reward model, and print its results and how to serve it.

    Args:
        config_path: file of the configuration.
        data: folder that holds the folders of the sources.
        out: run directory; None for `runs/NAME`.

    Returns:
        The directory of the checkpoint; None for an objective whose output cannot be served.

    Raises:
        ValueError: the configuration, the data or the run directory is wrong.
    """
    if has_several_heads(config_path):
        return _run_joint(read(config_path, JointConfig), data, out)
    config = read(config_path, RewardConfig)
    reward = RewardRun(config, data, out or Path("runs") / config.name)
    if config.split.folds is None:
        train_single(reward)
    else:
        cross_validate(reward, config_path)
    directory, results = reward.run.path, reward.run.read_json("results.json")
    served = config.objective.served
    if served and reward.run.writes:
        (directory / summary.SERVICE).write_text(summary.build_service_yaml(config))
    for line in summary.format_summary(config, results or {}, directory):
        print_once(line)
    return directory / "checkpoint" if served else None


def train_single(reward: RewardRun) -> None:
    """Train one model, test it on the held-out groups and save it.

    A model that is trained on its raw output (`mse+penalty`) has no logit to serve: it is tested, but not saved.
    """
    held_out = reward.select_part(HELD_OUT)
    stored: list[list[float]] | None = reward.run.read_json("held_out.json")
    # An interrupted run that has stored its predictions does not train again.
    if stored is None:
        model = reward.fit("model", reward.exclude_parts(HELD_OUT))
        if reward.config.objective.served:
            save_heads(reward.run, model, [reward])
        stored = reward.predict(model, held_out)
        reward.run.write_json("held_out.json", stored)
    _write_results(reward, held_out, stored)
    reward.run.forget()


def _run_joint(config: JointConfig, data: Path, out: Path | None) -> Path:
    """Train several heads on one trunk, test each on its held-out groups, and return the checkpoint's directory."""
    joint = JointRun(config, data, out or Path("runs") / config.name)
    runs = joint.runs.values()
    # An interrupted run that has stored all its predictions does not train again.
    if any(run.run.read_json("held_out.json") is None for run in runs):
        model = joint.fit()
        save_heads(joint.run, model, list(runs))
        for run in runs:
            run.run.write_json("held_out.json", run.predict(model, run.select_part(HELD_OUT)))
    for run in runs:
        _write_results(run, run.select_part(HELD_OUT), run.run.read_json("held_out.json"))
        run.run.forget()
        for line in summary.format_results(run.config, run.run.read_json("results.json") or {}):
            print_once(line)
    yaml = summary.build_joint_yaml(config)
    joint.run.forget()
    if joint.run.writes:
        (joint.run.path / summary.SERVICE).write_text(yaml)
    for line in summary.format_serving(joint.run.path, yaml):
        print_once(line)
    return joint.run.path / "checkpoint"


def _write_results(reward: RewardRun, held_out: Sequence[Example], stored: list[list[float]]) -> None:
    """Write the results of a model on the held-out examples, beside the length baseline, and the plot of margins."""
    absolute = reward.config.objective.kind == "absolute"  # labels have a scale, to which the length is fitted
    lengths = fit_length(reward.exclude_parts(HELD_OUT), held_out) if absolute else compute_length_logits(held_out)
    rows = Rows.of([example.record for example in held_out], {MODEL: stored, LENGTH: lengths})
    reward.run.write_json("results.json", compute_results(rows, reward.config.objective, reward.config.seed))
    if rows.labels is None and reward.run.writes:
        plots.draw_margins(rows, MODEL).savefig(reward.run.path / "margins.png", dpi=120)
