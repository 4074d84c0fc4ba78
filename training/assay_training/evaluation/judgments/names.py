"""Find out which models wrote the two outputs of a row: from its fields, the file's name or `--reference`."""

import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from assay_training.evaluation import grouping
from assay_training.records.rows import Row

EVALUATED = "Current model"  # AlpacaEval's name for an evaluated model without a name (`get_generator_name`)
REFERENCE = "reference"  # AlpacaEval's word for the model that it is compared with (`reference_outputs`)
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names of the two models of a row.

    Attributes:
        evaluated: name of the model that wrote `output_2`.
        reference: name of the model that wrote `output_1`.
        assumed: whether one of them is not named anywhere and therefore called `Current model` or `reference`.
    """

    evaluated: str
    reference: str
    assumed: bool


def read_names(row: Row, path: Path, reference: str | None) -> ModelNames:
    """Return the names of the models of a row.

    Args:
        row: row with `generator_1` and `generator_2`, with `generator` (the model of `output_2`), or with neither.
            A name is a text or a number; null and NaN count as missing.
        path: path of its file, whose name may contain both models: `a_vs_b.json`, or with a prefix `x_a_vs_b.json`.
            Case, punctuation and white space are ignored when names are compared.
        reference: name of the model of `output_1` where the row does not name it.

    Raises:
        RecordError: a name is neither a text nor a number. Or the file's name does not show which model is which or
            contradicts `reference`, or both models have the same name.
    """
    evaluated, other = _read_name(row, "generator_2") or _read_name(row, "generator"), _read_name(row, "generator_1")
    if other is None and reference is not None:
        _check_reference(row, path, reference)
        other = reference
    if "_vs_" in path.name:
        if evaluated is None:
            evaluated = _find_other_model(row, path, other, "generator_2", "name it in the rows")
        elif other is None:
            other = _find_other_model(row, path, evaluated, "generator_1", "name it with --reference")
    names = ModelNames(evaluated or EVALUATED, other or REFERENCE, evaluated is None or other is None)
    if names.evaluated == names.reference:
        raise row.error(
            f"field 'generator': both outputs are by {names.evaluated!r}; name two different models in "
            "'generator_1' and 'generator_2', or the model of output_1 with --reference"
        )
    return names


class AssumedNameCheck:
    """A check that an assumed name comes from one file only, as in two files it may stand for two models."""

    def __init__(self) -> None:
        self._paths: dict[tuple[str, str], Path] = {}

    def check(self, row: Row, path: Path, names: ModelNames) -> None:
        """Check one row; call this for every row of every file.

        Args:
            row: row to name in the error.
            path: path of its file.
            names: names of its models.

        Raises:
            RecordError: an earlier file has the same names, and one of the two is assumed in both files.
        """
        first = self._paths.setdefault((names.evaluated, names.reference), path) if names.assumed else path
        if first != path:
            raise row.error(
                f"this file and {first} both compare {names.evaluated!r} with {names.reference!r}, and one of these "
                "names is assumed, so that it may stand for two models; name the models in the rows or with "
                "--reference, or evaluate one file at a time"
            )


def _read_name(row: Row, field: str) -> str | None:
    """Return the name in a field, or `None` if the field is missing, null or NaN."""
    value = row.fields.get(field)
    if isinstance(value, str):
        return row.text(field)
    if grouping.is_missing(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise row.error(f"field {field!r} is {str(value)[:60]}; the name of a model must be a text or a number")
    return grouping.format_name(value)


def _check_reference(row: Row, path: Path, reference: str) -> None:
    """Raise if the file's name contains two models, neither of which is `--reference`."""
    sides = _split_file_name(path)
    if sides and not any(_match_sides(reference, sides)):
        raise row.error(f"the file's name contains {' and '.join(sides)}, neither of which is --reference {reference}")


def _find_other_model(row: Row, path: Path, known: str | None, field: str, advice: str) -> str:
    """Return the model in a file's name that is not the known one."""
    sides = _split_file_name(path)
    matches = _match_sides(known, sides) if sides and known is not None else (False, False)
    # If both sides match, or neither, the name does not show which side is the other model.
    if sides is None or matches[0] == matches[1]:
        if known is None and sides:
            problem = "the file's name A_vs_B does not show which of its two models that is"
        elif known is None:
            problem = "the file's name does not have the form A_vs_B"
        else:
            problem = f"the file's name does not have the form A_vs_B with {known!r} on exactly one side"
        raise row.error(f"field {field!r} is missing, and {problem}; {advice}")
    return sides[matches.index(False)]


def _split_file_name(path: Path) -> tuple[str, str] | None:
    """Return the two parts of a name of the form `A_vs_B`, or `None` if it has another form."""
    sides = path.name.split(".json")[0].split("_vs_")
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _match_sides(model: str, sides: tuple[str, str]) -> tuple[bool, bool]:
    """Return whether a model is the first side, which may have a prefix (`final_a_vs_b`), and whether the second."""
    wanted = _NOT_ALPHANUMERIC.sub("", model).casefold()
    first, second = (_NOT_ALPHANUMERIC.split(side.casefold()) for side in sides)
    endings = ("".join(first[k:]) for k in range(len(first)))
    return bool(wanted) and wanted in endings, bool(wanted) and wanted == "".join(second)
