"""Compare two series of numbers that arrive one pair at a time, in constant memory and without numpy."""

import heapq
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

SAMPLE_PAIRS = 100_000  # of which the rank correlation is computed; all of them up to this number
SEED = 0  # of the sample, so that the same file gives the same numbers


@dataclass
class Spread:
    """The differences `new - old` of pairs of finite scores.

    Attributes:
        count: the number of pairs.
        equal: the number of pairs with the same bits.
        mean: the mean difference; 0.0 before the first pair.
        largest: the largest magnitude of a difference.
    """

    count: int = 0
    equal: int = 0
    mean: float = 0.0
    largest: float = 0.0
    _squares: float = 0.0
    _sample: list[tuple[float, float]] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(SEED))  # noqa: S311  # no secret

    def add(self, old: float, new: float) -> None:
        """Count one pair."""
        difference = new - old
        self.count += 1
        # 0.0 and -0.0 are equal numbers of different bits.
        self.equal += old == new and math.copysign(1.0, old) == math.copysign(1.0, new)
        self.largest = max(self.largest, abs(difference))
        # Welford's update, which does not cancel where the mean is large beside the spread.
        before = difference - self.mean
        self.mean += before / self.count
        self._squares += before * (difference - self.mean)
        if len(self._sample) < SAMPLE_PAIRS:
            self._sample.append((old, new))
        elif (place := self._random.randrange(self.count)) < SAMPLE_PAIRS:  # each pair is kept with the same chance
            self._sample[place] = old, new

    @property
    def sd(self) -> float | None:
        """Return the standard deviation of the differences (divisor n - 1); None for fewer than two pairs."""
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else None

    @property
    def spearman(self) -> float | None:
        """Return Spearman's rank correlation of both series; None where one of them is constant or has one value."""
        if not self._sample:
            return None
        old, new = (compute_ranks(series) for series in zip(*self._sample, strict=True))
        try:
            return statistics.correlation(old, new)
        except statistics.StatisticsError:
            return None

    @property
    def is_sampled(self) -> bool:
        """Return whether the rank correlation is that of a sample."""
        return self.count > len(self._sample)


def compute_ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 1 for the smallest; equal values have the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + 1 + end) / 2
        start = end
    return ranks


def compute_kendall(old: Sequence[float], new: Sequence[float]) -> float | None:
    """Return Kendall's tau-b of two series of the same length; None where one of them is constant."""
    concordant = discordant = old_ties = new_ties = 0
    for i in range(len(old)):
        for j in range(i):
            a, b = old[i] - old[j], new[i] - new[j]
            old_ties += a == 0
            new_ties += b == 0
            if a and b:
                same = (a > 0) == (b > 0)
                concordant += same
                discordant += not same
    pairs = len(old) * (len(old) - 1) // 2
    scale = math.sqrt((pairs - old_ties) * (pairs - new_ties))
    return (concordant - discordant) / scale if scale else None


def rank_indices(scores: Sequence[float]) -> list[int]:
    """Return indices by falling score; equal scores by rising index, as the service ranks."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


@dataclass
class Worst:
    """The rows with the largest sizes, at most `most`; of equal sizes those that came first."""

    most: int
    _seen: int = 0
    _heap: list[tuple[float, int, dict[str, object]]] = field(default_factory=list)

    def add(self, size: float, row: dict[str, object]) -> None:
        """Keep a row if its size is among the largest."""
        self._seen += 1
        # The number of the row decides between equal sizes, so that rows themselves are never compared.
        heapq.heappush(self._heap, (size, -self._seen, row))
        if len(self._heap) > self.most:
            heapq.heappop(self._heap)

    def list_rows(self) -> list[dict[str, object]]:
        """Return the rows, largest first."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]
