"""Runs beside each other: what they came to, and how they got there ([CRS] figures 20 to 23 and 26)."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from assay_training.evaluation import plots
from assay_training.evaluation.history import Run, RunHistory, read_run
from assay_training.evaluation.table import Column, Picture, Record, Table, number, text
from assay_training.records.record import RecordError

LAST_SHARE = 0.1  # of a run's steps is what it came to
MEANT = {
    "score": "score, the mean of all completions",
    "best_score": "score of the best completion of each prompt",
    "shaped_score": "score within the clip, less the penalty for completions that were cut off",
    "kl": "KL to the reference, nats per completion",
    "kl_reward": "reward that the KL takes away, per completion",
    "kl_coef": "KL coefficient",
    "length": "tokens of a completion",
    "eos_rate": "share of completions that end by themselves",
    "entropy": "entropy, nats per token",
    "approx_kl": "KL to the policy that sampled, estimated while learning, nats per token",
    "ratio": "ratio of new to old probabilities",
    "clip_fraction": "share of ratios that are clipped",
    "value_clip_fraction": "share of values that are clipped",
    "explained_variance": "explained variance of the values",
    "score_length_correlation": "correlation of score and length",
    "logprob_mismatch": "difference of engine and trainer, nats per token",
    "importance_ess": "share of the tokens that is left by the weights that correct for that",
    "loss": "loss that is made smaller",
    "policy_loss": "loss of the policy",
    "value_loss": "loss of the values, before its weight",
    "grad_norm": "norm of the gradient",
    "skipped": "updates that were skipped, per step",
    "dropped": "completions without a score, per step",
    "rollout_s": "seconds in the engine, per step",
    "score_s": "seconds in the service's calls, per step",
    "score_wait_s": "seconds of those in which nothing was generated, per step",
    "update_s": "seconds of looking and learning, per step",
}
SCORES = ("score", "shaped_score", "best_score")
APART = "Scores are of different rewards and not to be compared."
NOTE = "The mean of the last tenth of each run's steps, one at least."
SHOWN = 8  # digits of a fingerprint


def _steps(record: Record) -> str:
    if record["finished"]:
        return str(record["steps"])
    going = record["of"] is not None and record["steps"] < record["of"]
    return f"{record['steps']} of {record['of']}" if going else f"{record['steps']}, unfinished"


COLUMNS = (
    text("run", "run"),
    text("part", "part"),
    text("reward", "reward"),
    Column("steps", _steps),
    number("score", "score", ".3f"),
    number("KL", "kl", ".2f"),
    number("length", "length", ".0f"),
    number("ends", "eos_rate", ".0%"),
    number("entropy", "entropy", ".2f"),
    number("loss", "loss", ".3f"),
)


def names_of(directories: Sequence[Path]) -> list[str]:
    """What tells runs apart: their paths from the folder that holds all of them; the name of a run that is alone.

    Raises:
        RecordError: one of them is there twice.
    """
    whole = [directory.resolve() for directory in directories]
    for path, count in Counter(whole).items():
        if count > 1:
            raise RecordError(f"{path} is given twice")
    common = Path(os.path.commonpath([path.parent for path in whole]))
    return [str(path.relative_to(common)) for path in whole]


def compare_runs(directories: Sequence[Path]) -> Table:
    """A record for every part of every run, and a picture for everything that they count.

    Raises:
        RecordError: a directory is no run's or there twice, a row is not one of metrics, or no run has a step.
    """
    runs = [read_run(path, name) for path, name in zip(directories, names_of(directories), strict=True)]
    courses = [course for _, of in runs for course in of]
    if not courses:
        raise RecordError(f"{', '.join(map(str, directories))}: no step is done")
    names = [name for name in MEANT if any(course.points(name) for course in courses)]
    return Table(
        "Runs",
        tuple(_record(course, names) for course in courses),
        COLUMNS,
        notes=(NOTE, *_notes(courses), *_left_out(courses, [run for run, of in runs if not of])),
        pictures=tuple(_picture(name, courses) for name in names),
    )


def _notes(courses: Sequence[RunHistory]) -> Iterator[str]:
    """What must be known before scores are compared."""
    if _differ(courses):
        yield APART
    given: dict[str, dict[str, list[str]]] = {}
    for course in courses:
        if course.run.reward is not None:
            for fingerprint in course.fingerprints:
                given.setdefault(course.run.reward, {}).setdefault(fingerprint, []).append(course.run.name)
    for reward, by in given.items():
        if len(by) > 1:
            told = "; ".join(f"{fingerprint[:SHOWN]} in {', '.join(names)}" for fingerprint, names in by.items())
            yield f"{reward} was given by different models, and its scores are not to be compared: {told}."


def _left_out(courses: Sequence[RunHistory], without_steps: Sequence[Run]) -> Iterator[str]:
    if without_steps:
        yield f"Left out, as no step is done: {', '.join(run.name for run in without_steps)}."
    for course in courses:
        lost = [name for name in MEANT if course.lost(name)]
        if lost:
            yield f"Left out of {course.run.name} {course.part}, as they are not finite: values of {', '.join(lost)}."


def _differ(courses: Sequence[RunHistory]) -> bool:
    return len({course.run.reward for course in courses if course.points("score")} - {None}) > 1


def _picture(name: str, courses: Sequence[RunHistory]) -> Picture:
    several, differ = len({course.part for course in courses}) > 1, name in SCORES and _differ(courses)
    found = {}
    for course in courses:
        label = f"{course.run.name} {course.part}" if several else course.run.name
        if points := course.points(name):
            found[f"{label}: {course.run.reward}" if differ else label] = points
    return Picture(f"{MEANT[name]}.", lambda: plots.courses(found, name))


def _record(course: RunHistory, names: Sequence[str]) -> dict[str, Any]:
    last = max(1, round(LAST_SHARE * len(course.rows)))
    found: dict[str, Any] = {
        "run": course.run.name,
        "part": course.part,
        "reward": course.run.reward,
        "steps": len(course.rows),
        "of": course.of,
        "finished": course.run.finished,
    }
    for name in dict.fromkeys([*names, "score", "kl", "length", "eos_rate", "entropy", "loss"]):
        values = [value for _, value in course.points(name)][-last:]
        found[name] = sum(values) / len(values) if values else None
    return found
