"""Measure the errors of an absolute model's predictions by bucket of the label ([CRS] tables 6 and 7)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from assay_training.algorithms.statistics import Floats, compute_bucket_errors, compute_calibration
from assay_training.evaluation import plots
from assay_training.evaluation.table import Picture, Table, integer_column, number_column, text_column
from assay_training.records.record import RecordError
from assay_training.records.rows import read_file_rows

COLUMNS = (
    text_column("file", "file"),
    text_column("labels", "bucket"),
    integer_column("n", "n"),
    number_column("MSE", "mse", ".4f"),
    number_column("MAE", "mae", ".4f"),
)
LARGEST = 1e100  # the sum of the squares of larger predictions would overflow
NOTES = ("Labels: low is at most 0.4, high is at least 0.9, mid is between them.",)


def read_predictions(path: Path) -> tuple[Floats, Floats]:
    """Return the labels and the predictions of a file, both fp64 `[n]`.

    Args:
        path: file of rows with `label` in 0..1 and `prediction`.

    Raises:
        RecordError: the file has no rows, or a field is missing or out of range; the message names file, row and field.
    """
    labels, predictions = [], []
    for row in read_file_rows(path):
        label, prediction = row.get("label", float), row.get("prediction", float)
        if not 0 <= label <= 1:
            raise row.error(f"field 'label' is {label}, not a number from 0 to 1")
        if not abs(prediction) <= LARGEST:  # written so that NaN fails too
            raise row.error(f"field 'prediction' is {prediction}, not a number from -{LARGEST:g} to {LARGEST:g}")
        labels.append(label)
        predictions.append(prediction)
    if not labels:
        raise RecordError(f"{path}: the file has no rows")
    return np.array(labels), np.array(predictions)


def tabulate_errors(predictions: Mapping[str, tuple[Floats, Floats]]) -> Table:
    """Return a table with a record for every file and every bucket that has rows.

    Args:
        predictions: labels and predictions by file, both fp64 `[n]`.
    """
    records = [
        {"file": name, "bucket": bucket, "n": n, "mse": mse, "mae": mae}
        for name, (labels, predicted) in predictions.items()
        for bucket, (n, mse, mae) in compute_bucket_errors(labels, predicted).items()
    ]
    pictures = tuple(_build_picture(name, labels, predicted) for name, (labels, predicted) in predictions.items())
    return Table("Errors of absolute rewards", tuple(records), COLUMNS, notes=NOTES, pictures=pictures)


def _build_picture(name: str, labels: Floats, predictions: Floats) -> Picture:
    bins = compute_calibration(labels, predictions)
    return Picture(
        f"{name}: mean label against mean prediction, in ten bins of the prediction.",
        lambda: plots.draw_curve([b.prediction for b in bins], [b.label for b in bins], "prediction", "label"),
    )
