"""What a finished run came to, and how to use what it left: the last lines that a run prints."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from assay_training.config.reward import RewardConfig
from assay_training.evaluation.results import LENGTH, MODEL

SERVICE = "service.yaml"
SHOWN_STEPS = 5  # of PPO, at each end: a single step's score is noise


def of_reward(config: RewardConfig, results: Mapping[str, Any], run: Path) -> list[str]:
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


def of_sft(losses: Mapping[str, Any], checkpoint: Path) -> list[str]:
    """Return what the stages of a policy came to on what no stage has seen, and where the policy is."""
    lines = [
        f"{stage}: perplexity on {of['after']['targets']:,} held-out tokens {of['before']['perplexity']:.4g} before, "
        f"{of['after']['perplexity']:.4g} after"
        for stage, of in losses.items()
    ]
    return [*lines, *_policy(checkpoint)]


def of_ppo(rows: Sequence[Mapping[str, Any]], checkpoint: Path) -> list[str]:
    """Return the scores of a run's first and last steps, and where the policy is.

    Args:
        rows: of `metrics.jsonl`, a row per step.
        checkpoint: the policy's directory.
    """
    count = max(1, min(SHOWN_STEPS, len(rows) // 2))
    first, last = (sum(row["score"] for row in part) / count for part in (rows[:count], rows[-count:]))
    return [
        f"score: {first:.3f} in the first {count} of {len(rows)} steps, {last:.3f} in the last {count}; "
        f"KL to the reference {rows[-1]['kl']:.2f} nats per completion",
        *_policy(checkpoint),
    ]


def of_rejection(rounds: Sequence[Mapping[str, Any]], samples: int, checkpoint: Path) -> list[str]:
    """Return the scores of the rounds, and where the policy is."""
    lines = [
        f"round {of['round']}: score {of['score']:.3f}, of the best of {samples} {of['best_score']:.3f}"
        for of in rounds
    ]
    return [*lines, *_policy(checkpoint)]


def _policy(checkpoint: Path) -> Iterator[str]:
    yield f"policy: {checkpoint}"
    yield "to use it: as any model of transformers or vLLM, or as `base` of another run"


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
