"""What a judge said of two outputs: the rows of AlpacaEval."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path

from assay_training.records.record import RecordError
from assay_training.records.rows import Row, rows_of_any, rows_of_file

_NO_WORD = re.compile(r"[\W_]+")


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
        path: a JSON list or JSON lines, gzipped or not: `instruction`, `output_1`, `output_2`, `preference` (1 or 2 for
            the better output, 1.5 or 0 for a draw, between 1 and 2 for a share), and `generator_1` and `generator_2`,
            or `generator`, the model of `output_2`.
        reference: the model of `output_1` where rows name `generator` alone; else the file's name must (`a_vs_b.json`,
            or with a prefix `x_a_vs_b.json`; case and what is no letter or digit do not matter).

    Raises:
        RecordError: naming file, row and field.
    """
    for row in _rows(path):
        contest = _contest(row, path, reference)
        yield Verdict(contest.where, contest.instruction, contest.first, contest.second, contest.outputs, _score(row))


def read_contests(path: Path, reference: str | None) -> Iterator[Contest]:
    """The outputs of a file that are still to be judged: the same rows without `preference`.

    Raises:
        RecordError: naming file, row and field.
    """
    return (_contest(row, path, reference) for row in _rows(path))


def _contest(row: Row, path: Path, reference: str | None) -> Contest:
    first, second = _models(row, path, reference)
    if first == second:
        raise row.error(f"field 'generator': {first!r} is compared with itself")
    outputs = (row.get("output_2", str), row.get("output_1", str))
    return Contest(row.where, row.text("instruction"), first, second, outputs)


def _rows(path: Path) -> list[Row]:
    """Of a list, or of lines, also where the file's name does not say so."""
    try:
        return list(rows_of_any(path))
    except RecordError as error:
        several = isinstance(error.__cause__, JSONDecodeError) and error.__cause__.msg == "Extra data"
        if ".jsonl" in path.suffixes or not several:
            raise
    return list(rows_of_file(path))


def _models(row: Row, path: Path, reference: str | None) -> tuple[str, str]:
    """The models of `output_2` and of `output_1`."""
    alone = row.fields.get("generator_2") is None and row.fields.get("generator") is not None
    evaluated = row.text("generator" if alone else "generator_2")
    if row.fields.get("generator_1") is not None:
        return evaluated, row.text("generator_1")
    sides = _sides(path)
    if reference is not None:
        if sides and not any(_is_side(reference, sides)):
            raise row.error(f"the file's name says {' and '.join(sides)}, neither of which is --reference {reference}")
        return evaluated, reference
    which = _is_side(evaluated, sides) if sides else (False, False)
    if sides is None or which[0] == which[1]:
        raise row.error(
            f"field 'generator_1' is missing, and the file's name is not A_vs_B with {evaluated!r} on one side; "
            "name the model of output_1 by --reference"
        )
    return evaluated, sides[which.index(False)]


def _sides(path: Path) -> tuple[str, str] | None:
    """The two models that a file's name says, if it does."""
    sides = path.name.split(".json")[0].split("_vs_")
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _is_side(model: str, sides: tuple[str, str]) -> tuple[bool, bool]:
    """Whether it is the one and whether the other; the first may have something in front (`final_a_vs_b`)."""
    wanted = _NO_WORD.sub("", model).casefold()
    first, second = (_NO_WORD.split(side.casefold()) for side in sides)
    ends = ("".join(first[k:]) for k in range(len(first)))
    return bool(wanted) and wanted in ends, bool(wanted) and wanted == "".join(second)


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
