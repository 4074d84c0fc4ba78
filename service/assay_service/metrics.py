"""Every Prometheus metric of the service, with its labels. Units are in the names."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_LOGITS = (-16, -8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8, 16)


class Metrics:
    """The metrics of one application; each has a registry of its own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        ProcessCollector(registry=registry)  # process_cpu_seconds_total, process_resident_memory_bytes, …
        self.build = Info("assay_build", "What serves: versions, and the fingerprint of /info.", registry=registry)
        self.requests = Counter("assay_requests_total", "Answered requests.", ["route", "status"], registry=registry)
        self.request_s = Histogram(
            "assay_request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.items = Counter("assay_items_total", "Scored items.", ["signal"], registry=registry)
        self.item_errors = Counter(
            "assay_item_errors_total", "Items answered with an error.", ["code"], registry=registry
        )
        self.truncated = Counter("assay_truncated_items_total", "Items scored with a cut prompt.", registry=registry)
        self.logits = Histogram(
            "assay_logit",
            "Logits by signal: the reward's drift.",
            ["signal"],
            buckets=_LOGITS,
            registry=registry,
        )
        self.not_finite = Counter(
            "assay_not_finite_total", "Logits that were not finite.", ["signal"], registry=registry
        )
        self.rejected = Counter(
            "assay_rejected_requests_total", "Requests refused for a full queue.", registry=registry
        )
        self.lookups = Counter(
            "assay_lookups_total",
            "Sequences that were remembered (hit), being computed for another request (in_flight), or neither (miss).",
            ["result"],
            registry=registry,
        )
        self.cache_bytes = Gauge("assay_cache_bytes", "Size of the remembered logits.", registry=registry)
        self.out_of_memory = Counter(
            "assay_out_of_memory_total", "Batches split because memory ran out.", registry=registry
        )
        self.queue_tokens = Gauge("assay_queue_tokens", "Tokens waiting for a forward.", registry=registry)
        self.queue_s = Histogram("assay_queue_seconds", "Wait of a sequence.", buckets=_SECONDS, registry=registry)
        self.batch_tokens = Histogram(
            "assay_batch_tokens",
            "Tokens computed in a forward, a shared prompt once.",
            ["signal"],
            buckets=_TOKENS,
            registry=registry,
        )
        self.forward_s = Histogram(
            "assay_forward_seconds", "Time of a forward.", ["signal"], buckets=_SECONDS, registry=registry
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
