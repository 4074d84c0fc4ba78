"""Compute how many replicas a load needs; pure.

docs/scale.md has the formula and a worked example.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What a service must do.

    Attributes:
        items_per_s: scores in a second, at the peak.
        item_tokens: mean number of tokens that are computed for an item, without its prompt.
        prompt_tokens: mean number of tokens of a prompt.
        completions: mean number of completions that share a prompt in a pass.
        hits: share of items that are cached.
    """

    items_per_s: float
    item_tokens: float
    prompt_tokens: float
    completions: float
    hits: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Return the number of tokens that are computed in a second."""
        return self.items_per_s * (1 - self.hits) * (self.item_tokens + self.prompt_tokens / self.completions)


def count_replicas(demand: Demand, tokens_per_s: float, utilization: float, zones: int = 1) -> int:
    """Return the number of replicas, of which the loss of one zone leaves enough.

    Args:
        demand: load at the peak.
        tokens_per_s: measured rate of one replica.
        utilization: share of the time in which a replica shall work.
        zones: number of zones, each with as many replicas; 1 if the loss of a zone need not be survived.

    Raises:
        ValueError: the utilization is not between 0 and 1, or there is no zone.
    """
    if not 0 < utilization <= 1 or zones < 1:
        raise ValueError("the utilization must be above 0 and at most 1, and there must be a zone")
    needed = math.ceil(demand.tokens_per_s / (tokens_per_s * utilization))
    if zones == 1:
        return needed
    return math.ceil(needed / (zones - 1)) * zones
