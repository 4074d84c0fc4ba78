"""How rows are read where their file does not say it: what the options of `assay evaluate` declare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from assay_training.config.data import Source
from assay_training.config.wording import explained
from assay_training.evaluation import grouping
from assay_training.records.record import RecordError
from assay_training.records.rows import rows_of_files
from assay_training.records.sources import Part


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows are read.

    Attributes:
        reference: the model of AlpacaEval's `output_1` where neither rows nor the file's name tell it.
        by: a field of the rows; every value of it is a source of its own, `NAME/VALUE`.
        largest_gap: of `preferences`, the margin or difference of scores that counts as a gap of 1.
        fields: of our own formats, which field of a row is read as which; `None` leaves one out.
    """

    reference: str | None = None
    by: str | None = None
    largest_gap: float | None = None
    fields: Mapping[str, str | None] = field(default_factory=dict)

    def source(self, format_: str, path: Path) -> Source:
        """Return a file or folder as a source of a run.

        Raises:
            RecordError: the format does not take what is declared.
        """
        declared = {"fields": self.fields, "largest_gap": self.largest_gap}
        try:
            return Source.model_validate({"name": path.resolve().name, "format": format_} | declared)
        except ValidationError as error:
            said = "; ".join(explained(error, Source))
            as_options = said.replace("fields is ", "--field is ").replace("fields: ", "--field ")
            raise RecordError(f"{format_}:{path}: {as_options.replace('largest_gap', '--largest-gap')}") from None

    def check_fixed(self, given: str) -> None:
        """Check that nothing is declared for rows whose fields have fixed names and meanings.

        Raises:
            RecordError: fields or a largest gap are declared.
        """
        if self.fields or self.largest_gap is not None:
            raise RecordError(f"{given}: --field and --largest-gap are not for this format; evaluate it by itself")

    def part(self, path: Path) -> Part | None:
        """Return what says which part of its source a row is of.

        Raises:
            RecordError: no row has the field.
        """
        if self.by is None:
            return None
        grouping.require(rows_of_files(path), self.by)
        return partial(grouping.group, field=self.by)


NOTHING_DECLARED = Reading()


def fields_of(given: Sequence[str]) -> dict[str, str | None]:
    """Return the fields that `NAME=FIELD` says, any number of them; `NAME=` leaves a field out.

    Raises:
        RecordError: one has another form.
    """
    found: dict[str, str | None] = {}
    for one in given:
        name, equals, origin = one.partition("=")
        if not name or not equals:
            raise RecordError(f"--field {one}: not NAME=FIELD, as in prompt=question, or NAME= to leave the field out")
        found[name] = origin or None
    return found
