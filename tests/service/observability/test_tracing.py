"""Spans are sent over real HTTP to a small collector that runs in the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support import pictures
from tests.support.server import process_server, thread_server, wait_until


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Yield the URL of a collector, and the list of requests that it received."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            del arguments

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def spans(received: list[Any]) -> list[Any]:
    return [
        span
        for request in received
        for group in request.resource_spans
        for one in group.scope_spans
        for span in one.spans
    ]


def test_a_request_and_its_stages_continue_the_trace_of_the_client(home: Path) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collector() as (endpoint, received):
        with thread_server(home, otlp_endpoint=endpoint) as server:
            answer = server.client.post(
                "/v1/classify?k=2",
                files=[("file", (f"{i}.jpg", pictures.jpeg(i), "image/jpeg")) for i in range(2)],
                headers={"traceparent": f"00-{trace}-{parent}-01", "X-Request-ID": "mine"},
            )
            assert answer.status_code == 200
        found = spans(received)  # the remaining spans were sent when the server stopped
    own = [span for span in found if span.trace_id.hex() == trace]
    [request] = [span for span in own if span.name == "request"]
    assert request.parent_span_id.hex() == parent
    stages = [span for span in own if span.name != "request"]
    assert sorted(span.name for span in stages) == ["decode"] * 2 + ["queue"] * 2 + ["run"] * 2
    for span in stages:
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    attributes = {entry.key: entry.value for entry in request.attributes}
    assert attributes["http.route"].string_value == "/v1/classify"
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["fc7.request_id"].string_value == "mine"
    assert attributes["fc7.images"].int_value == 2
    resource = {entry.key: entry.value.string_value for entry in received[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == "fc7"


def test_the_standard_variables_are_read_and_the_log_contains_the_trace_id(home: Path) -> None:
    with collector() as (endpoint, received):
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "FC7_LOG_LEVEL": "debug",  # the first span may be a probe's
        }
        with process_server(home, **variables) as server:
            wait_until(lambda: bool(spans(received)))
            logged = {line.get("trace_id") for line in server.lines() if line["event"] == "request"}
            assert spans(received)[0].trace_id.hex() in logged
        resource = {entry.key: entry.value.string_value for entry in received[0].resource_spans[0].resource.attributes}
        assert resource["service.name"] == "shop"


def test_an_unreachable_collector_does_not_affect_requests(home: Path) -> None:
    with thread_server(home, otlp_endpoint="http://127.0.0.1:1") as server:
        for seed in range(3):
            answer = server.client.post(
                "/v1/classify", content=pictures.jpeg(seed), headers={"Content-Type": "image/jpeg"}
            )
            assert answer.status_code == 200
