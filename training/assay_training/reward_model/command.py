"""Run `assay train reward`: one model tested on held-out groups, or folds, a final model and its card."""

from pathlib import Path

from assay_training.algorithms.folds import HELD_OUT
from assay_training.config.base import read
from assay_training.config.joint import JointConfig, has_several_heads
from assay_training.config.reward import RewardConfig
from assay_training.distributed.numbers import decide_compute_dtype
from assay_training.distributed.processes import print_once
from assay_training.reward_model import summary
from assay_training.reward_model.card import CARD, render_card
from assay_training.reward_model.cross_validation import cross_validate
from assay_training.reward_model.held_out import collect_facts, write_results
from assay_training.reward_model.joint import JointRun
from assay_training.reward_model.prediction import finish_training
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
        return _run_joint(decide_compute_dtype(read(config_path, JointConfig)), config_path, data, out)
    config = decide_compute_dtype(read(config_path, RewardConfig))
    reward = RewardRun(config, data, out or Path("runs") / config.name)
    if config.split.folds is None:
        train_single(reward, config_path)
    else:
        cross_validate(reward, config_path)
    directory, results = reward.run.path, reward.run.read_json("results.json")
    served = config.objective.served
    if served and reward.run.writes:
        (directory / summary.SERVICE).write_text(summary.build_service_yaml(config))
    for line in summary.format_summary(config, results or {}, directory):
        print_once(line)
    return directory / "checkpoint" if served else None


def train_single(reward: RewardRun, config_path: Path) -> None:
    """Train one model, test it on the held-out groups and save it.

    A model that is trained on its raw output (`mse+penalty`) has no logit to serve: it is tested, but not saved.
    """
    stored: list[list[float]] | None = reward.run.read_json("held_out.json")
    # An interrupted run that has stored its predictions does not train again.
    if stored is None:
        model = reward.fit("model", reward.exclude_parts(HELD_OUT))
        if reward.config.objective.served:
            save_heads(reward.run, model, [reward])
        else:
            finish_training(model, reward.config.optimizer)
        stored = reward.predict(model, reward.select_part(HELD_OUT))
        reward.run.write_json("held_out.json", stored)
    results = write_results(reward, stored)
    if reward.config.objective.served and reward.run.writes:
        card = render_card([(collect_facts(reward), results)], reward.config, config_path)
        (reward.run.path / "checkpoint" / CARD).write_text(card)
    reward.run.forget()


def _run_joint(config: JointConfig, config_path: Path, data: Path, out: Path | None) -> Path:
    """Train several heads on one trunk, test each on its held-out groups, and return the checkpoint's directory."""
    joint = JointRun(config, data, out or Path("runs") / config.name)
    runs, sections = joint.runs.values(), []
    # An interrupted run that has stored all its predictions does not train again.
    if any(run.run.read_json("held_out.json") is None for run in runs):
        model = joint.fit()
        save_heads(joint.run, model, list(runs))
        for run in runs:
            run.run.write_json("held_out.json", run.predict(model, run.select_part(HELD_OUT)))
    for run in runs:
        results = write_results(run, run.run.read_json("held_out.json") or [])
        sections.append((collect_facts(run), results))
        run.run.forget()
        for line in summary.format_results(run.config, results):
            print_once(line)
    yaml = summary.build_joint_yaml(config)
    joint.run.forget()
    if joint.run.writes:
        (joint.run.path / "checkpoint" / CARD).write_text(render_card(sections, config, config_path))
        (joint.run.path / summary.SERVICE).write_text(yaml)
    for line in summary.format_serving(joint.run.path, yaml):
        print_once(line)
    return joint.run.path / "checkpoint"
