"""Steps from records to more records. Pure and seeded; what they make is trained on and never tested on."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from assay_service.scoring.item import Item, Message
from assay_training.config import ConfigError
from assay_training.records import Labelled, Record


def times_in_epoch(record: Record, repeat: Mapping[str, float]) -> int:
    """How often `record` occurs in an epoch: what its subset says, else what its data set says, else once.

    Of 1.5, half of the groups occur twice and the others once; which ones follows from their name.
    """
    times = repeat.get(record.source, repeat.get(record.data_set, 1.0))
    digest = hashlib.sha256(record.group.encode()).digest()
    share = int.from_bytes(digest[16:24], "big") / 2**64  # other bytes than the split's, which must not matter
    return int(times) + (share < times % 1)


def check_names(repeat: Mapping[str, float], records: Sequence[Record]) -> None:
    """Every name in `repeat` is one of the records'.

    Raises:
        ConfigError: naming the first that is not, and those that there are.
    """
    known = {name for record in records for name in (record.source, record.data_set)}
    for name in repeat:
        if name not in known:
            raise ConfigError(f"repeat: {name!r} is not a source of this run; these are: {', '.join(sorted(known))}")


def mismatched(records: Sequence[Record], share: float, part_of: Callable[[Record], int], seed: int) -> list[Labelled]:
    """Prompts with the completion of another prompt, labelled 0: an answer to something else is a bad answer.

    Both halves come from the same source, so that its style says nothing, and from the same part of the split, so that
    no text crosses from a test part into training.

    Args:
        records: labelled items; rankings are passed over.
        share: of the items that are given a mismatched twin.
        part_of: the part that a record is in.
        seed: of the draw.

    Returns:
        The new items, in the group of their prompt.
    """
    generator = random.Random(seed)  # noqa: S311 - a draw, not a secret
    pools: dict[tuple[str, int], list[Labelled]] = defaultdict(list)
    answers: dict[str, set[str]] = defaultdict(set)  # two questions may have an answer in common
    for record in records:
        if isinstance(record, Labelled):
            pools[record.source, part_of(record)].append(record)
            answers[record.group].add(record.item.completion)
    made = []
    for pool in pools.values():
        for record in pool:
            other = generator.choice(pool)
            if generator.random() < share and other.item.completion not in answers[record.group]:
                messages = (*record.item.prompt, Message("assistant", other.item.completion))
                made.append(replace(record, item=Item(messages), label=0.0))
    return made
