"""Steps from records to records: pure, seeded, in the order of the configuration.

They are applied to a training part and never to what is tested on. What a step makes from a record stays in its group.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from assay_service.scoring.item import Item, Message
from assay_training.algorithms.adjustment import adjusted_label
from assay_training.algorithms.buckets import HIGH, LOW, Bucket, bucket_of
from assay_training.config import mixture as steps
from assay_training.config.base import ConfigError
from assay_training.records.paraphrases import Paraphrase
from assay_training.records.record import Judged, Labelled

BINS = 5

Paraphrases = Mapping[PurePosixPath, Mapping[Item, Paraphrase]]


def mix(records: Sequence[Judged], mixture: Sequence[steps.Step], paraphrases: Paraphrases, seed: int) -> list[Judged]:
    """All steps, one after the other.

    Args:
        records: of a training part.
        mixture: what to do.
        paraphrases: by file, for the `augment` steps.
        seed: of every draw.

    Raises:
        ConfigError: a step has nothing to work on, or not enough.
    """
    mixed = list(records)
    for number, step in enumerate(mixture):
        draw = random.Random(f"{seed} {number}")  # noqa: S311 - a draw, not a secret
        mixed = _STEPS[type(step)](mixed, step, draw, paraphrases)
    return mixed


def over_sample(records: Sequence[Judged], draw: random.Random) -> list[Judged]:
    """The low labelled items replaced by twice as many draws from them, with replacement."""
    low = _low(records, "over_sample")
    return [*(r for r in records if not is_low(r)), *draw.choices(low, k=2 * len(low))]


def under_sample(records: Sequence[Judged], rows: int, draw: random.Random) -> list[Judged]:
    """`rows` of the mid labelled items, equally many of each of five equal ranges `(a, b]` of labels; the rest stay.

    Raises:
        ConfigError: a range has fewer.
    """
    ranges: dict[int, list[Judged]] = defaultdict(list)
    rest: list[Judged] = []
    width = (HIGH - LOW) / BINS
    edges = [LOW + width * number for number in range(1, BINS)]
    for record in records:
        if isinstance(record, Labelled) and bucket_of(record.label) == "mid":
            ranges[sum(record.label > edge + 1e-12 for edge in edges)].append(record)
        else:
            rest.append(record)
    kept = []
    for number in range(BINS):
        if len(ranges[number]) < rows // BINS:
            low, high = LOW + width * number, LOW + width * (number + 1)
            raise ConfigError(
                f"under_sample: rows: {rows} asks for {rows // BINS} labels in ({low:.1f}, {high:.1f}], "
                f"there are {len(ranges[number])}"
            )
        kept += draw.sample(ranges[number], rows // BINS)
    return rest + kept


def augment(records: Sequence[Judged], paraphrases: Mapping[Item, Paraphrase]) -> list[Judged]:
    """The records, and a paraphrase of every low labelled item that has one, with its adjusted label."""
    low = _low(records, "augment")
    made = [
        replace(
            record,
            item=Item((*record.item.prompt, Message("assistant", paraphrases[record.item].text))),
            label=adjusted_label(record.label, paraphrases[record.item].similarity),
        )
        for record in low
        if record.item in paraphrases
    ]
    if not made:
        raise ConfigError("augment: no paraphrase belongs to a low labelled item of this run")
    return [*records, *made]


def weight_low(records: Sequence[Judged], share: float) -> list[Judged]:
    """Low labelled items weigh `share * rows / low rows`."""
    weight = share * len(records) / len(_low(records, "weight_low"))
    return [replace(r, weight=weight) if isinstance(r, Labelled) and is_low(r) else r for r in records]


def weight_extremes(records: Sequence[Judged], weight: float) -> list[Judged]:
    """Low and high labelled items weigh `weight`."""
    return [
        replace(r, weight=weight) if isinstance(r, Labelled) and bucket_of(r.label) != "mid" else r for r in records
    ]


def portion(records: Sequence[Judged], sources: Sequence[str], share: float, draw: random.Random) -> list[Judged]:
    """All records of the other sources, and so many drawn uniformly from `sources` that they are `share` of the result.

    Raises:
        ConfigError: `sources` hold fewer, or a name is not a source of this run.
    """
    _check_names("portion", sources, records)
    drawn_from = [r for r in records if r.source in sources or r.data_set in sources]
    others = [r for r in records if not (r.source in sources or r.data_set in sources)]
    wanted = round(len(others) * share / (1 - share))
    if wanted > len(drawn_from):
        raise ConfigError(f"portion: a share of {share} takes {wanted} records, the sources have {len(drawn_from)}")
    return others + draw.sample(drawn_from, wanted)


def keep(records: Sequence[Judged], sources: Sequence[str]) -> list[Judged]:
    """The records of some sources.

    Raises:
        ConfigError: a name is not a source of this run.
    """
    _check_names("keep", sources, records)
    return [r for r in records if r.source in sources or r.data_set in sources]


def sample(records: Sequence[Judged], share: float) -> list[Judged]:
    """The records of a share of the groups, which follows from their names."""
    return [record for record in records if _place(record.group, slice(24, 32)) < share]


def proportions(records: Sequence[Judged], wanted: steps.Proportions, draw: random.Random) -> list[Judged]:
    """The most labelled items that have the wanted shares of low, mid and high labels; rankings are passed over."""
    buckets: dict[Bucket, list[Judged]] = {"low": [], "mid": [], "high": []}
    for record in records:
        if isinstance(record, Labelled):
            buckets[bucket_of(record.label)].append(record)
    shares: dict[Bucket, float] = {"low": wanted.low, "mid": wanted.mid, "high": wanted.high}
    total = min(len(buckets[name]) / share for name, share in shares.items())
    return [record for name, share in shares.items() for record in draw.sample(buckets[name], round(total * share))]


def repeat(records: Sequence[Judged], times: Mapping[str, float]) -> list[Judged]:
    """Every record as often as its subset says, else its data set, else once.

    Of 1.5, half of the groups occur twice and the others once; which ones follows from their name.

    Raises:
        ConfigError: a name is not a source of this run.
    """
    _check_names("repeat", list(times), records)
    return [record for record in records for _ in range(_times(record, times))]


def mismatched(records: Sequence[Judged], share: float, draw: random.Random) -> list[Labelled]:
    """Prompts with the completion of another prompt, labelled 0: an answer to something else is a bad answer.

    Both halves come from the same source, so that its style says nothing.

    Args:
        records: labelled items; rankings are passed over.
        share: of the items that are given a mismatched twin.
        draw: of the twins.

    Returns:
        The new items, in the group of their prompt.
    """
    pools: dict[str, list[Labelled]] = defaultdict(list)
    answers: dict[str, set[str]] = defaultdict(set)  # two questions may have an answer in common
    for record in records:
        if isinstance(record, Labelled):
            pools[record.source].append(record)
            answers[record.group].add(record.item.completion)
    made = []
    for pool in pools.values():
        for record in pool:
            other = draw.choice(pool)
            if draw.random() < share and other.item.completion not in answers[record.group]:
                messages = (*record.item.prompt, Message("assistant", other.item.completion))
                made.append(replace(record, item=Item(messages), label=0.0))
    return made


def is_low(record: Judged) -> bool:
    """Whether a labelled item's label is at most 0.4."""
    return isinstance(record, Labelled) and bucket_of(record.label) == "low"


def _low(records: Sequence[Judged], step: str) -> list[Labelled]:
    low = [record for record in records if isinstance(record, Labelled) and is_low(record)]
    if not low:
        raise ConfigError(f"{step}: there is no labelled item with a label of at most {LOW}")
    return low


def _check_names(step: str, names: Sequence[str], records: Sequence[Judged]) -> None:
    known = {name for record in records for name in (record.source, record.data_set)}
    for name in names:
        if name not in known:
            raise ConfigError(f"{step}: {name!r} is not a source of this run; these are: {', '.join(sorted(known))}")


def _times(record: Judged, times: Mapping[str, float]) -> int:
    wanted = times.get(record.source, times.get(record.data_set, 1.0))
    return int(wanted) + (_place(record.group, slice(16, 24)) < wanted % 1)


def _place(group: str, digits: slice) -> float:
    """Where a group stands in 0..1, by its name; other bytes than the split's, which must not matter."""
    return float(int.from_bytes(hashlib.sha256(group.encode()).digest()[digits], "big") / 2**64)


_Apply = Callable[[list[Judged], Any, random.Random, Paraphrases], list[Judged]]

_STEPS: Mapping[type[Any], _Apply] = {
    steps.OverSample: lambda records, _, draw, __: over_sample(records, draw),
    steps.UnderSample: lambda records, step, draw, _: under_sample(records, step.rows, draw),
    steps.Augment: lambda records, step, _, paraphrases: augment(records, paraphrases[step.file]),
    steps.WeightLow: lambda records, step, _, __: weight_low(records, step.share),
    steps.WeightExtremes: lambda records, step, _, __: weight_extremes(records, step.weight),
    steps.Portion: lambda records, step, draw, _: portion(records, step.sources, step.share, draw),
    steps.Keep: lambda records, step, _, __: keep(records, step.sources),
    steps.Sample: lambda records, step, _, __: sample(records, step.share),
    steps.Proportions: lambda records, step, draw, _: proportions(records, step, draw),
    steps.Mismatched: lambda records, step, draw, _: [*records, *mismatched(records, step.share, draw)],
    steps.Repeat: lambda records, step, _, __: repeat(records, step.times),
}
