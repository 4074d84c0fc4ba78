"""Read verdicts on pairs of outputs: the rows of AlpacaEval ([AlpacaEval])."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from assay_training.evaluation import grouping
from assay_training.evaluation.judgments.names import AssumedNameCheck, read_names
from assay_training.records.record import RecordError
from assay_training.records.rows import Row, read_file_rows
from assay_training.records.sources import Read

NO_VERDICT = "no verdict"
_MISSING = frozenset({"nan", "none", "null", "<na>"})  # Python and pandas write these texts for a missing value


@dataclass(frozen=True, slots=True)
class OutputPair:
    """Two models' outputs to one instruction.

    Attributes:
        where: file and row, for messages.
        instruction: instruction that both models got.
        first, second: names of the models.
        outputs: their outputs, in that order.
    """

    where: str
    instruction: str
    first: str
    second: str
    outputs: tuple[str, str]

    def add_score(self, score: float) -> "Verdict":
        """Return the verdict on this pair; `score` is the first model's share of the win, 0..1."""
        return Verdict(self.where, self.instruction, self.first, self.second, self.outputs, score)


@dataclass(frozen=True, slots=True)
class Verdict(OutputPair):
    """A pair of outputs with the decision which one is better.

    Attributes:
        score: the first model's share of the win: 1 for a win, 0 for a loss, 0.5 for a draw.
        groups: names of the groups of its row, such as the data set; every verdict also counts in the overall rate.
    """

    score: float
    groups: tuple[str, ...] = ()

    def swap(self) -> "Verdict":
        """Return the same verdict from the second model's side."""
        outputs = (self.outputs[1], self.outputs[0])
        return Verdict(self.where, self.instruction, self.second, self.first, outputs, 1 - self.score, self.groups)

    def to_row(self) -> dict[str, str | float]:
        """Return the verdict as a row of AlpacaEval, with the first model's output as `output_2`."""
        return {
            "instruction": self.instruction,
            "output_1": self.outputs[1],
            "generator_1": self.second,
            "output_2": self.outputs[0],
            "generator_2": self.first,
            "preference": 1 + self.score,
        }


def read_verdicts(paths: Sequence[Path], reference: str | None, by: Sequence[str] = ()) -> Read[Verdict]:
    """Read the verdicts of files, with the model of `output_2` first; AlpacaEval evaluates that one.

    Rows whose `preference` is missing, null, NaN or blank are dropped and counted. AlpacaEval does the same with judge
    outputs that it could not parse (`describe_head2head` in alpaca_eval 0.6.6). Such a row may also lack an output.

    Args:
        paths: files of JSON lists or JSON lines, gzipped or not. Rows have `instruction`, `output_1`, `output_2`,
            `preference` and the models' names. `preference` is 1 or 2 for the better output, 1.5 or 0 for a draw. A
            number between 1 and 2 is a share of the win.
        reference: name of the model of `output_1` where rows do not name it.
        by: fields of the rows whose values are groups.

    Raises:
        RecordError: a row is malformed (the message names file, row and field), or a file has rows but no verdict.
    """
    verdicts: list[tuple[Row, Verdict]] = []
    dropped: Counter[str] = Counter()
    for path, pairs in _read_pairs(paths, reference, judged=True):
        judged = [(row, pair.add_score(score)) for row, pair in pairs if (score := _read_score(row)) is not None]
        # A file that nobody has judged would otherwise count as judged, with all of its rows dropped.
        if pairs and not judged:
            raise RecordError(
                f"{path}: none of its {len(pairs)} rows has a verdict: 'preference' is missing, null or NaN in "
                "every row; use `assay evaluate judge` to let a language model judge them"
            )
        if len(judged) < len(pairs):
            dropped[f"{path.name}: {NO_VERDICT}"] += len(pairs) - len(judged)
        verdicts += judged
    for field in by:
        grouping.check_field((row for row, _ in verdicts), field)
    groups = grouping.name_groups([{field: grouping.read_group(row, field) for field in by} for row, _ in verdicts])
    records = [replace(verdict, groups=names) for (_, verdict), names in zip(verdicts, groups, strict=True)]
    return Read(records, dropped, {})


def read_output_pairs(paths: Sequence[Path], reference: str | None) -> list[OutputPair]:
    """Read pairs of outputs that are still to be judged: rows of AlpacaEval without `preference`.

    Args:
        paths: files as for `read_verdicts`.
        reference: name of the model of `output_1` where rows do not name it.

    Raises:
        RecordError: a row is malformed; the message names file, row and field.
    """
    return [pair for _, pairs in _read_pairs(paths, reference) for _, pair in pairs]


def _read_pairs(
    paths: Sequence[Path], reference: str | None, *, judged: bool = False
) -> Iterator[tuple[Path, list[tuple[Row, OutputPair]]]]:
    """Yield each file with its rows and their pairs of outputs.

    Args:
        paths: files as for `read_verdicts`.
        reference: name of the model of `output_1` where rows do not name it.
        judged: whether the rows were judged; a missing output of a row without a verdict is then empty.
    """
    assumed = AssumedNameCheck()
    for path in paths:
        pairs = []
        for row in read_file_rows(path):
            names = read_names(row, path, reference)
            assumed.check(row, path, names)
            if not {"output_1", "output_2"} & row.fields.keys():
                # The usual mistake is AlpacaEval's `model_outputs.json`, which has one model's outputs.
                problem = "field 'output' holds the output of one model" if "output" in row.fields else "has no outputs"
                raise row.error(f"{problem}; a row of AlpacaEval needs those of two models, 'output_1' and 'output_2'")
            dropped = judged and _read_score(row) is None
            outputs = (_read_output(row, "output_2", dropped=dropped), _read_output(row, "output_1", dropped=dropped))
            pair = OutputPair(row.where, row.text("instruction"), names.evaluated, names.reference, outputs)
            pairs.append((row, pair))
        yield path, pairs


def _read_output(row: Row, name: str, *, dropped: bool) -> str:
    return "" if dropped and grouping.is_missing(row.fields.get(name)) else row.get(name, str)


def _read_score(row: Row) -> float | None:
    """Return the share of the win of `output_2`, or `None` where the row has no verdict."""
    given = row.fields.get("preference")
    if grouping.is_missing(given) or (isinstance(given, str) and given.strip().casefold() in _MISSING):
        return None
    try:
        # A bool is an int in Python, but `true` is not a preference.
        preference = float(given) if isinstance(given, str | int | float) and not isinstance(given, bool) else None
    except (ValueError, OverflowError):
        preference = None
    if preference == 0:  # AlpacaEval counts 0 as a draw, like 1.5
        return 0.5
    if preference is None or not 1 <= preference <= 2:
        raise row.error(
            f"field 'preference' is {given!r}, not 1 (output_1 is better), 2 (output_2 is better), a number between "
            "them, or 0 for a draw"
        )
    return preference - 1
