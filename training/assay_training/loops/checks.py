"""What must hold of a run's records and base before anything is written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from assay_service.scoring.architectures import longest_sequence
from assay_service.scoring.checkpoint import read_config
from assay_training.algorithms.folds import HELD_OUT, fold_of
from assay_training.config.base import ConfigError
from assay_training.config.mixture import Augment
from assay_training.config.objective import LabelledMargin, PreferenceObjective
from assay_training.config.reward import RewardConfig
from assay_training.mixture import Paraphrases, is_low, mix
from assay_training.records.record import Judged, Labelled, Ranking


def part_of(config: RewardConfig, record: Judged) -> int:
    """The fold of a record, or `HELD_OUT`."""
    split = config.split
    return fold_of(record.group, folds=split.folds or 1, held_out=split.held_out, seed=config.seed)


def teaches(record: Judged) -> bool:
    """Whether there is anything to learn from it: a ranking of ties alone has no pair."""
    return not isinstance(record, Ranking) or bool(record.pairs)


def check_length(max_length: int, base: Path) -> None:
    """The base has a position for every token; the service would refuse the checkpoint.

    Raises:
        ConfigError: it has fewer.
    """
    positions = longest_sequence(read_config(base))
    if positions is not None and max_length > positions:
        raise ConfigError(f"max_length: {max_length} is more than the {positions} positions of {base}")


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
        _check_lesson(config, name, mixed)
    for part in [HELD_OUT] if config.split.folds is None else range(config.split.test_folds or 0):
        groups = {r.group for r, other in zip(records, parts, strict=True) if other == part and teaches(r)}
        if len(groups) < 2:
            name = "the held-out part" if part == HELD_OUT else f"fold {part}"
            raise ConfigError(f"split: {name} has {len(groups)} groups to test on; at least two are needed")


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


def _check_lesson(config: RewardConfig, name: str, mixed: Sequence[Judged]) -> None:
    if not mixed:
        raise ConfigError(f"sources, mixture: {name}: there is nothing to learn from")
    objective = config.objective
    if isinstance(objective, PreferenceObjective) and isinstance(objective.margin, LabelledMargin):
        rankings = (record for record in mixed if isinstance(record, Ranking))
        if all(pair.gap is None for record in rankings for pair in record.pairs):
            raise ConfigError(f"objective: margin: labelled, but no source says how much better ({name})")
