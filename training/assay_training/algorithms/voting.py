"""Combine the rankings of many voters into one, by Tideman's ranked pairs, and score rankings by Borda points.

A ballot gives every candidate a rank, 1 for the best; equal ranks are ties. How ties are broken changes results
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


def count_votes(ballots: Sequence[Ballot], ties: BallotTies) -> dict[tuple[str, str], int]:
    """Return how many voters place the first candidate above the second, for every ordered pair of candidates.

    Args:
        ballots: ballots over the same candidates.
        ties: rule for equal ranks. "stored order" votes for the candidate that the ballot names first; "no vote"
            counts for neither.
    """
    votes = {pair: 0 for a, b in combinations(ballots[0], 2) for pair in ((a, b), (b, a))}
    for ballot in ballots:
        for first, second in combinations(ballot, 2):
            if ballot[first] < ballot[second] or (ballot[first] == ballot[second] and ties == "stored order"):
                votes[first, second] += 1
            elif ballot[first] > ballot[second]:
                votes[second, first] += 1
    return votes


def rank_by_pairs(ballots: Sequence[Ballot], ballot_ties: BallotTies, majority_ties: MajorityTies) -> Ranking:
    """Rank the candidates by ranked pairs ([Tideman]): majorities are locked in, the largest first.

    A majority that would close a cycle with those already locked in is skipped. Majorities with equal votes are locked
    in by their opposition, the smaller first, then by name (or by name reversed).

    Args:
        ballots: ballots over the same candidates.
        ballot_ties: rule for equal ranks on a ballot, as in `count_votes`.
        majority_ties: rule for two candidates with equally many votes: the first by name wins, the last, or neither.

    Returns:
        Candidates from the best to the worst, ordered by the number that they beat minus the number that beat them.
        Without ties this is the order of the locked majorities. Candidates that are equal share a place, sorted by
        name.
    """
    votes = count_votes(ballots, ballot_ties)
    names = sorted(ballots[0], reverse=majority_ties == "by name, reversed")
    majorities = [m for a, b in combinations(names, 2) if (m := _find_majority(a, b, votes, majority_ties))]
    beats: dict[str, set[str]] = {candidate: set() for candidate in names}
    for winner, loser in sorted(majorities, key=lambda m: (-votes[m], votes[m[1], m[0]], *map(names.index, m))):
        if winner in beats[loser]:
            continue
        # Keep `beats` transitively closed, so that the test above sees cycles of any length.
        below = {loser} | beats[loser]
        for candidate, beaten in beats.items():
            if candidate == winner or winner in beaten:
                beaten.update(below)
    # Counting instead of sorting the locked graph gives a defined order for candidates without a majority, too.
    net = {c: len(beats[c]) - sum(c in beaten for beaten in beats.values()) for c in beats}
    return tuple(tuple(sorted(c for c in net if net[c] == place)) for place in sorted(set(net.values()), reverse=True))


def compute_borda_points(ranking: Ranking) -> dict[str, float]:
    """Return the Borda points of a ranking of K candidates: 1 for the best, (K − 1) / K for the second, 1 / K last.

    Tied candidates share the points of their places. For K = 3 these are the 1, 0.67 and 0.33 of [CRS] chapter 7.
    """
    count = sum(len(tied) for tied in ranking)
    points: dict[str, float] = {}
    place = 0
    for tied in ranking:
        shared = sum(count - place - i for i in range(len(tied))) / (len(tied) * count)
        points |= dict.fromkeys(tied, shared)
        place += len(tied)
    return points


def convert_to_ranking(ballot: Ballot) -> Ranking:
    """Return a ballot as a ranking; candidates of equal rank share a place, sorted by name."""
    ranks = sorted(set(ballot.values()))
    return tuple(tuple(sorted(c for c in ballot if ballot[c] == rank)) for rank in ranks)


def _find_majority(
    first: str, second: str, votes: Mapping[tuple[str, str], int], ties: MajorityTies
) -> tuple[str, str] | None:
    """Return winner and loser of two candidates, or None; `first` wins a tie unless the rule is "no majority"."""
    difference = votes[first, second] - votes[second, first]
    if difference == 0 and ties == "no majority":
        return None
    return (first, second) if difference >= 0 else (second, first)
