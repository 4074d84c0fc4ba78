"""Define every Prometheus metric of the service, with its labels; names end with the unit."""

from collections import Counter as Tally
from collections.abc import Iterable
from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from assay_service.telemetry.score_windows import ScoreWindows

# How a sequence was found: its logits were cached, it was waiting or running already, or it was new.
Lookup = Literal["hit", "in_flight", "miss"]

# Bounds of histogram buckets. Latencies and token counts grow by about 2; logits are symmetric around 0.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_LOGITS = (-16, -8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8, 16)


class Metrics:
    """The metrics of one application, in a registry of their own, so that two applications can share a process."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._of_signal: dict[str, tuple[Counter, Histogram]] = {}
        ProcessCollector(registry=registry)  # process_cpu_seconds_total, process_resident_memory_bytes, …
        # The default registry of prometheus_client is global, and a second application would collide with the first.
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        # In the order in which a request meets them, which is that of `/metrics`.
        self._add_request_metrics(counter, histogram)
        self._add_score_metrics(counter, histogram)
        self.windows = ScoreWindows()
        registry.register(self.windows)
        self._add_engine_metrics(counter, histogram, gauge)
        self.build = Info(
            "assay_build",
            "Versions of the service, torch and Python, and the fingerprint that /info reports.",
            registry=registry,
        )
        self.models = Info(
            "assay_model",
            "Provenance of each signal: what decides its logits.",
            ["signal"],
            registry=registry,
        )

    def _add_request_metrics(self, counter: partial[Counter], histogram: partial[Histogram]) -> None:
        """Add what is counted for each request, whatever it asks for."""
        self.requests = counter("assay_requests_total", "Number of answered requests.", ["route", "status"])
        self.request_s = histogram(
            "assay_request_seconds", "Time from the arrival of a request to its answer.", ["route"], buckets=_SECONDS
        )
        self.phase_s = histogram(
            "assay_phase_seconds",
            "Time of the phases of a request that scores: render, queue (nothing of it is computed), compute.",
            ["phase"],
            buckets=_SECONDS,
        )
        self.refused = counter(
            "assay_refused_requests_total",
            "Number of requests that were answered with an error, by its code.",
            ["code"],
        )
        self.disconnects = counter(
            "assay_disconnects_total", "Number of requests whose client closed the connection before the answer."
        )
        self.rejected = counter(
            "assay_rejected_requests_total",
            "Number of requests that were refused or dropped because of load, by the limit that was reached: "
            "wait, tokens, items, deadline (on arrival) or expired (while they waited).",
            ["reason"],
        )

    def _add_score_metrics(self, counter: partial[Counter], histogram: partial[Histogram]) -> None:
        """Add what is counted for each item and each logit."""
        self.items = counter("assay_items_total", "Number of items that a signal scored.", ["signal"])
        self.item_errors = counter(
            "assay_item_errors_total", "Number of items that were answered with an error, by its code.", ["code"]
        )
        self.truncated = counter(
            "assay_truncated_items_total", "Number of items whose prompt was truncated before scoring."
        )
        self.floored = counter(
            "assay_floored_items_total",
            "Number of refused items that got the floor of a compatible wire in place of a score.",
            ["wire"],
        )
        self.samples = counter(
            "assay_samples_total", "Number of lines of the sample log: written, dropped or failed.", ["result"]
        )
        for result in ("written", "dropped", "failed"):  # 0 from the start: an alert sees only an increase
            self.samples.labels(result)
        self.logits = histogram(
            "assay_logit",
            "Logits of each signal; a shift of their distribution shows drift of the reward.",
            ["signal"],
            buckets=_LOGITS,
        )
        self.not_finite = counter("assay_not_finite_total", "Number of logits that were NaN or infinite.", ["signal"])

    def _add_engine_metrics(
        self, counter: partial[Counter], histogram: partial[Histogram], gauge: partial[Gauge]
    ) -> None:
        """Add the state of the queue and the cache, and what is measured for each forward pass."""
        self.lookups = counter(
            "assay_lookups_total",
            "Number of sequences that were cached (hit), in the queue or running already (in_flight), or new (miss).",
            ["result"],
        )
        self.tokens = counter(
            "assay_tokens_total",
            "Number of tokens of admitted sequences, by how they were had: computed, shared (of a prompt that was "
            "computed for another sequence), in_flight (of an equal sequence that was computed for another request) or "
            "cached.",
            ["source"],
        )
        self.cache_bytes = gauge("assay_cache_bytes", "Size of the cache of logits.")
        self.out_of_memory = counter(
            "assay_out_of_memory_total", "Number of batches that were split because memory ran out."
        )
        self.queue_tokens = gauge(
            "assay_queue_tokens", "Number of tokens that wait in the queue; a prompt that a request shares counts once."
        )
        self.queue_items = gauge("assay_queue_items", "Number of sequences that wait in the queue.")
        self.oldest_s = gauge("assay_queue_oldest_seconds", "Age of the oldest sequence in the queue, else 0.")
        self.drain_rate = gauge(
            "assay_drain_tokens_per_second", "Observed number of queued tokens that are computed in a second."
        )
        self.queue_s = histogram("assay_queue_seconds", "Time that a sequence waits in the queue.", buckets=_SECONDS)
        self.batch_tokens = histogram(
            "assay_batch_tokens",
            "Number of tokens that a forward pass computes; a shared prompt counts once.",
            ["signal"],
            buckets=_TOKENS,
        )
        self.forward_s = histogram("assay_forward_seconds", "Time of a forward pass.", ["signal"], buckets=_SECONDS)

    def count_score(self, signal: str, logit: float, completion_tokens: int) -> None:
        """Count the logit of one item by one signal."""
        if signal not in self._of_signal:  # looking a child up takes longer than counting
            self._of_signal[signal] = self.items.labels(signal), self.logits.labels(signal)
        items, logits = self._of_signal[signal]
        items.inc()
        logits.observe(logit)
        self.windows.add(signal, logit, completion_tokens)

    def count_lookups(self, found: Iterable[tuple[Lookup, int]]) -> None:
        """Count how the sequences of an admitted request were found, with the number of their tokens."""
        lookups, tokens = Tally[Lookup](), Tally[Lookup]()
        for result, count in found:
            lookups[result] += 1
            tokens[result] += count
        for result, number in lookups.items():
            self.lookups.labels(result).inc(number)
        self.tokens.labels("cached").inc(tokens["hit"])
        self.tokens.labels("in_flight").inc(tokens["in_flight"])

    def count_pass(self, trunk: str, seconds: float, computed_tokens: int, tokens: int) -> None:
        """Count a forward pass.

        Args:
            trunk: name of the trunk.
            seconds: time of the pass.
            computed_tokens: number of tokens that it computed.
            tokens: number of tokens of its sequences, in which a shared prompt counts for each of them.
        """
        self.forward_s.labels(trunk).observe(seconds)
        self.batch_tokens.labels(trunk).observe(computed_tokens)
        self.tokens.labels("computed").inc(computed_tokens)
        self.tokens.labels("shared").inc(tokens - computed_tokens)

    def format_text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
