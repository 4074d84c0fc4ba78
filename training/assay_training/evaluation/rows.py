"""Logits of several contenders, row by row: pairs and ties of rankings, or labelled items."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from assay_training.algorithms.statistics import Floats
from assay_training.records.record import Judged, Labelled, Pair, Ranking

Logits = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one kind.

    Attributes:
        sources: of each row.
        groups: of each row.
        values: by contender; for preference the margin of each pair, for absolute the output for each item.
        labels: of each item; None for preference.
        gaps: of each pair, NaN where its source does not say; None for absolute.
        extremes: whether a pair is its ranking's best against its worst; None for absolute.
        firsts: whether the better one of a pair stands before the other; None for absolute.
        ties: margins of completions judged equal, as rows of their own; None for absolute, and of some pairs alone.
    """

    sources: NDArray[np.str_]
    groups: NDArray[np.str_]
    values: dict[str, Floats]
    labels: Floats | None = None
    gaps: Floats | None = None
    extremes: NDArray[np.bool_] | None = None
    firsts: NDArray[np.bool_] | None = None
    ties: "Rows | None" = None

    @classmethod
    def of(cls, records: Sequence[Judged], contenders: dict[str, Logits]) -> "Rows":
        """The pairs and ties of rankings, or the labelled items, with every contender's numbers."""
        if all(isinstance(record, Labelled) for record in records):
            labels = [record.label for record in records if isinstance(record, Labelled)]
            values = {name: np.asarray([row[0] for row in logits]) for name, logits in contenders.items()}
            return cls(_sources(records), _groups(records), values, labels=np.asarray(labels))
        pairs = [(i, pair) for i, record in _rankings(records) for pair in record.pairs]
        ties = [(i, Pair(*tie)) for i, record in _rankings(records) for tie in record.ties]
        best = {i: _extreme(record) for i, record in _rankings(records)}
        judged, tied = _margins(records, contenders, pairs), _margins(records, contenders, ties)
        return cls(
            judged.sources,
            judged.groups,
            judged.values,
            gaps=np.asarray([np.nan if pair.gap is None else pair.gap for _, pair in pairs], dtype=np.float64),
            extremes=np.asarray([pair == best[i] for i, pair in pairs], dtype=bool),
            firsts=np.asarray([pair.better < pair.worse for _, pair in pairs], dtype=bool),
            ties=tied,
        )

    @property
    def all_sources(self) -> set[str]:
        """Of rows and of ties: a source may have ties alone."""
        return {str(source) for source in np.unique(self.sources)} | (self.ties.all_sources if self.ties else set())

    def of_sources(self, sources: Collection[str]) -> "Rows":
        """The rows of `sources`, and their ties."""
        rows = self.where(np.isin(self.sources, list(sources)))
        return rows if self.ties is None else replace(rows, ties=self.ties.of_sources(sources))

    def where(self, mask: NDArray[np.bool_]) -> "Rows":
        """The rows where `mask` is True, without ties, which no mask of pairs is about."""
        return Rows(
            self.sources[mask],
            self.groups[mask],
            {name: column[mask] for name, column in self.values.items()},
            labels=None if self.labels is None else self.labels[mask],
            gaps=None if self.gaps is None else self.gaps[mask],
            extremes=None if self.extremes is None else self.extremes[mask],
            firsts=None if self.firsts is None else self.firsts[mask],
        )


def _margins(records: Sequence[Judged], contenders: dict[str, Logits], pairs: list[tuple[int, Pair]]) -> Rows:
    of = [records[i] for i, _ in pairs]
    values = {
        name: np.asarray([logits[i][pair.better] - logits[i][pair.worse] for i, pair in pairs], dtype=np.float64)
        for name, logits in contenders.items()
    }
    return Rows(_sources(of), _groups(of), values)


def _rankings(records: Sequence[Judged]) -> Iterator[tuple[int, Ranking]]:
    for i, record in enumerate(records):
        assert isinstance(record, Ranking)
        yield i, record


def _extreme(ranking: Ranking) -> Pair | None:
    """The pair of the completion with the most net wins and that with the fewest, if those two were compared."""
    net = Counter({k: 0 for k in range(len(ranking.completions))})
    for pair in ranking.pairs:
        net[pair.better] += 1
        net[pair.worse] -= 1
    best, worst = max(net, key=lambda k: (net[k], -k)), min(net, key=lambda k: (net[k], k))
    return next((pair for pair in ranking.pairs if (pair.better, pair.worse) == (best, worst)), None)


def _sources(records: Sequence[Judged]) -> NDArray[np.str_]:
    return np.asarray([record.source for record in records], dtype=np.str_)


def _groups(records: Sequence[Judged]) -> NDArray[np.str_]:
    return np.asarray([record.group for record in records], dtype=np.str_)
