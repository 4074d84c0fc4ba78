"""The thesis' buckets of labels: low, mid, high ([CRS] tables 6 and 7)."""

from typing import Literal

LOW, HIGH = 0.4, 0.9

Bucket = Literal["low", "mid", "high"]


def bucket_of(label: float) -> Bucket:
    """Low is <= 0.4, high is >= 0.9."""
    return "low" if label <= LOW else "high" if label >= HIGH else "mid"
