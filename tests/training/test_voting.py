"""Ranked pairs and Borda points: the seeds' vectors, circles, and every rule for ties."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_training.algorithms.voting import (
    BALLOT_TIES,
    MAJORITY_TIES,
    Ballot,
    BallotTies,
    MajorityTies,
    compute_borda_points,
    convert_to_ranking,
    count_votes,
    rank_by_pairs,
)


def ballot(order: str) -> Ballot:
    """`"wxzy"`: w first."""
    return {candidate: float(place) for place, candidate in enumerate(order, start=1)}


def winners(ballots: list[Ballot], majority: MajorityTies = "by name", tied: BallotTies = "stored order") -> str:
    return " ".join("=".join(group) for group in rank_by_pairs(ballots, tied, majority))


def test_the_published_example() -> None:
    """[CRS] table 9: r2 > r1 > r3 once, r3 > r1 > r2 twice."""
    first = {"r1": 2.0, "r2": 1.0, "r3": 3.0}
    other = {"r1": 2.0, "r2": 3.0, "r3": 1.0}
    assert winners([first, other, other]) == "r3 r1 r2"


def test_the_second_vector_of_the_authors_code() -> None:
    """A vector of the code of [CRS]: fifteen voters with a circle."""
    counts = {"wxzy": 3, "wyxz": 2, "xyzw": 4, "xzwy": 5, "ywxz": 1}
    ballots = [ballot(order) for order, count in counts.items() for _ in range(count)]
    assert count_votes(ballots, "no vote")["x", "z"] == 15
    assert winners(ballots) == "x z w y"


def test_a_cycle_is_broken_at_its_weakest_majority() -> None:
    """Rock beats scissors 7:2, scissors paper 6:3, paper rock 5:4."""
    ballots = [*[ballot("rsp")] * 4, *[ballot("spr")] * 2, *[ballot("prs")] * 3]
    votes = count_votes(ballots, "no vote")
    assert (votes["r", "s"], votes["s", "p"], votes["p", "r"]) == (7, 6, 5)
    assert winners(ballots) == "r s p"


def test_locked_majorities_are_transitive() -> None:
    """a > b and b > c say a > c, though c beats a directly by the weakest majority; a later edge must know."""
    ballots = [*[ballot("abc")] * 4, *[ballot("bca")] * 3, *[ballot("cab")] * 2]
    assert winners(ballots) == "a b c"


def test_ties_follow_the_rule_that_is_named() -> None:
    tied: list[Ballot] = [{"b": 1.0, "a": 1.0}]
    assert winners(tied) == "b a"  # as the ballot has it
    assert [winners(tied, rule, "no vote") for rule in MAJORITY_TIES] == ["a b", "b a", "a=b"]


def test_one_that_ties_with_everyone_stands_in_the_middle() -> None:
    """Of abcd and dabc: d is level with all, and so it is when both are turned round."""
    assert winners([ballot("abcd"), ballot("dabc")], "no majority") == "a b=d c"
    assert winners([ballot("dcba"), ballot("cbad")], "no majority") == "c b=d a"
    assert winners([ballot("abcd"), ballot("dcba")], "no majority") == "a=b=c=d"


def test_points_are_those_of_the_source() -> None:
    assert compute_borda_points((("a",), ("b",), ("c",))) == pytest.approx({"a": 1, "b": 2 / 3, "c": 1 / 3})
    assert compute_borda_points((("a", "b"), ("c",))) == pytest.approx({"a": 5 / 6, "b": 5 / 6, "c": 1 / 3})
    assert compute_borda_points(convert_to_ranking({"a": 2, "b": 1, "c": 2})) == pytest.approx(
        {"b": 1, "a": 0.5, "c": 0.5}
    )


BALLOTS = st.lists(st.tuples(*[st.integers(1, 4)] * 4), min_size=1, max_size=7).map(
    lambda rows: [dict(zip("wxyz", map(float, row), strict=True)) for row in rows]
)


@given(BALLOTS, st.sampled_from(BALLOT_TIES), st.sampled_from(MAJORITY_TIES))
def test_everyone_is_ranked_once_and_a_condorcet_winner_first(
    ballots: list[Ballot], tied: BallotTies, majority: MajorityTies
) -> None:
    ranking = rank_by_pairs(ballots, tied, majority)
    assert sorted(c for group in ranking for c in group) == list("wxyz")
    votes = count_votes(ballots, tied)
    for candidate in "wxyz":
        if all(votes[candidate, other] > votes[other, candidate] for other in "wxyz" if other != candidate):
            assert ranking[0] == (candidate,)
    assert sum(compute_borda_points(ranking).values()) == pytest.approx(2.5)


@given(BALLOTS)
def test_without_rules_that_look_at_names_renaming_renames_the_result(ballots: list[Ballot]) -> None:
    """Only where no two majorities tie in strength does the lock-in not look at names either."""
    votes = count_votes(ballots, "no vote")
    strengths = [(votes[a, b], votes[b, a]) for a, b in permutations("wxyz", 2) if votes[a, b] > votes[b, a]]
    if len(set(strengths)) < len(strengths):
        return
    names = dict(zip("wxyz", "zyxw", strict=True))
    renamed = [{names[c]: rank for c, rank in b.items()} for b in ballots]
    expected = [{names[c] for c in group} for group in rank_by_pairs(ballots, "no vote", "no majority")]
    assert [set(group) for group in rank_by_pairs(renamed, "no vote", "no majority")] == expected


@given(BALLOTS)
def test_ballots_turned_round_turn_the_result_round(ballots: list[Ballot]) -> None:
    """Where no two majorities tie in strength, as above, and no vote is a draw's."""
    votes = count_votes(ballots, "no vote")
    strengths = [(votes[a, b], votes[b, a]) for a, b in permutations("wxyz", 2) if votes[a, b] > votes[b, a]]
    if len(set(strengths)) < len(strengths):
        return
    turned = [{candidate: 5 - rank for candidate, rank in b.items()} for b in ballots]
    forth = rank_by_pairs(ballots, "no vote", "no majority")
    assert rank_by_pairs(turned, "no vote", "no majority") == forth[::-1]
