"""Turn the results of scenarios into numbers; pure."""

import math
from collections.abc import Sequence

from benchmarks.capacity.clients import Outcome
from benchmarks.capacity.scenario import Result, Scenario

WARM_UP_S = 10.0  # at the beginning, which is not counted: queues and caches are empty
MILLION = 1e6


def compute_percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of `values` does not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else math.nan


def compute_cost(price_per_hour: float, replica_s: float, items: int) -> float:
    """Return the price of a million scores; NaN without scores.

    Args:
        price_per_hour: price of one replica for an hour.
        replica_s: seconds for which replicas are paid.
        items: number of scores in this time.
    """
    return price_per_hour * replica_s / 3600 / items * MILLION if items else math.nan


def compute_burst_s(result: Result) -> float:
    """Return the mean seconds of a burst; NaN if no trainer asked."""
    bursts = [end_s - begun_s for begun_s, end_s in result.tally.bursts if begun_s >= WARM_UP_S]
    return sum(bursts) / len(bursts) if bursts else math.nan


def summarize(scenario: Scenario, result: Result, price_per_hour: float) -> dict[str, float]:
    """Return the numbers of one scenario.

    Latencies and rates are of the time from the end of the warm-up to the end of the offered load. Requests and tries
    are counted over the whole scenario.
    """
    done = result.tally.select_done(WARM_UP_S, scenario.seconds)
    seconds = [one.seconds for one in done]
    items = sum(one.items for one in done)
    lasted_s = scenario.seconds - WARM_UP_S
    paid_s = sum_paid_s(result.sizes, WARM_UP_S, scenario.seconds)
    looked = sum(one.hits + one.misses for one in result.counters)
    unshared = sum(one.unshared_tokens for one in result.counters)
    return {
        "items/s": items / lasted_s,
        "P50 s": compute_percentile(seconds, 0.5),
        "P99 s": compute_percentile(seconds, 0.99),
        "burst s": compute_burst_s(result),
        "hits": sum(one.hits for one in result.counters) / looked,
        "saved": 1 - sum(one.computed_tokens for one in result.counters) / unshared,
        "tries": sum(one.tries for one in result.tally.outcomes) / result.tally.offered,
        "refused": result.tally.count("refused"),
        "lost": result.tally.count("lost"),
        "replicas": paid_s / lasted_s,
        "cost": compute_cost(price_per_hour, paid_s, items),
    }


def sum_paid_s(sizes: Sequence[tuple[float, int]], begin_s: float, end_s: float) -> float:
    """Return the seconds for which replicas are paid within a time.

    Args:
        sizes: time and number of paid replicas after each change.
        begin_s: beginning of the time.
        end_s: its end.
    """
    ends = [at_s for at_s, _ in sizes[1:]] + [math.inf]
    spans = ((max(at_s, begin_s), min(until_s, end_s), size) for (at_s, size), until_s in zip(sizes, ends, strict=True))
    return sum(max(until_s - at_s, 0.0) * size for at_s, until_s, size in spans)


def split_by_time(outcomes: Sequence[Outcome], step_s: float, end_s: float) -> list[list[Outcome]]:
    """Return the outcomes by the time of their beginning, one list for each step until `end_s`."""
    steps: list[list[Outcome]] = [[] for _ in range(math.ceil(end_s / step_s))]
    for one in outcomes:
        if one.begun_s < end_s:
            steps[int(one.begun_s / step_s)].append(one)
    return steps


def find_recovery_s(outcomes: Sequence[Outcome], after_s: float, limit_s: float, step_s: float, end_s: float) -> float:
    """Return the seconds after an event from which on every step has a P99 of at most `limit_s`; infinite if never.

    Args:
        outcomes: the requests that were answered.
        after_s: time of the event.
        limit_s: latency that counts as recovered.
        step_s: length of a step.
        end_s: time up to which steps are looked at.
    """
    steps = split_by_time(outcomes, step_s, end_s)
    slow = [
        number
        for number, ones in enumerate(steps)
        if (number + 1) * step_s > after_s and compute_percentile([one.seconds for one in ones], 0.99) > limit_s
    ]
    if not slow:
        return 0.0
    return math.inf if slow[-1] == len(steps) - 1 else (slow[-1] + 1) * step_s - after_s
