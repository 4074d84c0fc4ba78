"""Turn the ballots of several groups of voters into points, under every rule for ties."""

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
    compute_borda_points,
    convert_to_ranking,
    rank_by_pairs,
)
from assay_training.evaluation import plots
from assay_training.evaluation.judgments.ballots import Poll
from assay_training.evaluation.table import Picture, Table, number_column, text_column
from assay_training.records.record import RecordError

COLUMNS = (
    text_column("method", "method"),
    text_column("ballot ties", "ballot_ties"),
    text_column("majority ties", "majority_ties"),
    text_column("model", "model"),
    text_column("group", "group", missing="mean"),
    number_column("points", "points", ".3f"),
    number_column("std", "std", ".3f"),
)
NOTES = (
    "Points: 1 for the first of K models, (K - 1)/K for the second, 1/K for the last. Means over prompts, then groups.",
    "std: population standard deviation over the groups of voters.",
    "The first rule is that of [CRS]. If another rule changes the order of two models, that order depends on ties.",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule by which the ballots on a prompt become points.

    Attributes:
        ballot_ties, majority_ties: rules for ties of ranked pairs [Tideman]. Both are `None` for the mean of the Borda
            points of every ballot, where tied models share their points.
    """

    ballot_ties: BallotTies | None
    majority_ties: MajorityTies | None

    def compute_points(self, ballots: Sequence[Ballot]) -> dict[str, float]:
        """Return the points by model, each in 0..1."""
        if self.ballot_ties is None or self.majority_ties is None:
            return _average([compute_borda_points(convert_to_ranking(ballot)) for ballot in ballots])
        return compute_borda_points(rank_by_pairs(ballots, self.ballot_ties, self.majority_ties))


# The first of these is the rule of [CRS]; the printed table shows its groups, and only the means of the others.
RULES = (*(Rule(*ties) for ties in product(BALLOT_TIES, MAJORITY_TIES)), Rule(None, None))


def tabulate_votes(polls: Sequence[Poll]) -> Table:
    """Return a table with a record for every rule, model and group of voters, and for the mean over the groups.

    Args:
        polls: polls of all groups; those without ballots are dropped and counted in a note.

    Raises:
        RecordError: a prompt has different models from the others, so that a mean over prompts would mix models.
    """
    voted = [poll for poll in polls if poll.ballots]
    models = sorted(voted[0].ballots[0])
    for poll in voted:
        if sorted(poll.ballots[0]) != models:
            raise RecordError(
                f"{poll.group}: the prompt {poll.prompt[:60]!r} has other models than {', '.join(models)}; every "
                "prompt needs a completion of each model"
            )
    records = [record for rule in RULES for record in _build_records(rule, voted, models)]
    # The groups under the other rules are in the JSON only: seven rules would make the printed table too long.
    first = len(records) // len(RULES)
    lines = (*records[:first], *(record for record in records[first:] if record["group"] is None))
    notes = (*NOTES, *_describe_dropped([poll for poll in polls if not poll.ballots], len(polls)))
    return Table("Votes", tuple(records), COLUMNS, lines, notes, (_build_picture(records, models),))


def _describe_dropped(silent: Sequence[Poll], count: int) -> list[str]:
    """Return a note on the prompts without ballots, if there are any."""
    which = "; ".join(f"{poll.group}: {poll.prompt[:60]!r}" for poll in silent)
    return [f"{len(silent)} of {count} prompts have no ballots and are dropped: {which}."] if silent else []


def _build_records(rule: Rule, polls: Sequence[Poll], models: Sequence[str]) -> list[dict[str, Any]]:
    groups = list(dict.fromkeys(poll.group for poll in polls))
    points = {
        group: _average([rule.compute_points(poll.ballots) for poll in polls if poll.group == group])
        for group in groups
    }
    records = []
    for model in models:
        seen = [points[group][model] for group in groups]
        rows: list[tuple[str | None, float, float | None]] = [(group, points[group][model], None) for group in groups]
        # The groups are all the voters there are, not a sample of groups: hence the population's deviation.
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


def _build_picture(records: Sequence[dict[str, Any]], models: Sequence[str]) -> Picture:
    means = [record for record in records if record["group"] is None]
    points = {model: [record["points"] for record in means if record["model"] == model] for model in models}
    names = [f"{rule.ballot_ties}; {rule.majority_ties}" if rule.ballot_ties else "Borda of ballots" for rule in RULES]
    return Picture("Mean points under every rule for ties.", lambda: plots.draw_dots(points, names, "mean points"))


def _average(points: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of several dictionaries of points, model by model."""
    return {model: statistics.fmean(by_model[model] for by_model in points) for model in points[0]}
