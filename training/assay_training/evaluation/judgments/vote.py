"""Ballots of several groups of voters to points, under every rule for ties."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from assay_training.algorithms.voting import (
    BALLOT_TIES,
    MAJORITY_TIES,
    Ballot,
    BallotTies,
    MajorityTies,
    as_ranking,
    borda,
    ranked_pairs,
)
from assay_training.evaluation import plots
from assay_training.evaluation.judgments.ballots import Poll
from assay_training.evaluation.table import Picture, Table, number, text
from assay_training.records.record import RecordError

COLUMNS = (
    text("method", "method"),
    text("ballot ties", "ballot_ties"),
    text("majority ties", "majority_ties"),
    text("model", "model"),
    text("group", "group", missing="mean"),
    number("points", "points", ".3f"),
    number("std", "std", ".3f"),
)
NOTES = (
    "Points: 1 for the first of K, (K - 1)/K for the second, 1/K for the last; mean over prompts, then over groups.",
    "std: over groups, of the population. The first rule is that of [CRS]; what another turns round rests on the rule.",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """How the ballots on a prompt become points.

    Attributes:
        ballot_ties, majority_ties: of ranked pairs; None for Borda points of every ballot, averaged, ties shared.
    """

    ballot_ties: BallotTies | None
    majority_ties: MajorityTies | None

    def points(self, ballots: Sequence[Ballot]) -> dict[str, float]:
        """By model."""
        if self.ballot_ties is None or self.majority_ties is None:
            return _means([borda(as_ranking(ballot)) for ballot in ballots])
        return borda(ranked_pairs(ballots, self.ballot_ties, self.majority_ties))


RULES = (*(Rule(*ties) for ties in product(BALLOT_TIES, MAJORITY_TIES)), Rule(None, None))


def vote(polls: Sequence[Poll]) -> Table:
    """A record for every rule, model and group of voters, and one for the mean over the groups (`group` None).

    Raises:
        RecordError: a prompt has other models than the others; no mean over prompts is meant then.
    """
    voted = [poll for poll in polls if poll.ballots]
    models = sorted(voted[0].ballots[0])
    for poll in voted:
        if sorted(poll.ballots[0]) != models:
            raise RecordError(f"{poll.group}: {poll.prompt[:60]!r} is not on {', '.join(models)}, like the others")
    records = [record for rule in RULES for record in _records(rule, voted, models)]
    first = len(records) // len(RULES)
    lines = (*records[:first], *(record for record in records[first:] if record["group"] is None))
    notes = (*NOTES, *_without([poll for poll in polls if not poll.ballots], len(polls)))
    return Table("Votes", tuple(records), COLUMNS, lines, notes, (_picture(records, models),))


def _without(silent: Sequence[Poll], count: int) -> list[str]:
    """A note on prompts that nobody voted on, if there are any."""
    which = "; ".join(f"{poll.group}: {poll.prompt[:60]!r}" for poll in silent)
    return [f"{len(silent)} of {count} prompts have no ballots and are left out: {which}."] if silent else []


def _records(rule: Rule, polls: Sequence[Poll], models: Sequence[str]) -> list[dict[str, Any]]:
    groups = list(dict.fromkeys(poll.group for poll in polls))
    points = {group: _means([rule.points(poll.ballots) for poll in polls if poll.group == group]) for group in groups}
    records = []
    for model in models:
        seen = [points[group][model] for group in groups]
        rows: list[tuple[str | None, float, float | None]] = [(group, points[group][model], None) for group in groups]
        rows.append((None, statistics.fmean(seen), statistics.pstdev(seen)))
        records += [
            {
                "method": "Borda" if rule.ballot_ties is None else "ranked pairs",
                "ballot_ties": rule.ballot_ties,
                "majority_ties": rule.majority_ties,
                "model": model,
                "group": group,
                "points": mean,
                "std": std,
            }
            for group, mean, std in rows
        ]
    return records


def _picture(records: Sequence[dict[str, Any]], models: Sequence[str]) -> Picture:
    means = [record for record in records if record["group"] is None]
    points = {model: [record["points"] for record in means if record["model"] == model] for model in models}
    names = [f"{rule.ballot_ties}; {rule.majority_ties}" if rule.ballot_ties else "Borda of ballots" for rule in RULES]
    return Picture("Points under every rule for ties.", lambda: plots.dots(points, names, "mean points"))


def _means(points: Sequence[dict[str, float]]) -> dict[str, float]:
    return {model: statistics.fmean(of[model] for of in points) for model in points[0]}
