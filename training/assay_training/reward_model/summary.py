"""Summarise a finished reward-model run: its results, and how to serve its checkpoint."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from assay_training.config.reward import RewardConfig
from assay_training.evaluation.results import LENGTH, MODEL

SERVICE = "service.yaml"


def summary_lines(config: RewardConfig, results: Mapping[str, Any], run: Path) -> list[str]:
    """Return what a reward model came to by source, beside its length baseline, and how to serve it.

    Args:
        config: the run's.
        results: of `results.json`.
        run: the run directory.
    """
    if config.objective.kind == "preference":
        lines = [line for domain, numbers in results.items() for line in _accuracy(domain, numbers)]
    else:
        lines = [line for domain, numbers in results.items() for line in _rank(domain, numbers)]
    where = "held-out groups" if config.split.folds is None else "groups out of fold; the checkpoint learned from all"
    lines = [f"{config.name}, on {where}:", *(f"  {line}" for line in lines)]
    if not config.objective.served:
        return [*lines, "no checkpoint: the output of this objective is no logit"]
    return [
        *lines,
        f"checkpoint: {run / 'checkpoint'}",
        f"to serve it: assay serve --config {run / SERVICE}",
        *(f"  {line}" for line in service_yaml(config).splitlines()),
    ]


def service_yaml(config: RewardConfig) -> str:
    """Return the configuration that serves a run's checkpoint, for a file in the run directory."""
    if config.lora is None:
        signal = {"base": "checkpoint"}
    else:
        revision = {} if config.revision is None else {"revision": config.revision}
        signal = {"base": config.base_reference, **revision, "adapter": "checkpoint"}
    return yaml.safe_dump({"signals": {config.name: signal}, "default": config.name}, sort_keys=False)


def _accuracy(domain: str, numbers: Mapping[str, Any]) -> Iterator[str]:
    found = numbers["accuracy"]
    if not found:
        yield f"{domain}: too few groups for an accuracy"
        return
    below = found[MODEL]["low"] <= found[LENGTH]["value"]
    yield (
        f"{domain}: {_interval(found[MODEL])} of {found[MODEL]['n']:,} pairs right; the longer reply is better in "
        f"{_interval(found[LENGTH])}" + "; not shown to be better than length" * below
    )


def _rank(domain: str, numbers: Mapping[str, Any]) -> Iterator[str]:
    count, squared, absolute = numbers["errors"][MODEL]["all"]
    rank = numbers["rank"]
    told = ", ".join(f"{name} {'-' if rank[of] is None else _interval(rank[of])}" for name, of in _NAMES)
    yield f"{domain}: {numbers['statistic']} of {count:,} items: {told}; MSE {squared:.4f}, MAE {absolute:.4f}"


_NAMES = (("model", MODEL), ("by length", LENGTH))


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
