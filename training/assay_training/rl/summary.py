"""Summarise a finished run of PPO or rejection sampling: its scores, and how to use its policy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay_training.models.checkpoint import policy_lines

SHOWN_STEPS = 5  # at each end of a PPO run: a single step's score is noise


def ppo_lines(rows: Sequence[Mapping[str, Any]], checkpoint: Path) -> list[str]:
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
        *policy_lines(checkpoint),
    ]


def rejection_lines(rounds: Sequence[Mapping[str, Any]], samples: int, checkpoint: Path) -> list[str]:
    """Return the scores of the rounds, and where the policy is."""
    lines = [
        f"round {row['round']}: score {row['score']:.3f}, of the best of {samples} {row['best_score']:.3f}"
        for row in rounds
    ]
    return [*lines, *policy_lines(checkpoint)]
