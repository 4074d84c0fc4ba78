"""Send one span for each request, with its phases as children, to a collector of OpenTelemetry.

Spans are made of the request's `Timings` when it has ended, so tracing reads no clock while a request runs. No text
of a request is in a span.
"""

import time
from collections.abc import Mapping
from importlib.metadata import version

from assay_service.errors import StartError
from assay_service.operation_settings import TracingSettings
from assay_service.telemetry.timings import Timings

_NS = 1_000_000_000


class Tracer:
    """A sender of spans; a thread of its own exports them.

    Args:
        settings: the collector, and the share of requests that are traced.

    Raises:
        StartError: the packages of the extra `otel` are not installed.
    """

    def __init__(self, settings: TracingSettings) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415
        except ImportError as error:
            raise StartError(
                f"tracing: {error.name} is not installed; install assay-rewards[otel], or remove `tracing`"
            ) from error
        resource = Resource.create({"service.name": "assay", "service.version": version("assay-rewards")})
        # Not the global provider, so that two applications in a process have their own collectors.
        self._provider = TracerProvider(ParentBasedTraceIdRatio(settings.ratio), resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.endpoint)))
        self._tracer = self._provider.get_tracer("assay_service")

    def record(
        self, timings: Timings, now_s: float, name: str, headers: Mapping[str, str], attributes: Mapping[str, str | int]
    ) -> str | None:
        """Record a request that has ended.

        Args:
            timings: its times.
            now_s: its end on the monotonic clock, which is now.
            name: name of the span.
            headers: `traceparent` and `tracestate` as they were sent, where they were.
            attributes: attributes of the span; `http.response.status_code` of 500 and above marks it as an error.

        Returns:
            The trace id, in hexadecimal; None if the request is not sampled.
        """
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        # The wall clock is read once, so that its jumps cannot change a duration.
        offset_ns = time.time_ns() - round(now_s * _NS)

        def place(at_s: float) -> int:
            return round(at_s * _NS) + offset_ns

        parent = TraceContextTextMapPropagator().extract(headers)
        span = self._tracer.start_span(
            name, parent, trace.SpanKind.SERVER, dict(attributes), start_time=place(timings.arrived_s)
        )
        if not span.get_span_context().trace_flags.sampled:
            return None
        if int(attributes["http.response.status_code"]) >= 500:
            span.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(span)
        for phase, start_s, end_s in timings.list_intervals():
            self._tracer.start_span(phase, inside, start_time=place(start_s)).end(place(end_s))
        span.end(place(now_s))
        return trace.format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Export what is left, and end the thread."""
        self._provider.shutdown()
