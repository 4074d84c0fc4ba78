"""Sort quality labels into the three buckets of [CRS] tables 6 and 7: low, mid and high."""

from typing import Literal

LOW, HIGH = 0.4, 0.9

Bucket = Literal["low", "mid", "high"]


def find_bucket(label: float) -> Bucket:
    """Return the bucket of a label: low at 0.4 or less, high at 0.9 or more, mid between."""
    return "low" if label <= LOW else "high" if label >= HIGH else "mid"
