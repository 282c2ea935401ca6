"""Spans of each request for an OpenTelemetry collector: `request`, and in it `decode`, `queue` and `run` of each image.

Promises: a trace that the client began (W3C `traceparent`) is continued; spans are sent in batches from a thread of
their own, and what a collector does not take is dropped: no request waits for it. Nothing of a picture or a key.
Does not: sample (the standard OTEL_ variables say how; the SDK reads them), trace index or start.
Source: OpenTelemetry's semantic conventions for HTTP; W3C Trace Context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

from model_store.errors import MissingExtraError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Stage(NamedTuple):
    """A part of a request's work; times in nanoseconds since 1970."""

    name: str
    start: int
    end: int


class Answered(NamedTuple):
    """A request that was answered; times in nanoseconds since 1970."""

    method: str
    route: str
    status: int
    request_id: str
    images: int
    start: int
    end: int


class Tracing:
    """Where spans go: an OTLP collector over HTTP."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: the collector's address without a path ("http://localhost:4318"). Raises MissingExtraError."""
        try:
            # An extra: only who traces needs it.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as exc:
            raise MissingExtraError("opentelemetry-sdk", "otel") from exc
        resource = Resource({"service.name": "fc7", "service.version": version("fc7")})
        self._provider: TracerProvider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()))
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("fc7")

    def record(self, headers: Mapping[str, str], request: Answered, stages: Sequence[Stage]) -> str:
        """Note a request and its stages; return the trace's number in hexadecimal, for the log."""
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
        inside = trace.set_span_in_context(span)
        for stage in stages:
            self._tracer.start_span(stage.name, context=inside, start_time=stage.start).end(stage.end)
        if request.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(request.end)
        return trace.format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Send what is left, and stop."""
        self._provider.shutdown()
