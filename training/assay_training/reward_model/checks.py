"""Check the records of a reward-model run before anything is written."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from assay_training.algorithms.folds import HELD_OUT, assign_fold
from assay_training.config.base import ConfigError
from assay_training.config.mixture import Augment
from assay_training.config.objective import AbsoluteObjective, LabelledMargin, PreferenceObjective
from assay_training.config.reward import RewardConfig
from assay_training.data.mixture import Paraphrases, is_low, mix
from assay_training.evaluation.results import group_by_domain
from assay_training.records.record import Judged, Labelled, Ranking


def find_fold(config: RewardConfig, record: Judged) -> int:
    """Return the fold of a record, or `HELD_OUT`."""
    split = config.split
    return assign_fold(record.group, folds=split.folds or 1, held_out=split.held_out, seed=config.seed)


def is_trainable(record: Judged) -> bool:
    """Return whether a model can be trained on a record: a ranking of ties alone has no pair."""
    return not isinstance(record, Ranking) or bool(record.pairs)


def count_ties_only(records: Sequence[Judged]) -> Counter[str]:
    """Count the rankings of ties alone, by data set.

    No model is trained on them; in a test part, their ties are still reported.
    """
    return Counter(f"{record.data_set}: nothing but ties" for record in records if not is_trainable(record))


def check_equal_ids(equal_ids: Mapping[str, int], examples: Sequence[Judged], max_length: int) -> list[str]:
    """Return a line per data set with pairs that were dropped because the token ids of their completions are equal.

    Args:
        equal_ids: numbers of dropped pairs and ties, by data set.
        examples: remaining records.
        max_length: largest number of tokens of prompt and completion together.

    Raises:
        ConfigError: no pair remains.
    """
    cause = f"both are truncated at max_length {max_length}, or the template or tokenizer drops their difference"
    if equal_ids and not any(is_trainable(record) for record in examples):
        counts = ", ".join(f"{name}: {count}" for name, count in sorted(equal_ids.items()))
        raise ConfigError(
            f"sources: the two completions of every pair have equal token ids ({counts}): "
            f"{cause}; raise max_length, or change the template"
        )
    return [
        f"{name}: {count:,} pairs or ties dropped, because their completions have equal token ids: {cause}"
        for name, count in sorted(equal_ids.items())
    ]


def check_records(config: RewardConfig, records: Sequence[Judged], paraphrases: Paraphrases) -> None:
    """Check that every training part can be mixed and trained on, and that every test part has two groups.

    Args:
        config: configuration of the run.
        records: records of all parts.
        paraphrases: paraphrases by file, for `augment` steps.

    Raises:
        ConfigError: a part fails; the message names the part and the reason.
    """
    parts = [find_fold(config, record) for record in records]
    # Every training is checked before the first one runs, because a fold may lack what all records have.
    for name, excluded in _list_trainings(config):
        training = [record for record, part in zip(records, parts, strict=True) if part not in excluded]
        try:
            mixed = [r for r in mix(training, config.mixture, paraphrases, config.seed) if is_trainable(r)]
        except ConfigError as error:
            raise ConfigError(f"{error} ({name}, {len(training)} of {len(records)} records)") from error
        _check_training_part(config, name, [r for r in training if is_trainable(r)], mixed)
    _check_test_parts(
        config, [(record, part) for record, part in zip(records, parts, strict=True) if is_trainable(record)]
    )


def count_paraphrases(config: RewardConfig, records: Sequence[Judged], paraphrases: Paraphrases) -> dict[str, Any]:
    """Count the paraphrases of each `augment` step, for `render.json`.

    Returns:
        Under `paraphrases`, by file: low labelled items with and without a paraphrase, and unused paraphrases. The
        mapping is empty if the mixture has no `augment` step.
    """
    low = {record.item for record in records if isinstance(record, Labelled) and is_low(record)}
    counts = {}
    for step in config.mixture:
        if isinstance(step, Augment):
            known = set(paraphrases[step.file])
            found = len(low & known)
            counts[str(step.file)] = {"with": found, "without": len(low) - found, "unused": len(known) - found}
    return {"paraphrases": counts} if counts else {}


def _list_trainings(config: RewardConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name of each training of a run, and the parts that are excluded from it."""
    if config.split.folds is None:
        yield "the training part", (HELD_OUT,)
        return
    # The model that is served learns from all records, the held-out ones too.
    yield "all records", ()
    for fold in range(config.split.test_folds or 0):
        yield f"all but fold {fold}", (HELD_OUT, fold)


def _check_training_part(config: RewardConfig, name: str, training: Sequence[Judged], mixed: Sequence[Judged]) -> None:
    if not mixed:
        raise ConfigError(f"sources, mixture: {name} has no record to learn from")
    if len(training) < 2:  # baselines are fitted on the part as well, and one item has no spread
        raise ConfigError(f"sources, split: {name} has one record to learn from; at least two are needed")
    objective = config.objective
    if isinstance(objective, PreferenceObjective) and isinstance(objective.margin, LabelledMargin):
        rankings = (record for record in mixed if isinstance(record, Ranking))
        # One gap is enough: pairs without one are trained with the target margin 0.
        if all(pair.gap is None for record in rankings for pair in record.pairs):
            raise ConfigError(
                f"objective: margin: labelled needs pairs with a gap, but no pair has one ({name}); "
                "set margin: null, or use a source with graded preferences"
            )


def _check_test_parts(config: RewardConfig, records: Sequence[tuple[Judged, int]]) -> None:
    """Check that every test part has two groups.

    The held-out part needs them beside folds too, because the frozen head's penalty is chosen on it.
    """
    folds = range(config.split.test_folds or 0)
    for part in (HELD_OUT, *folds):
        groups = {record.group for record, other in records if other == part}
        if len(groups) < 2:
            name = "the held-out part" if part == HELD_OUT else f"fold {part}"
            use = "choose the frozen head's penalty on" if folds and part == HELD_OUT else "test on"
            raise ConfigError(f"split: {name} has {len(groups)} groups to {use}; at least two are needed")
    tested = [record for record, part in records if part in (folds or (HELD_OUT,))]
    if isinstance(config.objective, AbsoluteObjective) and not _has_domain(tested):
        raise ConfigError("split: no source has two groups to test on, so the run would have no results")


def _has_domain(records: Sequence[Judged]) -> bool:
    """Return whether a domain has two groups; labels of different sources share no statistic."""
    domain_sources = group_by_domain({record.source for record in records}).values()
    return any(len({record.group for record in records if record.source in sources}) > 1 for sources in domain_sources)
