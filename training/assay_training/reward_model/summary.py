"""Summarize a finished reward-model run: its results, and how to serve its checkpoint."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from assay_training.config.joint import JointConfig
from assay_training.config.reward import RewardConfig
from assay_training.evaluation.results import LENGTH, MODEL

SERVICE = "service.yaml"


def format_summary(config: RewardConfig, results: Mapping[str, Any], run: Path) -> list[str]:
    """Return the results of a reward model by source, beside its length baseline, and how to serve it.

    Args:
        config: configuration of the run.
        results: content of `results.json`.
        run: run directory.
    """
    lines = format_results(config, results)
    if not config.objective.served:
        return [*lines, "no checkpoint: the output of this objective is not a logit"]
    return [*lines, *format_serving(run, build_service_yaml(config))]


def format_results(config: RewardConfig, results: Mapping[str, Any]) -> list[str]:
    """Return the results of one signal by source, beside its length baseline."""
    if config.objective.kind == "preference":
        lines = [line for domain, numbers in results.items() for line in _format_accuracy(domain, numbers)]
    else:
        lines = [line for domain, numbers in results.items() for line in _format_rank(domain, numbers)]
    where = "held-out groups" if config.split.folds is None else "out-of-fold groups; the checkpoint is trained on all"
    return [f"{config.name}, on {where}:", *(f"  {line}" for line in lines)]


def format_serving(run: Path, service_yaml: str) -> list[str]:
    """Return where the checkpoint of a run is, and how to serve it."""
    return [
        f"checkpoint: {run / 'checkpoint'}",
        f"to serve it: assay serve --config {run / SERVICE}",
        *(f"  {line}" for line in service_yaml.splitlines()),
    ]


def build_service_yaml(config: RewardConfig) -> str:
    """Return the configuration that serves a run's checkpoint, for a file in the run directory."""
    return yaml.safe_dump({"signals": {config.name: _build_weights(config)}, "default": config.name}, sort_keys=False)


def build_joint_yaml(config: JointConfig) -> str:
    """Return the configuration that serves every head of a run as a signal of its own; they share a forward pass."""
    weights = _build_weights(config)
    signals = {name: {**weights, "output": name} for name in config.heads}
    return yaml.safe_dump({"signals": signals, "default": next(iter(signals))}, sort_keys=False)


def _build_weights(config: RewardConfig | JointConfig) -> dict[str, str]:
    """Return the keys of a signal that lead to the weights of a run's checkpoint."""
    # Paths are relative to the run directory, where the file is written: the directory can be moved.
    if config.lora is None:
        return {"base": "checkpoint"}
    revision = {} if config.revision is None else {"revision": config.revision}
    return {"base": config.base_reference, **revision, "adapter": "checkpoint"}


def _format_accuracy(domain: str, numbers: Mapping[str, Any]) -> Iterator[str]:
    accuracy = numbers["accuracy"]
    if not accuracy:
        yield f"{domain}: too few groups for an accuracy"
        return
    # The model is better than length only if its whole interval is above.
    below = accuracy[MODEL]["low"] <= accuracy[LENGTH]["value"]
    yield (
        f"{domain}: {_format_interval(accuracy[MODEL])} of {accuracy[MODEL]['n']:,} pairs right; the longer completion "
        f"is better in {_format_interval(accuracy[LENGTH])}" + "; not shown to be better than length" * below
    )


def _format_rank(domain: str, numbers: Mapping[str, Any]) -> Iterator[str]:
    count, squared, absolute = numbers["errors"][MODEL]["all"]
    rank = numbers["rank"]
    ranks = ", ".join(f"{name} {'-' if rank[key] is None else _format_interval(rank[key])}" for name, key in _NAMES)
    yield f"{domain}: {numbers['statistic']} of {count:,} items: {ranks}; MSE {squared:.4f}, MAE {absolute:.4f}"


_NAMES = (("model", MODEL), ("by length", LENGTH))


def _format_interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
