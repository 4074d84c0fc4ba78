"""Compare runs: the means of their last steps in a table, and every metric over the steps ([CRS] figures 20-23, 26)."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from assay_training.evaluation import plots
from assay_training.evaluation.history import Run, RunHistory, read_run
from assay_training.evaluation.table import Column, Picture, Record, Table, number_column, text_column
from assay_training.records.record import RecordError

LAST_SHARE = 0.1  # share of a run's steps, at its end, whose mean is shown
CAPTIONS = {  # by metric; the plots of a page stand in this order
    "score": "score, mean over completions",
    "best_score": "score of the best completion of each prompt",
    "shaped_score": "score after clipping, minus the penalty for completions without an end-of-sequence token",
    "kl": "KL divergence to the reference policy, nats per completion",
    "kl_reward": "KL penalty in the reward, per completion",
    "kl_coef": "KL coefficient",
    "length": "tokens per completion",
    "eos_rate": "share of completions that end with an end-of-sequence token",
    "entropy": "entropy of the policy, nats per token",
    "approx_kl": "KL divergence to the policy that sampled, estimated during the updates, nats per token",
    "ratio": "probability ratio of the new to the old policy",
    "clip_fraction": "share of probability ratios that are clipped",
    "value_clip_fraction": "share of values that are clipped",
    "explained_variance": "explained variance of the values",
    "score_length_correlation": "correlation of score and completion length",
    "logprob_mismatch": "difference of the engine's and the trainer's log-probabilities, nats per token",
    "importance_ess": "effective sample size of the importance weights, as a share of the tokens",
    "loss": "training loss",
    "policy_loss": "policy loss",
    "value_loss": "value loss, before its coefficient",
    "grad_norm": "norm of the gradient",
    "skipped": "skipped updates per step",
    "dropped": "completions dropped for want of a score, per step",
    "rollout_s": "seconds of generation per step",
    "score_s": "seconds in calls to the service per step",
    "score_wait_s": "seconds of waiting for scores while nothing is generated, per step",
    "update_s": "seconds for log-probabilities and updates per step",
}
# Metrics in the units of the reward, which differ between rewards.
SCORES = ("score", "shaped_score", "best_score")
DIFFERENT_REWARDS = "The runs have different rewards: do not compare their scores."
NOTE = "Each number is the mean over the last tenth of the run's steps, at least one step."
FINGERPRINT_DIGITS = 8


def _format_steps(record: Record) -> str:
    if record["finished"]:
        return str(record["steps"])
    is_partial = record["of"] is not None and record["steps"] < record["of"]
    return f"{record['steps']} of {record['of']}" if is_partial else f"{record['steps']}, unfinished"


COLUMNS = (
    text_column("run", "run"),
    text_column("part", "part"),
    text_column("reward", "reward"),
    Column("steps", _format_steps),
    number_column("score", "score", ".3f"),
    number_column("KL", "kl", ".2f"),
    number_column("length", "length", ".0f"),
    number_column("EOS", "eos_rate", ".0%"),
    number_column("entropy", "entropy", ".2f"),
    number_column("loss", "loss", ".3f"),
)


def name_runs(directories: Sequence[Path]) -> list[str]:
    """Return a different name for each run: its path from the folder that holds all of them.

    Args:
        directories: directories of the runs.

    Raises:
        RecordError: a directory is given twice.
    """
    resolved = [directory.resolve() for directory in directories]
    for path, count in Counter(resolved).items():
        if count > 1:
            raise RecordError(f"{path} is given twice; give each run once")
    # Of the parents, because a single run would otherwise have the name `.`.
    common = Path(os.path.commonpath([path.parent for path in resolved]))
    return [str(path.relative_to(common)) for path in resolved]


def compare_runs(directories: Sequence[Path]) -> Table:
    """Return a table with a record for every part of every run, and a plot of every metric.

    Args:
        directories: directories of the runs, finished or not.

    Raises:
        RecordError: a directory is not that of a run or is given twice. Or a row of metrics is malformed, or no run has
            a finished step.
    """
    runs = [read_run(path, name) for path, name in zip(directories, name_runs(directories), strict=True)]
    histories = [history for _, parts in runs for history in parts]
    if not histories:
        raise RecordError(f"{', '.join(map(str, directories))}: no run has a finished step")
    names = [name for name in CAPTIONS if any(history.read_points(name) for history in histories)]
    return Table(
        "Runs",
        tuple(_build_record(history, names) for history in histories),
        COLUMNS,
        notes=(NOTE, *_warn(histories), *_describe_dropped(histories, [run for run, parts in runs if not parts])),
        pictures=tuple(_build_picture(name, histories) for name in names),
    )


def _warn(histories: Sequence[RunHistory]) -> Iterator[str]:
    """Yield the reasons why scores of these runs must not be compared."""
    if _have_different_rewards(histories):
        yield DIFFERENT_REWARDS
    by_reward: dict[str, dict[str, list[str]]] = {}
    for history in histories:
        if history.run.reward is not None:
            for fingerprint in history.fingerprints:
                by_reward.setdefault(history.run.reward, {}).setdefault(fingerprint, []).append(history.run.name)
    for reward, by_fingerprint in by_reward.items():
        if len(by_fingerprint) > 1:
            models = "; ".join(
                f"{key[:FINGERPRINT_DIGITS]} in {', '.join(runs)}" for key, runs in by_fingerprint.items()
            )
            yield f"Scores of {reward} come from different models, so do not compare them. Fingerprints: {models}."


def _describe_dropped(histories: Sequence[RunHistory], without_steps: Sequence[Run]) -> Iterator[str]:
    """Yield a note on the runs without a finished step, and one on the values of each part that are not finite."""
    if without_steps:
        yield f"Runs without a finished step are not shown: {', '.join(run.name for run in without_steps)}."
    for history in histories:
        names = [name for name in CAPTIONS if history.count_not_finite(name)]
        if names:
            yield (
                f"Dropped from {history.run.name} {history.part}, because they are not finite: "
                f"values of {', '.join(names)}."
            )


def _have_different_rewards(histories: Sequence[RunHistory]) -> bool:
    return len({history.run.reward for history in histories if history.read_points("score")} - {None}) > 1


def _build_picture(name: str, histories: Sequence[RunHistory]) -> Picture:
    # A label names the part or the reward only where the runs differ in it, to keep legends short.
    has_parts = len({history.part for history in histories}) > 1
    has_rewards = name in SCORES and _have_different_rewards(histories)
    points_by_label = {}
    for history in histories:
        label = f"{history.run.name} {history.part}" if has_parts else history.run.name
        if points := history.read_points(name):
            points_by_label[f"{label}: {history.run.reward}" if has_rewards else label] = points
    return Picture(f"{CAPTIONS[name]}.", lambda: plots.draw_metrics(points_by_label, name))


def _build_record(history: RunHistory, names: Sequence[str]) -> dict[str, Any]:
    last = max(1, round(LAST_SHARE * len(history.rows)))
    record: dict[str, Any] = {
        "run": history.run.name,
        "part": history.part,
        "reward": history.run.reward,
        "steps": len(history.rows),
        "of": history.total,
        "finished": history.run.finished,
    }
    # The columns' metrics are always there, so that every record has the same keys as the table.
    for name in dict.fromkeys([*names, "score", "kl", "length", "eos_rate", "entropy", "loss"]):
        values = [value for _, value in history.read_points(name)][-last:]
        record[name] = sum(values) / len(values) if values else None
    return record
