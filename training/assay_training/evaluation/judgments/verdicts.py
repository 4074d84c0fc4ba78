"""What a judge said of two outputs: the rows of AlpacaEval."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assay_training.records.rows import Row, rows_of_list


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


@dataclass(frozen=True, slots=True)
class Verdict(Contest):
    """Which of the two is better.

    Attributes:
        score: how much of the win is the first's: 1, 0, or 0.5 for a draw.
    """

    score: float

    def turned(self) -> "Verdict":
        """The same, the other way round."""
        outputs = (self.outputs[1], self.outputs[0])
        return Verdict(self.where, self.instruction, self.second, self.first, outputs, 1 - self.score)

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


def read_verdicts(path: Path, reference: str | None) -> Iterator[Verdict]:
    """The verdicts of a file, for the model of `output_2` (in AlpacaEval the one that is evaluated) first.

    Args:
        path: a JSON list, gzipped or not: `instruction`, `output_1`, `output_2`, `preference` (1 or 2 for the better
            output, 1.5 or 0 for a draw, between 1 and 2 for a share), and `generator_1` and `generator_2`, or
            `generator`, the model of `output_2`.
        reference: the model of `output_1` where rows name `generator` alone; else the file's name must (`a_vs_b.json`).

    Raises:
        RecordError: naming file, row and field.
    """
    for row in rows_of_list(path):
        contest = _contest(row, path, reference)
        yield Verdict(contest.where, contest.instruction, contest.first, contest.second, contest.outputs, _score(row))


def read_contests(path: Path, reference: str | None) -> Iterator[Contest]:
    """The outputs of a file that are still to be judged: the same rows without `preference`.

    Raises:
        RecordError: naming file, row and field.
    """
    return (_contest(row, path, reference) for row in rows_of_list(path))


def _contest(row: Row, path: Path, reference: str | None) -> Contest:
    first, second = _models(row, path, reference)
    if first == second:
        raise row.error(f"field 'generator': {first!r} is compared with itself")
    outputs = (row.get("output_2", str), row.get("output_1", str))
    return Contest(row.where, row.text("instruction"), first, second, outputs)


def _models(row: Row, path: Path, reference: str | None) -> tuple[str, str]:
    """The models of `output_2` and of `output_1`."""
    evaluated = row.text(
        "generator" if "generator" in row.fields and "generator_2" not in row.fields else "generator_2"
    )
    if "generator_1" in row.fields:
        return evaluated, row.text("generator_1")
    sides = path.name.split(".json")[0].split("_vs_")
    if reference is None and (len(sides) != 2 or sides.count(evaluated) != 1):
        raise row.error(
            f"field 'generator_1' is missing, and the file's name is not A_vs_B with {evaluated!r} on one side; "
            "name the model of output_1 by --reference"
        )
    return evaluated, reference or next(side for side in sides if side != evaluated)


def _score(row: Row) -> float:
    """The share of the win that is `output_2`'s."""
    given = row.fields.get("preference")
    try:
        preference = float(given) if isinstance(given, str | int | float) and not isinstance(given, bool) else None
    except (ValueError, OverflowError):
        preference = None
    if preference == 0:
        return 0.5
    if preference is None or not 1 <= preference <= 2:
        raise row.error(f"field 'preference' is {given!r}, not 1, 2, a share between them, or 0 for a draw")
    return preference - 1
