"""What a window of scores shows, against scipy and numpy, and the metrics that are made of it."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scipy import stats

from assay_service.errors import StartError
from assay_service.scoring import manifest
from assay_service.scoring.reference import ReferenceHistogram
from assay_service.telemetry.metrics import Metrics
from assay_service.telemetry.score_windows import WINDOW_SCORES
from assay_service.telemetry.window_statistics import (
    CORRELATION_SCORES,
    DRIFT_SCORES,
    compute_correlation,
    compute_psi,
)

EDGES = (-2.0, -1.0, 0.0, 1.0, 2.0)


def sample(mean: float, count: int, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(mean, 1.0) for _ in range(count)]


def count_bins(logits: list[float]) -> list[int]:
    """The counts of a manifest: below, bins, above; by numpy."""
    return [int(n) for n in np.histogram(logits, bins=[-math.inf, *EDGES, math.inf])[0]]


def read(metrics: Metrics) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(metrics.format_text().decode())
    return {(s.name, s.labels.get("signal", "")): s.value for family in families for s in family.samples}


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.02, 3.0])
def test_the_correlation_is_scipys(slope: float) -> None:
    lengths = [random.Random(n).randrange(1, 900) for n in range(1500)]
    logits = [slope * length + noise for length, noise in zip(lengths, sample(0, 1500), strict=True)]
    expected = stats.pearsonr(logits, lengths).statistic
    assert compute_correlation(logits, lengths) == pytest.approx(expected, abs=1e-12)


def test_without_enough_scores_or_variation_there_is_no_correlation() -> None:
    short = sample(0, CORRELATION_SCORES - 1)
    assert compute_correlation(short, short) is None
    assert compute_correlation(sample(0, 200), [7] * 200) is None
    assert compute_correlation([1.5] * 200, list(range(200))) is None


@pytest.mark.parametrize("mean", [0.0, 0.3, 3.0])
def test_the_index_is_twice_the_symmetric_divergence_of_numpy(mean: float) -> None:
    reference, logits = count_bins(sample(0, 5000, seed=1)), sample(mean, 2000, seed=2)
    now = np.array(count_bins(logits)) + 0.5
    before = np.array(reference) + 0.5
    now, before = now / now.sum(), before / before.sum()
    expected = stats.entropy(now, before) + stats.entropy(before, now)
    assert compute_psi(logits, EDGES, reference) == pytest.approx(expected, rel=1e-12)


def test_without_drift_the_index_is_as_large_as_chance_makes_it() -> None:
    """The mean over windows is (B - 1)(1/n + 1/m): the index is near a chi-squared variable ([PSI])."""
    reference = count_bins(sample(0, 100_000, seed=1))
    values = [compute_psi(sample(0, 1000, seed=seed), EDGES, reference) for seed in range(2, 102)]
    assert np.mean([value for value in values if value is not None]) == pytest.approx(5 * (1 / 1000 + 1e-5), rel=0.2)


def test_a_logit_on_an_edge_is_in_the_bin_that_begins_there() -> None:
    reference = [1, 1000, 1, 1, 1, 1]
    same, other = compute_psi([-2.0] * 1000, EDGES, reference), compute_psi([-1.0] * 1000, EDGES, reference)
    assert same is not None
    assert other is not None
    assert same < 0.1 < other
    assert compute_psi([0.0] * (DRIFT_SCORES - 1), EDGES, reference) is None


def test_the_window_forgets_the_oldest_and_shows_only_what_it_knows() -> None:
    logits = sample(0, 5000, seed=1)
    reference = ReferenceHistogram(edges=EDGES, counts=tuple(count_bins(logits)), samples=5000, samples_sha256="0" * 64)
    metrics = Metrics()
    metrics.windows.serve(["rm", "bare"], {"rm": reference})
    assert not any(name.startswith(("assay_window", "assay_drift", "assay_length")) for name, _ in read(metrics))
    for signal in ("rm", "bare"):
        for number, logit in enumerate(sample(5, 3000)):
            metrics.count_score(signal, logit, number)
        for number, logit in enumerate(sample(0, WINDOW_SCORES, seed=9)):
            metrics.count_score(signal, logit, number % 50)
    got = read(metrics)
    assert got["assay_window_scores", "rm"] == WINDOW_SCORES
    assert got["assay_drift_psi", "rm"] < 0.02
    assert ("assay_drift_psi", "bare") not in got
    assert abs(got["assay_length_correlation", "rm"]) < 0.1
    assert got["assay_logit_count", "rm"] == 3000 + WINDOW_SCORES


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edges": [0.0, 0.0, 1.0]}, "reference: edges must increase"),
        ({"counts": [1, 2, 3]}, "reference: counts must have one number more than edges"),
        ({"counts": [1, 2, 3, -1]}, "reference.counts"),
        ({"samples": 9}, "with the sum `samples`"),
        ({"samples_sha256": "x"}, "reference.samples_sha256: must be 64 hexadecimal digits"),
    ],
)
def test_a_reference_that_is_not_a_histogram_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    right = {"edges": [-1.0, 0.0, 1.0], "counts": [1, 2, 3, 4], "samples": 10, "samples_sha256": "0" * 64}
    path = tmp_path / "assay.json"
    path.write_text(json.dumps({"reference": right}))
    read_back = manifest.read(tmp_path).reference
    assert read_back is not None
    assert read_back.counts == (1, 2, 3, 4)
    path.write_text(json.dumps({"reference": right | change}))
    with pytest.raises(StartError, match=said):
        manifest.read(tmp_path)
