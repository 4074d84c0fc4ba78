"""Decide how many replicas there should be, by the rules of Kubernetes and the metrics of the chart; pure.

Source: Kubernetes, "Horizontal Pod Autoscaling", https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 0.1  # of the metric around its target within which nothing changes


@dataclass(frozen=True, slots=True)
class ScalingRule:
    """The values `autoscaling` of the chart, and how long a replica takes to start.

    Attributes:
        least: fewest replicas.
        most: most replicas.
        queue_tokens: tokens that wait, for each replica.
        queue_seconds: mean time that a sequence waits.
        start_s: time from the decision to the first request: node, image, weights.
        every_s: time between two decisions.
        up_share: most growth in a decision, as a share.
        up_replicas: most growth in a decision, if the share is less.
        down_share: most reduction in a decision, as a share.
        stable_s: time for which fewer replicas must be wanted before they are removed.
    """

    least: int
    most: int
    queue_tokens: float
    queue_seconds: float = 0.5
    start_s: float = 120.0
    every_s: float = 15.0
    up_share: float = 0.5
    up_replicas: int = 2
    down_share: float = 0.25
    stable_s: float = 180.0


def compute_wanted(rule: ScalingRule, replicas: int, waiting_tokens: float, wait_s: float) -> int:
    """Return the number of replicas that the metrics ask for, before any limit of the change.

    Args:
        rule: the targets.
        replicas: number of replicas, with those that start.
        waiting_tokens: number of tokens that wait, of all replicas.
        wait_s: mean wait of a sequence over the last minute, in seconds.
    """
    ratios = (waiting_tokens / replicas / rule.queue_tokens, wait_s / rule.queue_seconds)
    wanted = [replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(replicas * ratio) for ratio in ratios]
    return min(max(*wanted, rule.least), rule.most)


def limit_change(rule: ScalingRule, replicas: int, wanted: Sequence[int]) -> int:
    """Return the number of replicas that there shall be.

    Args:
        rule: the limits of a change.
        replicas: number of replicas, with those that start.
        wanted: numbers that `compute_wanted` has returned within the last `stable_s`, the newest last.
    """
    if wanted[-1] > replicas:
        return min(wanted[-1], replicas + max(math.floor(replicas * rule.up_share), rule.up_replicas))
    # The most of the window, so that a pause of the load removes nothing.
    stable = min(max(wanted), replicas)
    return max(stable, replicas - math.floor(replicas * rule.down_share))
