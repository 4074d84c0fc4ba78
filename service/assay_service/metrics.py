"""Define every Prometheus metric of the service, with its labels; names end with the unit."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

# Bounds of histogram buckets. Latencies and token counts grow by about 2; logits are symmetric around 0.
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_LOGITS = (-16, -8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8, 16)


class Metrics:
    """The metrics of one application, in a registry of their own, so that two applications can share a process."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        ProcessCollector(registry=registry)  # process_cpu_seconds_total, process_resident_memory_bytes, …
        self.build = Info(
            "assay_build",
            "Versions of the service, torch and Python, and the fingerprint that /info reports.",
            registry=registry,
        )
        self.requests = Counter(
            "assay_requests_total", "Number of answered requests.", ["route", "status"], registry=registry
        )
        self.request_s = Histogram(
            "assay_request_seconds",
            "Time from the arrival of a request to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.items = Counter(
            "assay_items_total", "Number of items that a signal scored.", ["signal"], registry=registry
        )
        self.item_errors = Counter(
            "assay_item_errors_total",
            "Number of items that were answered with an error, by its code.",
            ["code"],
            registry=registry,
        )
        self.truncated = Counter(
            "assay_truncated_items_total",
            "Number of items whose prompt was truncated before scoring.",
            registry=registry,
        )
        self.logits = Histogram(
            "assay_logit",
            "Logits of each signal; a shift of their distribution shows drift of the reward.",
            ["signal"],
            buckets=_LOGITS,
            registry=registry,
        )
        self.not_finite = Counter(
            "assay_not_finite_total", "Number of logits that were NaN or infinite.", ["signal"], registry=registry
        )
        self.rejected = Counter(
            "assay_rejected_requests_total",
            "Number of requests that were refused because the queue was full.",
            registry=registry,
        )
        self.lookups = Counter(
            "assay_lookups_total",
            "Number of sequences that were cached (hit), in the queue or running already (in_flight), or new (miss).",
            ["result"],
            registry=registry,
        )
        self.cache_bytes = Gauge("assay_cache_bytes", "Size of the cache of logits.", registry=registry)
        self.out_of_memory = Counter(
            "assay_out_of_memory_total", "Number of batches that were split because memory ran out.", registry=registry
        )
        self.queue_tokens = Gauge("assay_queue_tokens", "Number of tokens that wait in the queue.", registry=registry)
        self.queue_s = Histogram(
            "assay_queue_seconds", "Time that a sequence waits in the queue.", buckets=_SECONDS, registry=registry
        )
        self.batch_tokens = Histogram(
            "assay_batch_tokens",
            "Number of tokens that a forward pass computes; a shared prompt counts once.",
            ["signal"],
            buckets=_TOKENS,
            registry=registry,
        )
        self.forward_s = Histogram(
            "assay_forward_seconds", "Time of a forward pass.", ["signal"], buckets=_SECONDS, registry=registry
        )

    def format_text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
