"""OpenTelemetry traces: a span `request`, with child spans `decode`, `queue` and `run` for each image.

Guarantees: a trace started by the client (W3C `traceparent`) is continued. Spans are sent in batches from a background
thread, and dropped if the collector does not accept them, so no request waits for it. Spans contain no image data
or keys.
Out of scope: sampling (the SDK reads the standard OTEL_ variables), spans of index operations and of the start.
References: OpenTelemetry's semantic conventions for HTTP; W3C Trace Context.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, NamedTuple

from model_store.errors import MissingExtraError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


_CLOSE_S: Final = 0.4


class Stage(NamedTuple):
    """A stage of a request. Times are in nanoseconds since 1970."""

    name: str
    start: int
    end: int


class RequestSpan(NamedTuple):
    """An answered request. Times are in nanoseconds since 1970."""

    method: str
    route: str
    status: int
    request_id: str
    images: int
    start: int
    end: int


class Tracing:
    """Sends spans to an OTLP collector over HTTP."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: the collector's URL without a path ("http://localhost:4318"). Raises MissingExtraError."""
        try:
            # An optional extra, needed for tracing only.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as exc:
            raise MissingExtraError("opentelemetry-sdk", "otel") from exc
        resource = Resource({"service.name": "fc7", "service.version": version("fc7")})
        self._provider: TracerProvider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("fc7")

    def record(self, headers: Mapping[str, str], request: RequestSpan, stages: Sequence[Stage]) -> str:
        """Record a request and its stages; return the trace ID in hexadecimal, for the log."""
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        span = self._tracer.start_span(
            "request",
            context=TraceContextTextMapPropagator().extract(dict(headers)),
            kind=trace.SpanKind.SERVER,
            start_time=request.start,
            attributes={
                "http.request.method": request.method,
                "http.route": request.route,
                "http.response.status_code": request.status,
                "fc7.request_id": request.request_id,
                "fc7.images": request.images,
            },
        )
        parent = trace.set_span_in_context(span)
        for stage in stages:
            self._tracer.start_span(stage.name, context=parent, start_time=stage.start).end(stage.end)
        if request.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(request.end)
        return trace.format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Send the remaining spans, for a moment, and stop.

        The SDK would wait for a slow or missing collector for up to 30 s, so that its thread is left behind.
        """
        thread = threading.Thread(target=self._provider.shutdown, name="fc7-traces", daemon=True)
        thread.start()
        thread.join(_CLOSE_S)
