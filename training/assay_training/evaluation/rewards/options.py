"""Hold the options of `assay evaluate` that say how rows are read where their file does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from assay_training.config.data import Source
from assay_training.config.wording import explain_errors
from assay_training.evaluation import grouping
from assay_training.records.record import RecordError
from assay_training.records.rows import read_folder_rows
from assay_training.records.sources import Part


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for reading rows.

    Attributes:
        reference: name of the model of AlpacaEval's `output_1` where neither rows nor the file's name contain it.
        by: field of the rows by which a source is divided; each value is a source of its own, `NAME/VALUE`.
        largest_gap: margin or difference of scores that counts as a gap of 1, for the format `preferences`.
        fields: field of a row to read under each name, for Assay's own formats; `None` ignores that name.
    """

    reference: str | None = None
    by: str | None = None
    largest_gap: float | None = None
    fields: Mapping[str, str | None] = field(default_factory=dict)

    def build_source(self, format_: str, path: Path) -> Source:
        """Return a file or folder as a source, as a run's configuration would declare it.

        Args:
            format_: name of a training format.
            path: file or folder.

        Raises:
            RecordError: the format does not take one of the options.
        """
        declared = {"fields": self.fields, "largest_gap": self.largest_gap}
        try:
            return Source.model_validate({"name": path.resolve().name, "format": format_} | declared)
        except ValidationError as error:
            faults = "; ".join(explain_errors(error, Source))
            # The errors name keys of a configuration; a user of the command line knows them as options.
            as_options = faults.replace("fields is ", "--field is ").replace("fields: ", "--field ")
            raise RecordError(f"{format_}:{path}: {as_options.replace('largest_gap', '--largest-gap')}") from None

    def check_fixed(self, given: str) -> None:
        """Check that `--field` and `--largest-gap` are not set for a format whose fields are fixed.

        Without this check they would be ignored silently.

        Args:
            given: source as it was given, for the message.

        Raises:
            RecordError: one of the two options is set.
        """
        if self.fields or self.largest_gap is not None:
            raise RecordError(
                f"{given}: this format does not take --field and --largest-gap; evaluate it in a command of its own"
            )

    def build_part(self, path: Path) -> Part | None:
        """Return the function from a row to its part of the source, or `None` if the source is not divided.

        Args:
            path: file or folder of the rows.

        Raises:
            RecordError: no row has the field.
        """
        if self.by is None:
            return None
        grouping.check_field(read_folder_rows(path), self.by)
        return partial(grouping.read_group, field=self.by)


NO_OPTIONS = ReadOptions()


def parse_fields(given: Sequence[str]) -> dict[str, str | None]:
    """Return the field to read under each name, from any number of `NAME=FIELD`; `NAME=` ignores that name.

    Raises:
        RecordError: an option has another form.
    """
    fields: dict[str, str | None] = {}
    for option in given:
        name, equals, origin = option.partition("=")
        if not name or not equals:
            raise RecordError(
                f"--field {option}: not of the form NAME=FIELD, as in prompt=question, or NAME= to ignore the field"
            )
        fields[name] = origin or None
    return fields
