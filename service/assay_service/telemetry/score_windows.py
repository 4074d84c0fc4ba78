"""Keep the last scores of each signal, and compute their drift and correlation when the metrics are read."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from assay_service.scoring.reference import ReferenceHistogram
from assay_service.telemetry.window_statistics import compute_correlation, compute_psi

WINDOW_SCORES = 2000


class ScoreWindows(Collector):
    """The last scores of each signal, as a collector of Prometheus; adding one costs an append.

    Everything is called on the event loop. A value that cannot be computed has no sample.
    """

    def __init__(self) -> None:
        self._served: frozenset[str] = frozenset()
        self._references: Mapping[str, ReferenceHistogram] = {}
        self._logits: dict[str, deque[float]] = {}
        self._lengths: dict[str, deque[int]] = {}

    def serve(self, names: Iterable[str], references: Mapping[str, ReferenceHistogram]) -> None:
        """Keep windows of these signals from now on; those of others are dropped, and late scores of theirs ignored.

        Args:
            names: names of the served signals.
            references: reference histograms by signal, for the signals that have one.
        """
        self._served, self._references = frozenset(names), references
        for signal in self._logits.keys() - self._served:
            del self._logits[signal], self._lengths[signal]

    def add(self, signal: str, logit: float, completion_tokens: int) -> None:
        """Add a score, in place of the oldest one of a full window."""
        if signal not in self._served:
            return
        if signal not in self._logits:
            self._logits[signal] = deque(maxlen=WINDOW_SCORES)
            self._lengths[signal] = deque(maxlen=WINDOW_SCORES)
        self._logits[signal].append(logit)
        self._lengths[signal].append(completion_tokens)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics of all windows."""
        count = GaugeMetricFamily(
            "assay_window_scores",
            f"Number of scores in the window of each signal, at most the last {WINDOW_SCORES}.",
            labels=["signal"],
        )
        correlation = GaugeMetricFamily(
            "assay_length_correlation",
            "Pearson's correlation of logit and completion tokens over the window.",
            labels=["signal"],
        )
        drift = GaugeMetricFamily(
            "assay_drift_psi",
            "Population stability index of the window's logits against the reference histogram of the manifest.",
            labels=["signal"],
        )
        for signal, window in self._logits.items():
            logits = list(window)
            count.add_metric([signal], len(logits))
            if (value := compute_correlation(logits, list(self._lengths[signal]))) is not None:
                correlation.add_metric([signal], value)
            if (reference := self._references.get(signal)) is not None:
                value = compute_psi(logits, reference.edges, reference.counts)
                if value is not None:
                    drift.add_metric([signal], value)
        yield from (count, correlation, drift)
