"""Which models wrote the two outputs of a row, by its fields, the file's name or `--reference`."""

import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from assay_training.evaluation import grouping
from assay_training.records.rows import Row

EVALUATED = "Current model"  # what AlpacaEval calls a model that has no name (`get_generator_name`)
REFERENCE = "reference"  # and the side that it is compared with (`reference_outputs`)
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Names:
    """The models of a row.

    Attributes:
        evaluated: that of `output_2`.
        reference: that of `output_1`.
        assumed: whether one of them is not named anywhere, so that it is called `Current model` or `reference`.
    """

    evaluated: str
    reference: str
    assumed: bool


def names_of(row: Row, path: Path, reference: str | None) -> Names:
    """Return the models of a row.

    Args:
        row: with `generator_1` and `generator_2`, with `generator` (the model of `output_2`) or with neither. A name is
            a text or a number; null and NaN are no name.
        path: of its file, whose name may say both models: `a_vs_b.json`, or with a prefix `x_a_vs_b.json`; case and
            what is no letter or digit do not matter.
        reference: the model of `output_1` where the row does not name it.

    Raises:
        RecordError: a name is something else, the file's name leaves open which model is which or contradicts
            `reference`, or both models have one name.
    """
    evaluated, other = _name(row, "generator_2") or _name(row, "generator"), _name(row, "generator_1")
    if other is None and reference is not None:
        _check_reference(row, path, reference)
        other = reference
    if "_vs_" in path.name:
        if evaluated is None:
            evaluated = _other_side(row, path, other, "generator_2", "name it in the rows")
        elif other is None:
            other = _other_side(row, path, evaluated, "generator_1", "name it by --reference")
    found = Names(evaluated or EVALUATED, other or REFERENCE, evaluated is None or other is None)
    if found.evaluated == found.reference:
        raise row.error(f"field 'generator': {found.evaluated!r} is compared with itself")
    return found


class OneFileEach:
    """Sees to it that a model without a name is the same one throughout: two files may mean two of them."""

    def __init__(self) -> None:
        self._paths: dict[tuple[str, str], Path] = {}

    def check(self, row: Row, path: Path, names: Names) -> None:
        """Check one row after the other.

        Raises:
            RecordError: another file has the same names, and in both one model has none of its own.
        """
        first = self._paths.setdefault((names.evaluated, names.reference), path) if names.assumed else path
        if first != path:
            raise row.error(
                f"this file and {first} both compare {names.evaluated!r} with {names.reference!r}, a name for any "
                "model that has none; name the models in the rows or by --reference, or evaluate one file at a time"
            )


def _name(row: Row, field: str) -> str | None:
    """Return the name in a field; `None` where there is none."""
    value = row.fields.get(field)
    if isinstance(value, str):
        return row.text(field)
    if grouping.missing(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise row.error(f"field {field!r} is {str(value)[:60]}, not a model's name, which is a text or a number")
    return grouping.spelled(value)


def _check_reference(row: Row, path: Path, reference: str) -> None:
    sides = _sides(path)
    if sides and not any(_is_side(reference, sides)):
        raise row.error(f"the file's name says {' and '.join(sides)}, neither of which is --reference {reference}")


def _other_side(row: Row, path: Path, known: str | None, field: str, advice: str) -> str:
    """Return the model of a file's name that is not the known one."""
    sides = _sides(path)
    which = _is_side(known, sides) if sides and known is not None else (False, False)
    if sides is None or which[0] == which[1]:
        wanted = "A_vs_B, which says no order" if known is None else f"A_vs_B with {known!r} on one side"
        found = "is" if known is None and sides else "is not"
        raise row.error(f"field {field!r} is missing, and the file's name {found} {wanted}; {advice}")
    return sides[which.index(False)]


def _sides(path: Path) -> tuple[str, str] | None:
    """Return the two models that a file's name says, if it does."""
    sides = path.name.split(".json")[0].split("_vs_")
    return (sides[0], sides[1]) if len(sides) == 2 else None


def _is_side(model: str, sides: tuple[str, str]) -> tuple[bool, bool]:
    """Return whether it is the one and whether the other; the first may have something in front (`final_a_vs_b`)."""
    wanted = _NO_WORD.sub("", model).casefold()
    first, second = (_NO_WORD.split(side.casefold()) for side in sides)
    ends = ("".join(first[k:]) for k in range(len(first)))
    return bool(wanted) and wanted in ends, bool(wanted) and wanted == "".join(second)
