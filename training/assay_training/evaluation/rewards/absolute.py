"""How far an absolute model's qualities are from their labels, bucket by bucket ([CRS] tables 6 and 7)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from assay_training.algorithms.statistics import Floats, bucket_errors, calibration
from assay_training.evaluation import plots
from assay_training.evaluation.table import Picture, Table, number, text, whole
from assay_training.records.record import RecordError
from assay_training.records.rows import rows_of_any

COLUMNS = (
    text("file", "file"),
    text("labels", "bucket"),
    whole("n", "n"),
    number("MSE", "mse", ".4f"),
    number("MAE", "mae", ".4f"),
)
LARGEST = 1e100  # squares of larger predictions could not be summed
NOTES = ("Labels: low <= 0.4, high >= 0.9, mid between.",)


def read_qualities(path: Path) -> tuple[Floats, Floats]:
    """Labels and predictions, both `[n]`, from rows with `label` in 0..1 and `prediction`.

    Raises:
        RecordError: naming file, row and field.
    """
    labels, predictions = [], []
    for row in rows_of_any(path):
        label, prediction = row.get("label", float), row.get("prediction", float)
        if not 0 <= label <= 1:
            raise row.error(f"field 'label' is {label}, not in 0..1")
        if not abs(prediction) <= LARGEST:  # NaN neither
            raise row.error(f"field 'prediction' is {prediction}, not a number from -{LARGEST:g} to {LARGEST:g}")
        labels.append(label)
        predictions.append(prediction)
    if not labels:
        raise RecordError(f"{path}: no rows")
    return np.array(labels), np.array(predictions)


def absolute(qualities: Mapping[str, tuple[Floats, Floats]]) -> Table:
    """A record for every file and bucket that has rows.

    Args:
        qualities: labels and predictions by file.
    """
    records = [
        {"file": name, "bucket": bucket, "n": n, "mse": mse, "mae": mae}
        for name, (labels, predictions) in qualities.items()
        for bucket, (n, mse, mae) in bucket_errors(labels, predictions).items()
    ]
    pictures = tuple(_picture(name, labels, predictions) for name, (labels, predictions) in qualities.items())
    return Table("Errors of absolute rewards", tuple(records), COLUMNS, notes=NOTES, pictures=pictures)


def _picture(name: str, labels: Floats, predictions: Floats) -> Picture:
    bins = calibration(labels, predictions)
    return Picture(
        f"{name}: mean label against mean prediction, by tenths.",
        lambda: plots.curve([b.prediction for b in bins], [b.label for b in bins], "prediction", "label"),
    )
