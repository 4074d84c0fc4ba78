"""Win rates of every two models that were compared, with errors, intervals, and what length explains."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from assay_training.algorithms.proportions import length_controlled, longer_wins, win_rate
from assay_training.evaluation import plots
from assay_training.evaluation.judgments.instructions import plain
from assay_training.evaluation.judgments.verdicts import Verdict
from assay_training.evaluation.table import Picture, Table, interval, number, text, whole
from assay_training.records.record import RecordError
from assay_training.records.sources import Read

COLUMNS = (
    text("row", "row"),
    text("column", "column"),
    text("group", "group", missing="all"),
    whole("n", "n"),
    number("row wins", "win_rate", ".1%"),
    interval("95 %", "wilson95", ".0%"),
    number("SE", "se", ".2%", detail=True),
    interval("normal", "ci95", ".1%", detail=True),
    number("p", "p_value", ".4f"),
    number("longer wins", "longer_wins", ".0%"),
    number("at equal length", "length_controlled", ".1%"),
    interval("95 %", "length_controlled95", ".0%"),
)
NOTES = (
    "A draw is half a win. 95 %: Wilson's, over instructions; p: two-sided binomial over wins and losses.",
    "Longer wins: how often the longer output (characters) is preferred, whoever wrote it.",
    "At equal length: the win rate that a logistic fit on the length difference leaves (AlpacaEval 2's length term).",
)


def winrate(verdicts: Read[Verdict], *, ddof: int = 1) -> Table:
    """A record for every two models, in both directions, over all instructions (`group` None) and by group.

    Args:
        verdicts: of any number of pairs of models, with their groups; and the rows that had none.
        ddof: of the standard error, see `proportions.win_rate`.
    """
    compared: dict[tuple[str, str], dict[str | None, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
    judged: Counter[tuple[frozenset[str], str]] = Counter()
    for verdict in verdicts.records:
        judged[frozenset((verdict.first, verdict.second)), plain(verdict.instruction)] += 1
        for either in (verdict, verdict.turned()):
            for name in (None, *verdict.groups):
                compared[either.first, either.second][name].append(either)
    forth = {(verdict.first, verdict.second) for verdict in verdicts.records}
    without = {"no_verdict": verdicts.left_out.total()}
    records = [
        _record(pair, name, of, ddof) | without
        for pair, by_group in compared.items()
        for name, of in sorted(by_group.items(), key=lambda item: (item[0] is not None, item[0] or ""))
    ]
    repeated = judged.total() - len(judged)
    again = (f"{repeated} verdicts are on an instruction that the same two had been judged on.",) if repeated else ()
    lines = tuple(record for record in records if (record["row"], record["column"]) in forth)
    total = [record for record in lines if record["group"] is None]
    rows = [(f"{r['row']} over {r['column']}", r["win_rate"], *r["wilson95"]) for r in total]
    picture = Picture("Win rates with Wilson's intervals.", lambda: plots.intervals(rows, "win rate", 0.5))
    notes = (*NOTES, *again, *verdicts.report_lines())
    return Table("Win rates", tuple(records), COLUMNS, lines, notes, (picture,))


def in_groups(verdict: Verdict, groups: Mapping[str, tuple[str, ...]]) -> Verdict:
    """Return a verdict in the groups of its instruction.

    Raises:
        RecordError: the instruction has none.
    """
    key = plain(verdict.instruction)
    if key not in groups:
        raise RecordError(f"{verdict.where}: field 'instruction': the groups have no {key[:60]!r}")
    return replace(verdict, groups=groups[key])


def _record(pair: tuple[str, str], group: str | None, verdicts: Sequence[Verdict], ddof: int) -> dict[str, Any]:
    scores = np.array([verdict.score for verdict in verdicts])
    longer = np.array([float(len(verdict.outputs[0]) - len(verdict.outputs[1])) for verdict in verdicts])
    rate = win_rate(scores, ddof=ddof)
    equal = length_controlled(scores, longer)
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
        "longer_wins": longer_wins(scores, longer),
        "length_controlled": None if equal is None else equal[0],
        "length_controlled95": None if equal is None else list(equal[1]),
    }
