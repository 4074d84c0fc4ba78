"""What must hold of a run's records and base before anything is written."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from assay_service.errors import StartError
from assay_service.scoring.architectures import longest_scaled, longest_sequence
from assay_service.scoring.files import read_config, resolve
from assay_training.algorithms.folds import HELD_OUT, fold_of
from assay_training.config.base import ConfigError, RunConfig
from assay_training.config.mixture import Augment
from assay_training.config.objective import AbsoluteObjective, LabelledMargin, PreferenceObjective
from assay_training.config.reward import RewardConfig
from assay_training.evaluation.results import domains
from assay_training.mixture import Paraphrases, is_low, mix
from assay_training.records.record import Judged, Labelled, Ranking

LARGEST_REFUSED_SHARE = 0.5


def part_of(config: RewardConfig, record: Judged) -> int:
    """The fold of a record, or `HELD_OUT`."""
    split = config.split
    return fold_of(record.group, folds=split.folds or 1, held_out=split.held_out, seed=config.seed)


def teaches(record: Judged) -> bool:
    """Whether there is anything to learn from it: a ranking of ties alone has no pair."""
    return not isinstance(record, Ranking) or bool(record.pairs)


def untaught(records: Sequence[Judged]) -> Counter[str]:
    """Rankings of ties alone, which no model is trained on, by source; where they are tested their ties are."""
    return Counter(f"{record.data_set}: nothing but ties" for record in records if not teaches(record))


def check_refused(refused: Mapping[str, int], records: int, key: str = "sources") -> list[str]:
    """Return what to tell about records that could not be rendered, once most of them could.

    A run would else learn from a remnant of its data.

    Args:
        refused: records that the renderer refused, by error code.
        records: how many there were.
        key: of the configuration that names them.

    Raises:
        ConfigError: more than half were refused.
    """
    total, counts = sum(refused.values()), ", ".join(f"{code}: {count}" for code, count in sorted(refused.items()))
    told = f"{total} of {records} records cannot be rendered ({counts})"
    if total > LARGEST_REFUSED_SHARE * records:
        raise ConfigError(f"{key}: {told}")
    return [f"{key}: {told}; they are left out"] if total else []


def check_told_apart(equal_ids: Mapping[str, int], examples: Sequence[Judged], max_length: int) -> list[str]:
    """Return what to tell about pairs that were left out because the ids of their completions are equal.

    Args:
        equal_ids: pairs and ties that were left out, by data set.
        examples: the records that are left.
        max_length: tokens of prompt and completion together.

    Raises:
        ConfigError: no pair is left.
    """
    cause = f"both are cut at max_length {max_length}, or the template or the tokenizer drops what differs"
    if equal_ids and not any(teaches(record) for record in examples):
        counts = ", ".join(f"{name}: {count}" for name, count in sorted(equal_ids.items()))
        raise ConfigError(
            f"sources: the two completions of every pair have equal ids ({counts}): "
            f"{cause}; raise max_length, or change the template"
        )
    return [
        f"{name}: {count:,} pairs or ties left out, as their completions have equal ids: {cause}"
        for name, count in sorted(equal_ids.items())
    ]


def base_of(config: RunConfig) -> Path:
    """Return the directory of the base, which is fetched if it is on the hub.

    Raises:
        ConfigError: it is not there.
    """
    try:
        return resolve(config.base_reference, config.revision, Path("/"))
    except StartError as error:
        hint = "" if config.revision is not None else " (a hub id needs its `revision`)"
        raise ConfigError(f"base: {error}{hint}") from error


def check_length(name: str, max_length: int, base: Path) -> None:
    """The base has a position for every token; the service would refuse the checkpoint.

    Args:
        name: of the length in the configuration.
        max_length: tokens.
        base: a checkpoint.

    Raises:
        ConfigError: it has fewer.
    """
    config = read_config(base)
    positions = longest_sequence(config)
    if positions is not None and max_length > max(positions, longest_scaled(config) or 0):
        raise ConfigError(f"{name}: {max_length} is more than the {positions} positions of {base}")


def check(config: RewardConfig, records: Sequence[Judged], paraphrases: Paraphrases) -> None:
    """Every part that will be trained on can be mixed and teaches something; every part that is tested has two groups.

    Raises:
        ConfigError: naming the part and what is wrong with it.
    """
    parts = [part_of(config, record) for record in records]
    for name, left_out in _trainings(config):
        training = [record for record, part in zip(records, parts, strict=True) if part not in left_out]
        try:
            mixed = [r for r in mix(training, config.mixture, paraphrases, config.seed) if teaches(r)]
        except ConfigError as error:
            raise ConfigError(f"{error} ({name}, {len(training)} of {len(records)} records)") from error
        _check_lesson(config, name, [r for r in training if teaches(r)], mixed)
    _check_tests(config, [(record, part) for record, part in zip(records, parts, strict=True) if teaches(record)])


def paraphrased(config: RewardConfig, records: Sequence[Judged], paraphrases: Paraphrases) -> dict[str, Any]:
    """`paraphrases`, if there is an `augment` step: by file low items with and without one, and those unused."""
    low = {record.item for record in records if isinstance(record, Labelled) and is_low(record)}
    counts = {}
    for step in config.mixture:
        if isinstance(step, Augment):
            known = set(paraphrases[step.file])
            found = len(low & known)
            counts[str(step.file)] = {"with": found, "without": len(low) - found, "unused": len(known) - found}
    return {"paraphrases": counts} if counts else {}


def _trainings(config: RewardConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What is trained, and which parts each training leaves out."""
    if config.split.folds is None:
        yield "the training part", (HELD_OUT,)
        return
    yield "all records", ()
    for fold in range(config.split.test_folds or 0):
        yield f"all but fold {fold}", (HELD_OUT, fold)


def _check_lesson(config: RewardConfig, name: str, training: Sequence[Judged], mixed: Sequence[Judged]) -> None:
    if not mixed:
        raise ConfigError(f"sources, mixture: {name}: there is nothing to learn from")
    if len(training) < 2:  # baselines are fitted on it as well, and a single item has no spread
        raise ConfigError(f"sources, split: {name} has one record to learn from; at least two are needed")
    objective = config.objective
    if isinstance(objective, PreferenceObjective) and isinstance(objective.margin, LabelledMargin):
        rankings = (record for record in mixed if isinstance(record, Ranking))
        if all(pair.gap is None for record in rankings for pair in record.pairs):
            raise ConfigError(f"objective: margin: labelled, but no source says how much better ({name})")


def _check_tests(config: RewardConfig, records: Sequence[tuple[Judged, int]]) -> None:
    """Every part has two groups, also the held-out one beside folds: the frozen head's penalty is chosen on it."""
    folds = range(config.split.test_folds or 0)
    for part in (HELD_OUT, *folds):
        groups = {record.group for record, other in records if other == part}
        if len(groups) < 2:
            name = "the held-out part" if part == HELD_OUT else f"fold {part}"
            use = "choose the frozen head on" if folds and part == HELD_OUT else "test on"
            raise ConfigError(f"split: {name} has {len(groups)} groups to {use}; at least two are needed")
    tested = [record for record, part in records if part in (folds or (HELD_OUT,))]
    if isinstance(config.objective, AbsoluteObjective) and not _has_domain(tested):
        raise ConfigError("split: no source has two groups to test on, so there would be no numbers")


def _has_domain(records: Sequence[Judged]) -> bool:
    """Whether there is a domain of two groups; labels of different sources have no numbers in common."""
    found = domains({record.source for record in records}).values()
    return any(len({record.group for record in records if record.source in sources}) > 1 for sources in found)
