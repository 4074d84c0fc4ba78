"""Summarize a finished run of PPO or rejection sampling: its scores, and how to use its policy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay_training.models.checkpoint import describe_policy

SHOWN_STEPS = 5  # averaged at each end of a PPO run, because the score of a single step is noisy


def describe_ppo_run(rows: Sequence[Mapping[str, Any]], checkpoint: Path) -> list[str]:
    """Return lines with the mean scores of a run's first and last steps, its final KL, and its checkpoint.

    Args:
        rows: rows of `metrics.jsonl`, one for each step.
        checkpoint: directory of the policy.
    """
    count = max(1, min(SHOWN_STEPS, len(rows) // 2))
    first, last = (sum(row["score"] for row in part) / count for part in (rows[:count], rows[-count:]))
    return [
        f"score: {first:.3f} in the first {count} of {len(rows)} steps, {last:.3f} in the last {count}; "
        f"KL to the reference {rows[-1]['kl']:.2f} nats per completion",
        *describe_policy(checkpoint),
    ]


def describe_rejection_run(rounds: Sequence[Mapping[str, Any]], samples: int, checkpoint: Path) -> list[str]:
    """Return lines with the mean scores of each round, and its checkpoint.

    Args:
        rounds: rows of `results.json`, one for each round.
        samples: completions of each prompt.
        checkpoint: directory of the policy.
    """
    lines = [
        f"round {row['round']}: mean score {row['score']:.3f}, mean of the best of {samples} {row['best_score']:.3f}"
        for row in rounds
    ]
    return [*lines, *describe_policy(checkpoint)]
