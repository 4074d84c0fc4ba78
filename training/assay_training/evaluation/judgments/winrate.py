"""Compute win rates of every two models that were compared, with intervals and the effect of output length."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from assay_training.algorithms.proportions import compute_length_controlled, compute_longer_wins, compute_win_rate
from assay_training.evaluation import plots
from assay_training.evaluation.judgments.instructions import strip_markup
from assay_training.evaluation.judgments.verdicts import Verdict
from assay_training.evaluation.table import (
    Picture,
    Table,
    integer_column,
    interval_column,
    number_column,
    text_column,
)
from assay_training.records.record import RecordError
from assay_training.records.sources import Read

COLUMNS = (
    text_column("row", "row"),
    text_column("column", "column"),
    text_column("group", "group", missing="all"),
    integer_column("n", "n"),
    number_column("row wins", "win_rate", ".1%"),
    interval_column("95 %", "wilson95", ".0%"),
    number_column("SE", "se", ".2%", detail=True),
    interval_column("normal 95 %", "ci95", ".1%", detail=True),
    number_column("p", "p_value", ".4f"),
    number_column("longer wins", "longer_wins", ".0%"),
    number_column("at equal length", "length_controlled", ".1%"),
    interval_column("95 %", "length_controlled95", ".0%"),
)
NOTES = (
    "Row wins: the share of instructions on which the row's model wins; a draw is half a win.",
    "95 %: Wilson's interval over instructions. p: two-sided binomial test of wins against losses.",
    "Longer wins: how often the output with more characters is preferred, whichever model wrote it.",
    "At equal length: the win rate of a logistic fit at a length difference of 0, as in AlpacaEval 2's length term.",
)


def tabulate_win_rates(verdicts: Read[Verdict], *, ddof: int = 1) -> Table:
    """Return a table with a record for every two models, in both directions, over all instructions and by group.

    A record over all instructions has the `group` `None`. The printed lines show one direction of each pair of models.

    Args:
        verdicts: verdicts on any number of pairs of models, with their groups and the count of dropped rows.
        ddof: delta degrees of freedom of the standard error: 1 divides by n - 1, 0 by n.
    """
    compared: dict[tuple[str, str], dict[str | None, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
    judged: Counter[tuple[frozenset[str], str]] = Counter()
    for verdict in verdicts.records:
        # Unordered and without markup: a verdict counts as repeated in either direction and from any file.
        judged[frozenset((verdict.first, verdict.second)), strip_markup(verdict.instruction)] += 1
        # Both directions, so that a reader of the JSON finds a model as `row` whichever output it wrote.
        for either in (verdict, verdict.swap()):
            for name in (None, *verdict.groups):
                compared[either.first, either.second][name].append(either)
    given_directions = {(verdict.first, verdict.second) for verdict in verdicts.records}
    dropped = {"no_verdict": verdicts.dropped.total()}
    records = [
        _build_record(pair, name, members, ddof) | dropped
        for pair, by_group in compared.items()
        for name, members in sorted(by_group.items(), key=lambda item: (item[0] is not None, item[0] or ""))
    ]
    repeated = judged.total() - len(judged)
    again = (
        (f"{repeated} verdicts repeat an instruction on which the same two models were already judged.",)
        if repeated
        else ()
    )
    lines = tuple(record for record in records if (record["row"], record["column"]) in given_directions)
    # A group of few verdicts would make the plot unreadable; the table has them.
    overall = [record for record in lines if record["group"] is None]
    rows = [(f"{r['row']} over {r['column']}", r["win_rate"], *r["wilson95"]) for r in overall]
    picture = Picture("Win rates with Wilson's 95 % intervals.", lambda: plots.draw_intervals(rows, "win rate", 0.5))
    notes = (*NOTES, *again, *verdicts.report_lines())
    return Table("Win rates", tuple(records), COLUMNS, lines, notes, (picture,))


def assign_groups(verdict: Verdict, groups: Mapping[str, tuple[str, ...]]) -> Verdict:
    """Return a verdict with the groups of its instruction.

    Args:
        verdict: verdict to assign.
        groups: names of the groups by instruction without chat markup.

    Raises:
        RecordError: the instruction is not among `groups`.
    """
    key = strip_markup(verdict.instruction)
    if key not in groups:
        raise RecordError(f"{verdict.where}: field 'instruction': the file of groups does not contain {key[:60]!r}")
    return replace(verdict, groups=groups[key])


def _build_record(pair: tuple[str, str], group: str | None, verdicts: Sequence[Verdict], ddof: int) -> dict[str, Any]:
    scores = np.array([verdict.score for verdict in verdicts])
    # In characters, since models count tokens differently.
    extra_length = np.array([float(len(verdict.outputs[0]) - len(verdict.outputs[1])) for verdict in verdicts])
    rate = compute_win_rate(scores, ddof=ddof)
    equal = compute_length_controlled(scores, extra_length)
    return {
        "row": pair[0],
        "column": pair[1],
        "group": group,
        "win_rate": rate.value,
        "n": rate.n,
        "se": rate.se,
        "ci95": None if rate.normal is None else list(rate.normal),
        "wilson95": list(rate.wilson),
        "p_value": rate.p_value,
        "wins": rate.wins,
        "draws": rate.draws,
        "losses": rate.losses,
        "longer_wins": compute_longer_wins(scores, extra_length),
        "length_controlled": None if equal is None else equal[0],
        "length_controlled95": None if equal is None else list(equal[1]),
    }
