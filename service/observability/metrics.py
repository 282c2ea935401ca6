"""Prometheus metrics of one application, in a registry of its own.

Guarantees: labels have few values, all from fixed sets (a path is reported as its route's template). Metrics contain
no image data and no keys.
Out of scope: history, and pushing to a gateway.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from service.observability.drift import DriftMetrics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)


class Metrics:
    """The metrics of one application."""

    def __init__(self, lost_log_lines: Callable[[], int] = lambda: 0) -> None:
        """lost_log_lines: returns how many log lines were lost so far."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_LostLogLines(lost_log_lines))
        self.requests = Counter(
            "fc7_requests_total", "Answered requests.", ("route", "method", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "fc7_request_seconds",
            "Time from a request's headers to its response.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter("fc7_images_total", "Images that went through the model.", registry=registry)
        self.stage_seconds = Histogram(
            "fc7_stage_seconds",
            "Time in a stage: decode and queue (waiting for the model) of an image, run of a batch.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_rows = Histogram("fc7_batch_rows", "Rows in one run of the model.", buckets=_ROWS, registry=registry)
        self.admitted = Gauge("fc7_admitted_images", "Images admitted and not yet answered.", registry=registry)
        self.decoding = Gauge(
            "fc7_decoding_images", "Images that are being decoded or wait for it.", ("state",), registry=registry
        )
        self.decode_failures = Counter(
            "fc7_decode_failures_total",
            "Images refused by their estimated cost, stopped at a limit of time or memory, or lost to a crash.",
            ("reason",),
            registry=registry,
        )
        self.refusals = Counter(
            "fc7_refusals_total", "Refused requests, by the slug of the problem.", ("reason",), registry=registry
        )
        self.key_failures = _count_key_failures(registry)
        self.index_images = Gauge("fc7_index_images", "Images in the index.", registry=registry)
        self.index_bytes = Gauge("fc7_index_bytes", "Size of the index.", ("where",), registry=registry)
        self.missing_vectors, self.jobs = _measure_background_work(registry)
        self.index_fast_recall = Gauge(
            "fc7_index_fast_recall",
            "Share of the 10 exact neighbors that the mode fast finds, as last measured; NaN without short codes.",
            registry=registry,
        )
        self.index_fast_age = Gauge(
            "fc7_index_fast_age_seconds",
            "Time since the short codes of the mode fast were learned; NaN without short codes.",
            registry=registry,
        )
        self.model = Gauge(
            "fc7_model_info", "1 for the active model.", ("name", "version", "precision", "device"), registry=registry
        )
        self.drift = DriftMetrics(registry)
        Gauge("fc7_build_info", "1 for this version of fc7.", ("version", "python"), registry=registry).labels(
            version("fc7"), platform.python_version()
        ).set(1)
        self.ready = Gauge("fc7_ready", "1 while the service is ready.", registry=registry)

    def record_run(self, rows: int, seconds: float) -> None:
        """Count one run of the model."""
        self.batch_rows.observe(rows)
        self.stage_seconds.labels("run").observe(seconds)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _measure_background_work(registry: CollectorRegistry) -> tuple[Gauge, Gauge]:
    """Return the gauges of the migration and of the jobs."""
    missing = Gauge(
        "fc7_index_missing_vectors",
        "Images without a vector of the model that the index is migrating to; 0 without a migration.",
        registry=registry,
    )
    return missing, Gauge("fc7_jobs", "Jobs by kind and state.", ("kind", "state"), registry=registry)


def _count_key_failures(registry: CollectorRegistry) -> Counter:
    """Return the counter of refused keys, which reports 0 for every reason before the first one."""
    counter = Counter(
        "fc7_key_failures_total",
        "Requests refused because of their API key: missing, unknown, expired, scope (too low) or rate (too many).",
        ("reason",),
        registry=registry,
    )
    for reason in ("missing", "unknown", "expired", "scope", "rate"):
        counter.labels(reason)
    return counter


class _LostLogLines(Collector):
    """A counter whose value is read when metrics are rendered: the log must not wait for a metric's lock."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(
            "fc7_log_lines_lost", "Log lines that could not be written.", value=float(self._count())
        )
