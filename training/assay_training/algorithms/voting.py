"""Rankings of many voters into one: Tideman's ranked pairs, and Borda points.

A ballot gives every candidate a rank, 1 for the best; equal ranks are ties. How ties are broken decides results
([CRS] table 17), so every function takes its rule by name.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, get_args

Ballot = Mapping[str, float]
BallotTies = Literal["stored order", "no vote"]
MajorityTies = Literal["by name", "by name, reversed", "no majority"]
Ranking = tuple[tuple[str, ...], ...]

BALLOT_TIES: tuple[BallotTies, ...] = get_args(BallotTies)
MAJORITY_TIES: tuple[MajorityTies, ...] = get_args(MajorityTies)


def support(ballots: Sequence[Ballot], ties: BallotTies) -> dict[tuple[str, str], int]:
    """How many voters place the first of two candidates above the second, for every two in both orders.

    Args:
        ballots: over the same candidates.
        ties: "stored order" places the one above that the ballot names first; with "no vote" neither counts.
    """
    votes = {pair: 0 for a, b in combinations(ballots[0], 2) for pair in ((a, b), (b, a))}
    for ballot in ballots:
        for first, second in combinations(ballot, 2):
            if ballot[first] < ballot[second] or (ballot[first] == ballot[second] and ties == "stored order"):
                votes[first, second] += 1
            elif ballot[first] > ballot[second]:
                votes[second, first] += 1
    return votes


def ranked_pairs(ballots: Sequence[Ballot], ballot_ties: BallotTies, majority_ties: MajorityTies) -> Ranking:
    """Tideman's method: majorities are locked in, the largest first, unless they close a circle.

    Majorities with equal votes are locked in by their opposition, the smaller first, then by name (or name reversed).

    Args:
        ballots: over the same candidates.
        ballot_ties: of equal ranks on a ballot.
        majority_ties: of two candidates with equal support: the first by name wins, the last, or neither.

    Returns:
        Candidates from the best to the worst, by how many they beat less how many beat them, which says the same of a
        ranking without ties; those that nothing tells apart together, by name.
    """
    votes = support(ballots, ballot_ties)
    names = sorted(ballots[0], reverse=majority_ties == "by name, reversed")
    majorities = [m for a, b in combinations(names, 2) if (m := _majority(a, b, votes, majority_ties))]
    beats: dict[str, set[str]] = {candidate: set() for candidate in names}
    for winner, loser in sorted(majorities, key=lambda m: (-votes[m], votes[m[1], m[0]], *map(names.index, m))):
        if winner in beats[loser]:
            continue
        below = {loser} | beats[loser]
        for candidate, beaten in beats.items():
            if candidate == winner or winner in beaten:
                beaten.update(below)
    net = {c: len(beats[c]) - sum(c in beaten for beaten in beats.values()) for c in beats}
    return tuple(tuple(sorted(c for c in net if net[c] == place)) for place in sorted(set(net.values()), reverse=True))


def borda(ranking: Ranking) -> dict[str, float]:
    """Points of a ranking of K: 1 for the best, (K - 1) / K for the second, 1 / K for the last; tied ones share theirs.

    The thesis' 1, 0.67 and 0.33 ([CRS] chapter 7).
    """
    count = sum(len(tied) for tied in ranking)
    points: dict[str, float] = {}
    place = 0
    for tied in ranking:
        shared = sum(count - place - i for i in range(len(tied))) / (len(tied) * count)
        points |= dict.fromkeys(tied, shared)
        place += len(tied)
    return points


def as_ranking(ballot: Ballot) -> Ranking:
    """A ballot as a ranking."""
    ranks = sorted(set(ballot.values()))
    return tuple(tuple(sorted(c for c in ballot if ballot[c] == rank)) for rank in ranks)


def _majority(
    first: str, second: str, votes: Mapping[tuple[str, str], int], ties: MajorityTies
) -> tuple[str, str] | None:
    """Winner and loser of two candidates, of which `first` wins a tie, if anyone does."""
    difference = votes[first, second] - votes[second, first]
    if difference == 0 and ties == "no majority":
        return None
    return (first, second) if difference >= 0 else (second, first)
