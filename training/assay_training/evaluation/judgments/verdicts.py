"""What a judge said of two outputs: the rows of AlpacaEval."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from assay_training.evaluation import grouping
from assay_training.evaluation.judgments.names import OneFileEach, names_of
from assay_training.records.record import RecordError
from assay_training.records.rows import Row, rows_of_any
from assay_training.records.sources import Read

NO_VERDICT = "no verdict"
_MISSING = frozenset({"nan", "none", "null", "<na>"})  # what Python and pandas write into text for a missing value


@dataclass(frozen=True, slots=True)
class Contest:
    """Two models' outputs to one instruction.

    Attributes:
        where: file and row.
        instruction: what both were asked.
        first, second: the models.
        outputs: theirs, in that order.
    """

    where: str
    instruction: str
    first: str
    second: str
    outputs: tuple[str, str]

    def judged(self, score: float) -> "Verdict":
        """Return the verdict on it; `score` is how much of the win is the first's."""
        return Verdict(self.where, self.instruction, self.first, self.second, self.outputs, score)


@dataclass(frozen=True, slots=True)
class Verdict(Contest):
    """Which of the two is better.

    Attributes:
        score: how much of the win is the first's: 1, 0, or 0.5 for a draw.
        groups: that it is in, besides all.
    """

    score: float
    groups: tuple[str, ...] = ()

    def turned(self) -> "Verdict":
        """The same, the other way round."""
        outputs = (self.outputs[1], self.outputs[0])
        return Verdict(self.where, self.instruction, self.second, self.first, outputs, 1 - self.score, self.groups)

    def row(self) -> dict[str, str | float]:
        """As AlpacaEval writes it."""
        return {
            "instruction": self.instruction,
            "output_1": self.outputs[1],
            "generator_1": self.second,
            "output_2": self.outputs[0],
            "generator_2": self.first,
            "preference": 1 + self.score,
        }


def read_verdicts(paths: Sequence[Path], reference: str | None, by: Sequence[str] = ()) -> Read[Verdict]:
    """Return the verdicts of files, for the model of `output_2` (in AlpacaEval the one that is evaluated) first.

    Rows whose `preference` is missing, null, NaN or blank are left out and counted, as AlpacaEval does with answers of
    the judge that it could not parse (`describe_head2head` in alpaca_eval 0.6.6); such a row may lack an output, too.

    Args:
        paths: of JSON lists or JSON lines, gzipped or not: `instruction`, `output_1`, `output_2`, `preference` (1 or 2
            for the better output, 1.5 or 0 for a draw, between 1 and 2 for a share), and the models' names.
        reference: the model of `output_1` where rows do not name it.
        by: fields of the rows that are groups.

    Raises:
        RecordError: naming file, row and field; or a file has rows, but no verdict.
    """
    found: list[tuple[Row, Verdict]] = []
    left_out: Counter[str] = Counter()
    for path, contests in _contests(paths, reference, judged=True):
        judged = [(row, contest.judged(score)) for row, contest in contests if (score := _score(row)) is not None]
        if contests and not judged:
            raise RecordError(
                f"{path}: none of its {len(contests)} rows has a verdict: 'preference' is missing, null or NaN in "
                "every one; `assay evaluate judge` has a language model judge them"
            )
        if len(judged) < len(contests):
            left_out[f"{path.name}: {NO_VERDICT}"] += len(contests) - len(judged)
        found += judged
    for field in by:
        grouping.require((row for row, _ in found), field)
    groups = grouping.names([{field: grouping.group(row, field) for field in by} for row, _ in found])
    return Read([replace(one, groups=of) for (_, one), of in zip(found, groups, strict=True)], left_out, {})


def read_contests(paths: Sequence[Path], reference: str | None) -> list[Contest]:
    """Return the outputs of files that are still to be judged: the same rows without `preference`.

    Raises:
        RecordError: naming file, row and field.
    """
    return [contest for _, contests in _contests(paths, reference) for _, contest in contests]


def _contests(
    paths: Sequence[Path], reference: str | None, *, judged: bool = False
) -> Iterator[tuple[Path, list[tuple[Row, Contest]]]]:
    """Yield the contests of each file; of `judged` ones those without a verdict may lack an output, which is empty."""
    one_each = OneFileEach()
    for path in paths:
        found = []
        for row in rows_of_any(path):
            names = names_of(row, path, reference)
            one_each.check(row, path, names)
            if not {"output_1", "output_2"} & row.fields.keys():
                alone = "field 'output' is that of one model" if "output" in row.fields else "no output is there"
                raise row.error(f"{alone}; a row of AlpacaEval has those of two models, 'output_1' and 'output_2'")
            unread = judged and _score(row) is None
            outputs = (_output(row, "output_2", unread=unread), _output(row, "output_1", unread=unread))
            contest = Contest(row.where, row.text("instruction"), names.evaluated, names.reference, outputs)
            found.append((row, contest))
        yield path, found


def _output(row: Row, name: str, *, unread: bool) -> str:
    return "" if unread and grouping.missing(row.fields.get(name)) else row.get(name, str)


def _score(row: Row) -> float | None:
    """Return the share of the win that is `output_2`'s; `None` where the row has no verdict."""
    given = row.fields.get("preference")
    if grouping.missing(given) or (isinstance(given, str) and given.strip().casefold() in _MISSING):
        return None
    try:
        preference = float(given) if isinstance(given, str | int | float) and not isinstance(given, bool) else None
    except (ValueError, OverflowError):
        preference = None
    if preference == 0:
        return 0.5
    if preference is None or not 1 <= preference <= 2:
        raise row.error(f"field 'preference' is {given!r}, not 1, 2, a share between them, or 0 for a draw")
    return preference - 1
