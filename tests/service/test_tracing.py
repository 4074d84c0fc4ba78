"""Spans of requests, as a real receiver of OTLP over HTTP gets them."""

import gzip
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.testclient import TestClient

from assay_service import create_app
from assay_service.errors import StartError
from assay_service.operation_settings import TracingSettings
from assay_service.settings import parse

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"  # of the W3C recommendation
BODY = {"model": "pref", "items": [{"prompt": "hello", "completion": "secret"}]}


@contextmanager
def receive() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a collector, and the bodies that it gets."""
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.send_response(200)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", bodies
    finally:
        server.shutdown()
        server.server_close()


def trace(tiny: dict[str, Any], ratio: float, *requests: dict[str, Any]) -> tuple[list[Span], bytes, list[Any]]:
    """The spans of POSTs to a service, the exported bytes, and the answers."""
    with receive() as (endpoint, bodies):
        tracing = TracingSettings(endpoint=endpoint, ratio=ratio)
        with TestClient(create_app(tiny["settings"].model_copy(update={"tracing": tracing}))) as client:
            answers: list[Any] = [client.post("/v1/score", **request) for request in requests]
            client.get("/health")
    exported = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    spans = [s for e in exported for r in e.resource_spans for scope in r.scope_spans for s in scope.spans]
    return spans, b"".join(bodies), answers


def attributes(span: Span) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_request_is_one_span_with_its_phases_below_the_clients_span(tiny: dict[str, Any]) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "one"}
    spans, exported, (answer,) = trace(tiny, 0.0, {"json": BODY, "headers": headers})
    (server,) = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
    assert server.name == "POST /v1/score"
    assert attributes(server) == {
        "http.request.method": "POST", "http.route": "/v1/score", "http.response.status_code": 200,
        "assay.request_id": "one", "assay.sequences": 1, "assay.sequences_cached": 0, "assay.passes": 1,
    }  # fmt: skip
    phases = [span for span in spans if span is not server]
    assert [span.name for span in phases] == ["render", "queue", "compute"]
    assert {span.parent_span_id for span in phases} == {server.span_id}
    ends = [server.start_time_unix_nano]
    for span in phases:  # one after the other, within the request
        assert ends[-1] <= span.start_time_unix_nano <= span.end_time_unix_nano
        ends.append(span.end_time_unix_nano)
    assert ends[-1] <= server.end_time_unix_nano
    shown = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    for span in phases:
        duration_ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert duration_ms == pytest.approx(float(shown[span.name]), abs=0.002)
    assert b"secret" not in exported


def test_the_parent_decides_and_else_the_ratio(tiny: dict[str, Any]) -> None:
    unsampled = {"json": BODY, "headers": {"traceparent": f"00-{TRACE}-{PARENT}-00"}}
    broken = {"json": BODY, "headers": {"traceparent": "00-zz"}}
    assert trace(tiny, 0.0, {"json": BODY}, broken)[0] == []
    spans, _, _ = trace(tiny, 1.0, unsampled, {"json": BODY}, broken, {"json": {}})
    servers = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]  # none of /health
    assert [attributes(span)["http.response.status_code"] for span in servers] == [200, 200, 422]
    assert len({span.trace_id for span in servers}) == 3
    assert all(span.trace_id.hex() != TRACE and not span.parent_span_id for span in servers)


def test_a_collector_that_is_away_fails_no_request(tiny: dict[str, Any]) -> None:
    tracing = TracingSettings(endpoint="http://127.0.0.1:9/v1/traces", ratio=1)
    with TestClient(create_app(tiny["settings"].model_copy(update={"tracing": tracing}))) as client:
        assert client.post("/v1/score", json=BODY).status_code == 200


def test_without_the_extra_the_start_says_what_to_install(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    settings = tiny["settings"].model_copy(update={"tracing": TracingSettings(endpoint="http://a/v1/traces")})
    with pytest.raises(StartError, match=r"tracing: .* is not installed; install assay-rewards\[otel\]"):
        create_app(settings)


def test_wrong_settings_are_named(tiny: dict[str, Any]) -> None:
    raw = {"signals": {"a": {"base": "b"}}}
    for tracing, said in (
        (
            {"endpoint": "collector:4318"},
            "tracing.endpoint: must be an address such as http://collector:4318/v1/traces",
        ),
        ({"endpoint": "http://a", "ratio": 2}, "tracing.ratio: must be at most 1.0, not 2"),
        ({"endpoint": "http://a", "ration": 1}, "tracing.ration: unknown key; did you mean `ratio`?"),
    ):
        assert parse(raw | {"tracing": tracing}, Path("/")).problems[0].startswith(said)
