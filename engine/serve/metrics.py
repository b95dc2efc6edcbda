"""What Prometheus reads at /metrics. Rates, such as images a second, are `rate(infercam_images_total[1m])` there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from infercam.engine.serve.hosted import HostedBundle

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Counted(Protocol):
    """What is read of the service."""

    @property
    def open(self) -> int:
        """Requests admitted and not answered."""
        ...

    @property
    def hosts(self) -> Iterable[HostedBundle]: ...


class Metrics:
    """Counters of the server; those of the engines are read from them when asked."""

    def __init__(self, service: Counted) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "infercam_requests",
            "Requests answered, by route and status",
            ["route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "infercam_request_seconds",
            "From a request's header to the last byte of its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._errors = Counter(
            "infercam_errors",
            "Answers with a status of 400 or more, by status",
            ["status"],
            registry=self.registry,
        )
        depth = Gauge("infercam_queue_depth", "Requests admitted and not answered", registry=self.registry)
        depth.set_function(lambda: service.open)
        self.registry.register(_Engines(service))
        ProcessCollector(registry=self.registry)

    def count(self, route: str, status: int, seconds: float) -> None:
        """One request has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if status >= 400:
            self._errors.labels(str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Engines(Collector):
    """The schedulers' own counts."""

    def __init__(self, service: Counted) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        hosts = list(self._service.hosts)
        waiting = GaugeMetricFamily("infercam_images_waiting", "Images not begun", labels=["bundle"])
        flying = GaugeMetricFamily(
            "infercam_images_in_flight", "Images begun and not ended", labels=["bundle"]
        )
        images = CounterMetricFamily("infercam_images", "Images finished", labels=["bundle"])
        pixels = CounterMetricFamily("infercam_network_pixels", "Network pixels inferred", labels=["bundle"])
        halvings = CounterMetricFamily(
            "infercam_out_of_memory", "Batches halved for lack of memory", labels=["bundle"]
        )
        batches = HistogramMetricFamily("infercam_batch_views", "Views in a batch", labels=["bundle"])
        for hosted in hosts:
            stats, label = hosted.live.stats, [hosted.name]
            waiting.add_metric(label, hosted.live.waiting)
            flying.add_metric(label, hosted.live.in_flight)
            images.add_metric(label, stats.images)
            pixels.add_metric(label, stats.pixels)
            halvings.add_metric(label, stats.halvings)
            batches.add_metric(label, *_histogram(hosted))
        yield from (waiting, flying, images, pixels, halvings, batches)


def _histogram(hosted: HostedBundle) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets and the sum of batch sizes."""
    sizes = hosted.live.stats.batch_sizes
    buckets = [(str(b), float(sum(n for size, n in sizes.items() if size <= b))) for b in BATCHES]
    buckets.append(("+Inf", float(sum(sizes.values()))))
    return buckets, float(sum(size * n for size, n in sizes.items()))
