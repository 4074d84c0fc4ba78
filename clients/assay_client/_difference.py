"""Count what differs between two services whose answers arrive row by row."""

from collections.abc import Sequence
from dataclasses import InitVar, asdict, dataclass, field
from typing import Literal, TypeAlias

from assay_client._answers import check_fingerprint
from assay_client._spread import Spread, Worst, compute_kendall, rank_indices
from assay_client.errors import InvalidInput
from assay_client.provenance import Provenance
from assay_client.types import Score, ScoreFailure, ScoreResult

WORST_ROWS = 10
NO_PICKS = "--max-changed-picks needs rows with `completions`, or with `chosen` and `rejected`"
Shape: TypeAlias = Literal["item", "group", "pair"]
Outcome: TypeAlias = Score | ScoreFailure
Row: TypeAlias = dict[str, object]


@dataclass
class Side:
    """One of the two services: its address, the name that it scored by, and what decided its scores."""

    name: Literal["old", "new"]
    url: str
    model: str | None = None
    provenance: Provenance | None = None
    failed: int = 0

    def learn(self, result: ScoreResult) -> None:
        """Keep who answered; raise FingerprintChanged if it is not who answered before."""
        before = None if self.provenance is None else self.provenance.fingerprint
        check_fingerprint(before, result.fingerprint)
        self.model, self.provenance = result.model, result.provenance

    def describe(self) -> str:
        """Return which service this is, for errors."""
        return f"the {self.name} service, {self.url}"

    def to_json(self) -> Row:
        """Return the service as JSON; `provenance` is null if the file has no rows."""
        provenance = None if self.provenance is None else asdict(self.provenance)
        return {"url": self.url, "model": self.model, "failed": self.failed, "provenance": provenance}


@dataclass
class Groups:
    """The rows with several completions.

    Attributes:
        count: the number of rows.
        changed_picks: the rows whose best completion is another one; of equal scores the first is the best.
        changed_orders: the rows whose ranking is another one.
        taus: the sum of Kendall's tau-b over the rows for which it is defined.
        tau_rows: the number of these rows.
        worst: the rows whose pick changed and where the new service sees most between both picks.
    """

    worst: Worst
    count: int = 0
    changed_picks: int = 0
    changed_orders: int = 0
    taus: float = 0.0
    tau_rows: int = 0

    def to_json(self) -> Row:
        """Return the groups as JSON; `kendall` is null if it is not defined for any row."""
        return {
            "count": self.count,
            "changed_picks": self.changed_picks,
            "changed_orders": self.changed_orders,
            "kendall": self.taus / self.tau_rows if self.tau_rows else None,
            "worst": self.worst.list_rows(),
        }

    def add(self, named: Row, old: Sequence[float], new: Sequence[float]) -> None:
        """Count one row."""
        before, after = rank_indices(old), rank_indices(new)
        self.count += 1
        self.changed_orders += before != after
        if before[0] != after[0]:
            self.changed_picks += 1
            loss = new[after[0]] - new[before[0]]
            self.worst.add(loss, {**named, "old_pick": before[0], "new_pick": after[0], "margin": loss})
        # Not defined where all scores of a row are equal on one side.
        if (tau := compute_kendall(old, new)) is not None:
            self.taus += tau
            self.tau_rows += 1


@dataclass
class Pairs:
    """The rows with a chosen and a rejected completion; a side is right if the chosen one has the higher score.

    Attributes:
        count: the number of pairs.
        old_right: the pairs on which the old service is right.
        new_right: the pairs on which the new service is right.
        flips: the pairs on which only one of them is right.
        worst: the flips with the largest change of the margin.
    """

    worst: Worst
    count: int = 0
    old_right: int = 0
    new_right: int = 0
    flips: int = 0

    def to_json(self) -> Row:
        """Return the pairs as JSON; both accuracies are null if there are none."""
        return {
            "count": self.count,
            "old_accuracy": self.old_right / self.count if self.count else None,
            "new_accuracy": self.new_right / self.count if self.count else None,
            "flips": self.flips,
            "worst": self.worst.list_rows(),
        }

    def add(self, named: Row, old: Sequence[float], new: Sequence[float]) -> None:
        """Count one pair."""
        before, after = old[0] - old[1], new[0] - new[1]
        self.count += 1
        self.old_right += before > 0
        self.new_right += after > 0
        if (before > 0) != (after > 0):
            self.flips += 1
            self.worst.add(abs(after - before), {**named, "old_margin": before, "new_margin": after})


@dataclass
class Difference:
    """What differs between two services on one file.

    Attributes:
        urls: the addresses of both services.
        most: the most examples of each kind.
        sides: both services, the old one first.
        rows: the number of rows.
        failed: the number of rows without a score on at least one side; nothing else counts them.
        scores: the differences of the scores of all completions.
        groups: the rows with several completions.
        pairs: the rows with a chosen and a rejected completion.
        worst: the completions with the largest differences; those without one are skipped.
        failures: the first rows without a score, each with one entry for each side that failed.
        extra: the keys of the input that are not part of a row, which have no effect; empty for a pipe.
    """

    urls: InitVar[tuple[str, str]]
    most: InitVar[int] = WORST_ROWS
    rows: int = 0
    failed: int = 0
    scores: Spread = field(default_factory=Spread)
    sides: tuple[Side, Side] = field(init=False)
    groups: Groups = field(init=False)
    pairs: Pairs = field(init=False)
    worst: Worst = field(init=False)
    failures: list[Row] = field(default_factory=list)
    extra: tuple[str, ...] = ()

    def __post_init__(self, urls: tuple[str, str], most: int) -> None:
        self.sides = Side("old", urls[0]), Side("new", urls[1])
        self.groups, self.pairs, self.worst = Groups(Worst(most)), Pairs(Worst(most)), Worst(most)

    def add(self, shape: Shape, id: object, old: Sequence[Outcome], new: Sequence[Outcome]) -> None:
        """Count one row by what both services answered for its items, in their order."""
        named: Row = {"index": self.rows, **({} if id is None else {"id": id})}
        self.rows += 1
        # Compared as a whole: a pick among the rest of the completions would be another question.
        if self._count_failures(named, (old, new)):
            return
        before, after = ([one.score for one in side if isinstance(one, Score)] for side in (old, new))
        for place, (x, y) in enumerate(zip(before, after, strict=True)):
            self.scores.add(x, y)
            # A single item needs no place to be found again.
            which = {} if shape == "item" else {"completion": place}
            if x != y:
                self.worst.add(abs(y - x), {**named, **which, "old": x, "new": y, "difference": y - x})
        if shape == "group":
            self.groups.add(named, before, after)
        elif shape == "pair":
            self.pairs.add(named, before, after)

    def _count_failures(self, named: Row, outcomes: tuple[Sequence[Outcome], Sequence[Outcome]]) -> bool:
        """Count a row if one of its items has no score on one of the sides, and return whether it has been counted."""
        found, is_shown = False, self.failed < self.worst.most
        for side, answers in zip(self.sides, outcomes, strict=True):
            faults = [(place, one.error) for place, one in enumerate(answers) if isinstance(one, ScoreFailure)]
            side.failed += bool(faults)
            if faults and is_shown:
                place, error = faults[0]
                fault = {"side": side.name, "completion": place, "code": error.code, "message": error.message}
                self.failures.append({**named, **fault})
            found = found or bool(faults)
        self.failed += found
        return found

    def find_breaches(self, max_difference: float | None, max_changed_picks: float | None) -> list[str]:
        """Return a sentence for each limit that is exceeded.

        Args:
            max_difference: the largest magnitude that a difference may have; None does not limit it.
            max_changed_picks: the largest share, 0..1, of groups with another pick and of pairs that flipped.

        Raises:
            InvalidInput: something is limited and the file has no rows, or picks are limited and no row has several
                completions.
        """
        breaches: list[str] = []
        if max_difference is None and max_changed_picks is None:
            return breaches
        if not self.rows:
            raise InvalidInput("the file has no rows, so that no limit can be checked")
        if max_difference is not None and self.scores.largest > max_difference:
            breaches.append(f"the largest difference is {self.scores.largest:g}, more than {max_difference:g}")
        if max_changed_picks is not None:
            if not self.groups.count and not self.pairs.count and not self.failed:
                raise InvalidInput(NO_PICKS)
            for what, changed, count in (
                ("picks", self.groups.changed_picks, self.groups.count),
                ("pairs", self.pairs.flips, self.pairs.count),
            ):
                if count and changed / count > max_changed_picks:
                    breaches.append(f"{changed} of {count} {what} changed, more than a share of {max_changed_picks:g}")
        return breaches

    def to_json(self) -> Row:
        """Return everything as JSON; a statistic that is not defined is null."""
        scores = self.scores
        return {
            "object": "difference",
            **{side.name: side.to_json() for side in self.sides},
            "rows": self.rows,
            "failed": self.failed,
            "failures": self.failures,
            "scores": {
                "count": scores.count,
                "bit_equal": scores.equal,
                "mean": scores.mean if scores.count else None,
                "sd": scores.sd,
                "largest": scores.largest if scores.count else None,
                "spearman": scores.spearman,
                "spearman_is_sampled": scores.is_sampled,
                "worst": self.worst.list_rows(),
            },
            "groups": self.groups.to_json(),
            "pairs": self.pairs.to_json(),
        }
