"""Arrange the logits of several contenders in rows: pairs and ties of rankings, or labelled items.

A contender is a model or a baseline that is compared with it, such as the length of the completion.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from assay_training.algorithms.statistics import Floats
from assay_training.records.record import Judged, Labelled, Pair, Ranking

Logits = Sequence[Sequence[float]]  # by record and completion


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of pairs, of ties or of labelled items, as arrays of equal length `[n]`.

    Attributes:
        sources: name of each row's source.
        groups: group of each row; rows of one group are not independent.
        values: values by contender, fp64 `[n]`: margins of pairs (preference), or outputs for items (absolute).
        labels: label of each item, fp64 `[n]`; `None` for preference.
        gaps: strength of each preference, fp64 `[n]`, NaN where the source gives none; `None` for absolute.
        extremes: whether a pair is its ranking's best against its worst, bool `[n]`; `None` for absolute.
        firsts: whether the better completion of a pair stands before the other, bool `[n]`; `None` for absolute.
        ties: margins of completions judged equal, as rows of their own; `None` for absolute, and after `where`.
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
        """Build the rows of records, with every contender's values.

        Args:
            records: rankings, or labelled items.
            contenders: logits by contender, `[record][completion]`; a labelled item has one completion.
        """
        # The records of a run are all of one kind, which its objective decides.
        if all(isinstance(record, Labelled) for record in records):
            labels = [record.label for record in records if isinstance(record, Labelled)]
            values = {name: np.asarray([row[0] for row in logits]) for name, logits in contenders.items()}
            return cls(_get_sources(records), _get_groups(records), values, labels=np.asarray(labels))
        pairs = [(i, pair) for i, record in _iterate_rankings(records) for pair in record.pairs]
        ties = [(i, Pair(*tie)) for i, record in _iterate_rankings(records) for tie in record.ties]
        best = {i: _find_extreme_pair(record) for i, record in _iterate_rankings(records)}
        judged, tied = _compute_margins(records, contenders, pairs), _compute_margins(records, contenders, ties)
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
        """Return the sources of the rows and of their ties, as a source may have nothing but ties."""
        return {str(source) for source in np.unique(self.sources)} | (self.ties.all_sources if self.ties else set())

    def of_sources(self, sources: Collection[str]) -> "Rows":
        """Return the rows of some sources, with their ties."""
        rows = self.where(np.isin(self.sources, list(sources)))
        return rows if self.ties is None else replace(rows, ties=self.ties.of_sources(sources))

    def where(self, mask: NDArray[np.bool_]) -> "Rows":
        """Return the rows where a mask is true, without ties: a mask of pairs does not say which ties to keep.

        Args:
            mask: mask of the rows, bool `[n]`.
        """
        return Rows(
            self.sources[mask],
            self.groups[mask],
            {name: column[mask] for name, column in self.values.items()},
            labels=None if self.labels is None else self.labels[mask],
            gaps=None if self.gaps is None else self.gaps[mask],
            extremes=None if self.extremes is None else self.extremes[mask],
            firsts=None if self.firsts is None else self.firsts[mask],
        )


def _compute_margins(records: Sequence[Judged], contenders: dict[str, Logits], pairs: list[tuple[int, Pair]]) -> Rows:
    """Return rows of margins: the score of each pair's better completion minus that of the worse one."""
    paired = [records[i] for i, _ in pairs]
    values = {
        name: np.asarray([logits[i][pair.better] - logits[i][pair.worse] for i, pair in pairs], dtype=np.float64)
        for name, logits in contenders.items()
    }
    return Rows(_get_sources(paired), _get_groups(paired), values)


def _iterate_rankings(records: Sequence[Judged]) -> Iterator[tuple[int, Ranking]]:
    for i, record in enumerate(records):
        assert isinstance(record, Ranking)
        yield i, record


def _find_extreme_pair(ranking: Ranking) -> Pair | None:
    """Return the pair of the completions with the most and the fewest net wins, or `None` if it was not judged.

    Net wins are the pairs in which a completion is better, minus those in which it is worse.
    """
    net = Counter({k: 0 for k in range(len(ranking.completions))})
    for pair in ranking.pairs:
        net[pair.better] += 1
        net[pair.worse] -= 1
    # Equal counts are decided by the place, so that the result does not depend on the order of the pairs.
    best, worst = max(net, key=lambda k: (net[k], -k)), min(net, key=lambda k: (net[k], k))
    return next((pair for pair in ranking.pairs if (pair.better, pair.worse) == (best, worst)), None)


def _get_sources(records: Sequence[Judged]) -> NDArray[np.str_]:
    return np.asarray([record.source for record in records], dtype=np.str_)


def _get_groups(records: Sequence[Judged]) -> NDArray[np.str_]:
    return np.asarray([record.group for record in records], dtype=np.str_)
