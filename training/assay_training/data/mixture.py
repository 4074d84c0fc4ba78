"""Apply the steps of a mixture to the records of a training part, in the order of the configuration.

Steps are pure functions with a seed. They are never applied to test records. A record that a step creates stays in the
group of the record that it was made from.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from assay_service.scoring.item import Item, Message
from assay_training.algorithms.adjustment import adjust_label
from assay_training.algorithms.buckets import HIGH, LOW, Bucket, find_bucket
from assay_training.config import mixture as steps
from assay_training.config.base import ConfigError
from assay_training.records.paraphrases import Paraphrase
from assay_training.records.record import Judged, Labelled

BINS = 5  # label ranges of `under_sample` ([CRS] section 5.3)

Paraphrases = Mapping[PurePosixPath, Mapping[Item, Paraphrase]]


def mix(records: Sequence[Judged], mixture: Sequence[steps.Step], paraphrases: Paraphrases, seed: int) -> list[Judged]:
    """Apply all steps, one after the other.

    Args:
        records: records of a training part.
        mixture: steps, in order.
        paraphrases: paraphrases by file, for `augment` steps.
        seed: seed of all draws.

    Raises:
        ConfigError: a step finds no records to work on, or too few.
    """
    mixed = list(records)
    for number, step in enumerate(mixture):
        # A generator per step: another number of draws in one step does not change the draws of the next.
        draw = random.Random(f"{seed} {number}")  # noqa: S311 - a draw, not a secret
        mixed = _STEPS[type(step)](mixed, step, draw, paraphrases)
    return mixed


def over_sample(records: Sequence[Judged], draw: random.Random) -> list[Judged]:
    """Replace the low labelled items by twice as many draws from them, with replacement.

    Raises:
        ConfigError: no labelled item is low.
    """
    low = _select_low(records, "over_sample")
    return [*(r for r in records if not is_low(r)), *draw.choices(low, k=2 * len(low))]


def under_sample(records: Sequence[Judged], rows: int, draw: random.Random) -> list[Judged]:
    """Keep `rows` mid labelled items, equally many of each of five equal label ranges `(a, b]`, and all other records.

    Raises:
        ConfigError: a range has fewer than `rows / 5` items.
    """
    ranges: dict[int, list[Judged]] = defaultdict(list)
    rest: list[Judged] = []
    width = (HIGH - LOW) / BINS
    edges = [LOW + width * number for number in range(1, BINS)]
    for record in records:
        if isinstance(record, Labelled) and find_bucket(record.label) == "mid":
            # The tolerance puts a label such as 0.5 into the range that ends at it, whatever the edge's rounding.
            ranges[sum(record.label > edge + 1e-12 for edge in edges)].append(record)
        else:
            rest.append(record)
    kept = []
    for number in range(BINS):
        if len(ranges[number]) < rows // BINS:
            low, high = LOW + width * number, LOW + width * (number + 1)
            raise ConfigError(
                f"under_sample: rows: {rows} needs {rows // BINS} labels in ({low:.1f}, {high:.1f}], "
                f"but there are {len(ranges[number])}"
            )
        kept += draw.sample(ranges[number], rows // BINS)
    return rest + kept


def augment(records: Sequence[Judged], paraphrases: Mapping[Item, Paraphrase]) -> list[Judged]:
    """Add a paraphrase of every low labelled item that has one, with its adjusted label.

    Raises:
        ConfigError: no low labelled item has a paraphrase.
    """
    low = _select_low(records, "augment")
    made = [
        replace(
            record,
            item=Item((*record.item.prompt, Message("assistant", paraphrases[record.item].text))),
            label=adjust_label(record.label, paraphrases[record.item].similarity),
        )
        for record in low
        if record.item in paraphrases
    ]
    if not made:
        raise ConfigError("augment: the file has no paraphrase of a low labelled item of this run")
    return [*records, *made]


def weight_low(records: Sequence[Judged], share: float) -> list[Judged]:
    """Set the weight of low labelled items to `share * rows / low rows`.

    Raises:
        ConfigError: no labelled item is low.
    """
    weight = share * len(records) / len(_select_low(records, "weight_low"))
    return [replace(r, weight=weight) if isinstance(r, Labelled) and is_low(r) else r for r in records]


def weight_extremes(records: Sequence[Judged], weight: float) -> list[Judged]:
    """Set the weight of low and high labelled items."""
    return [
        replace(r, weight=weight) if isinstance(r, Labelled) and find_bucket(r.label) != "mid" else r for r in records
    ]


def draw_portion(records: Sequence[Judged], sources: Sequence[str], share: float, draw: random.Random) -> list[Judged]:
    """Draw records of `sources` uniformly until they are `share` of the result; all other records stay.

    Raises:
        ConfigError: `sources` have too few records, or a name is not a source of this run.
    """
    _check_names("portion", sources, records)
    drawn_from = [r for r in records if r.source in sources or r.data_set in sources]
    others = [r for r in records if not (r.source in sources or r.data_set in sources)]
    # `share` is a share of the result: drawn / (drawn + others).
    wanted = round(len(others) * share / (1 - share))
    if wanted > len(drawn_from):
        raise ConfigError(f"portion: a share of {share} needs {wanted} records, but the sources have {len(drawn_from)}")
    return others + draw.sample(drawn_from, wanted)


def keep(records: Sequence[Judged], sources: Sequence[str]) -> list[Judged]:
    """Keep the records of some sources.

    Raises:
        ConfigError: a name is not a source of this run.
    """
    _check_names("keep", sources, records)
    return [r for r in records if r.source in sources or r.data_set in sources]


def sample(records: Sequence[Judged], share: float) -> list[Judged]:
    """Keep the records of a share of the groups, chosen by the hash of a group's name."""
    return [record for record in records if _hash_group(record.group, slice(24, 32)) < share]


def draw_proportions(records: Sequence[Judged], wanted: steps.Proportions, draw: random.Random) -> list[Judged]:
    """Draw as many labelled items as have the wanted shares of low, mid and high labels; rankings are skipped."""
    buckets: dict[Bucket, list[Judged]] = {"low": [], "mid": [], "high": []}
    for record in records:
        if isinstance(record, Labelled):
            buckets[find_bucket(record.label)].append(record)
    shares: dict[Bucket, float] = {"low": wanted.low, "mid": wanted.mid, "high": wanted.high}
    # Nothing is drawn twice, so the scarcest bucket limits the size of the result.
    total = min(len(buckets[name]) / share for name, share in shares.items())
    return [record for name, share in shares.items() for record in draw.sample(buckets[name], round(total * share))]


def repeat(records: Sequence[Judged], times: Mapping[str, float]) -> list[Judged]:
    """Repeat every record by the number of its subset, else of its data set, else once.

    With 1.5, half of the groups occur twice and the others once, chosen by the hash of a group's name.

    Raises:
        ConfigError: a name is not a source of this run.
    """
    _check_names("repeat", list(times), records)
    return [record for record in records for _ in range(_count_copies(record, times))]


def draw_mismatched(records: Sequence[Judged], share: float, draw: random.Random) -> list[Labelled]:
    """Draw prompts with the completion of another prompt, labelled 0, because it does not answer the prompt.

    Prompt and completion are from the same source, so that the style of a source does not predict the label.

    Args:
        records: labelled items; rankings are skipped.
        share: probability that an item's prompt gets a mismatched completion.
        draw: generator of the draws.

    Returns:
        The new items, each in the group of its prompt.
    """
    pools: dict[str, list[Labelled]] = defaultdict(list)
    answers: dict[str, set[str]] = defaultdict(set)  # a completion drawn from here would be a right answer, not 0
    for record in records:
        if isinstance(record, Labelled):
            pools[record.source].append(record)
            answers[record.group].add(record.item.completion)
    made = []
    for pool in pools.values():
        for record in pool:
            # Both numbers are drawn for every record, so a larger share only adds items to those of a smaller one.
            other = draw.choice(pool)
            if draw.random() < share and other.item.completion not in answers[record.group]:
                messages = (*record.item.prompt, Message("assistant", other.item.completion))
                made.append(replace(record, item=Item(messages), label=0.0))
    return made


def is_low(record: Judged) -> bool:
    """Return whether a record is a labelled item with a label of at most 0.4."""
    return isinstance(record, Labelled) and find_bucket(record.label) == "low"


def _select_low(records: Sequence[Judged], step: str) -> list[Labelled]:
    low = [record for record in records if isinstance(record, Labelled) and is_low(record)]
    if not low:
        raise ConfigError(f"{step}: no labelled item has a label of at most {LOW}; remove the step or add a source")
    return low


def _check_names(step: str, names: Sequence[str], records: Sequence[Judged]) -> None:
    known = {name for record in records for name in (record.source, record.data_set)}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{step}: {name!r} is not a source of this run; its sources are {', '.join(sorted(known))}"
            )


def _count_copies(record: Judged, times: Mapping[str, float]) -> int:
    wanted = times.get(record.source, times.get(record.data_set, 1.0))
    return int(wanted) + (_hash_group(record.group, slice(16, 24)) < wanted % 1)


def _hash_group(group: str, digits: slice) -> float:
    """Return a number in 0..1 from the hash of a group's name.

    The digits differ from those of the split, so that a step's choice is independent of the folds.
    """
    return float(int.from_bytes(hashlib.sha256(group.encode()).digest()[digits], "big") / 2**64)


_Apply = Callable[[list[Judged], Any, random.Random, Paraphrases], list[Judged]]

_STEPS: Mapping[type[Any], _Apply] = {
    steps.OverSample: lambda records, _, draw, __: over_sample(records, draw),
    steps.UnderSample: lambda records, step, draw, _: under_sample(records, step.rows, draw),
    steps.Augment: lambda records, step, _, paraphrases: augment(records, paraphrases[step.file]),
    steps.WeightLow: lambda records, step, _, __: weight_low(records, step.share),
    steps.WeightExtremes: lambda records, step, _, __: weight_extremes(records, step.weight),
    steps.Portion: lambda records, step, draw, _: draw_portion(records, step.sources, step.share, draw),
    steps.Keep: lambda records, step, _, __: keep(records, step.sources),
    steps.Sample: lambda records, step, _, __: sample(records, step.share),
    steps.Proportions: lambda records, step, draw, _: draw_proportions(records, step, draw),
    steps.Mismatched: lambda records, step, draw, _: [*records, *draw_mismatched(records, step.share, draw)],
    steps.Repeat: lambda records, step, _, __: repeat(records, step.times),
}
