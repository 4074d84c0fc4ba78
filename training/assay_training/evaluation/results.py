"""Logits beside their baselines, row by row, to the numbers of a model card."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay_training.algorithms.statistics import (
    Estimate,
    Floats,
    auc,
    bootstrap,
    bucket_errors,
    clustered_mean,
    outcomes,
    spearman,
)
from assay_training.examples import Example
from assay_training.records import Labelled

Logits = Sequence[Sequence[float]]
MODEL, FROZEN, LENGTH = "model", "frozen head", "length"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one kind with the logits of several contenders.

    Attributes:
        sources: of each row.
        groups: of each row.
        values: by contender; for preference the margin of each pair, for absolute the logit of each item.
        labels: of each item; None for preference.
    """

    sources: NDArray[np.str_]
    groups: NDArray[np.str_]
    values: dict[str, Floats]
    labels: Floats | None

    @classmethod
    def of(cls, examples: Sequence[Example], contenders: dict[str, Logits]) -> "Rows":
        """Pairs of rankings, or labelled items, with every contender's numbers."""
        sources, groups, labels = [], [], []
        values: dict[str, list[float]] = {name: [] for name in contenders}
        for i, example in enumerate(examples):
            record = example.record
            pairs = ((0, None),) if isinstance(record, Labelled) else record.pairs
            for better, worse in pairs:
                sources.append(record.source)
                groups.append(record.group)
                for name, logits in contenders.items():
                    values[name].append(logits[i][better] - (0.0 if worse is None else logits[i][worse]))
            if isinstance(record, Labelled):
                labels.append(record.label)
        arrays = {name: np.asarray(column) for name, column in values.items()}
        return cls(np.asarray(sources), np.asarray(groups), arrays, np.asarray(labels) if labels else None)

    def where(self, mask: NDArray[np.bool_]) -> "Rows":
        """The rows where `mask` is True."""
        values = {name: column[mask] for name, column in self.values.items()}
        return Rows(self.sources[mask], self.groups[mask], values, None if self.labels is None else self.labels[mask])


def results(rows: Rows, seed: int) -> dict[str, Any]:
    """Every number of a card, by domain; a domain is a source, the three helpful subsets together, or all of them."""
    domains = {str(source): rows.sources == source for source in np.unique(rows.sources)}
    helpful = np.char.find(rows.sources, "/helpful") >= 0
    if helpful.any():
        domains["hh_rlhf/helpful (all)"] = helpful
    if rows.labels is None:
        domains["all"] = np.ones(len(rows.sources), dtype=bool)
        return {name: preference_numbers(rows.where(mask)) for name, mask in domains.items()}
    return {name: absolute_numbers(rows.where(mask), seed) for name, mask in domains.items()}


def preference_numbers(rows: Rows) -> dict[str, Any]:
    """Pairwise accuracy of every contender, and the paired difference of the model to each of the others."""
    hits = {name: outcomes(margins) for name, margins in rows.values.items()}
    groups = rows.groups.tolist()
    return {
        "accuracy": {name: asdict(clustered_mean(column, groups)) for name, column in hits.items()},
        "difference": {
            name: asdict(clustered_mean(hits[MODEL] - column, groups)) for name, column in hits.items() if name != MODEL
        },
    }


def absolute_numbers(rows: Rows, seed: int) -> dict[str, Any]:
    """Errors by bucket, and the rank statistic that fits the labels: AUC where they are 0 or 1, Spearman elsewhere."""
    assert rows.labels is not None
    labels, groups = rows.labels, rows.groups.tolist()
    binary = bool(np.isin(labels, (0.0, 1.0)).all())

    def rank(column: Floats, index: NDArray[np.int64]) -> float:
        return auc(labels[index] == 1.0, column[index]) if binary else spearman(labels[index], column[index])

    def of(statistic: Callable[[NDArray[np.int64]], float]) -> dict[str, Any]:
        estimate: Estimate = bootstrap(statistic, groups, seed=seed)
        return asdict(estimate)

    return {
        "errors": {name: bucket_errors(labels, 1 / (1 + np.exp(-column))) for name, column in rows.values.items()},
        "statistic": "AUC" if binary else "Spearman",
        "rank": {name: of(lambda index, c=column: rank(c, index)) for name, column in rows.values.items()},  # type: ignore[misc]
        "difference": {
            name: of(lambda index, c=column: rank(rows.values[MODEL], index) - rank(c, index))  # type: ignore[misc]
            for name, column in rows.values.items()
            if name != MODEL
        },
    }
