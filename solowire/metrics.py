"""Metrics for Prometheus: the only module that imports prometheus_client.

The data path counts in plain integers. They become metrics only while somebody scrapes, so that a process which can't
be scraped, or is scraped too often, never slows what it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[str, str, float]
"""Name without the prefix `solowire_`, help, value. A name that ends in `_total` is a counter, others are gauges."""


class Metrics(Collector):
    """Renders what `read` returns at the moment of a scrape. labels: on every sample, such as {"shard": "0"}."""

    def __init__(self, read: Callable[[], Iterable[Sample]], labels: dict[str, str] | None = None) -> None:
        self._read = read
        self._labels = labels or {}
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        names = list(self._labels)
        for name, help, value in self._read():
            family: CounterMetricFamily | GaugeMetricFamily
            if name.endswith("_total"):
                family = CounterMetricFamily(f"solowire_{name}", help, labels=names)
            else:
                family = GaugeMetricFamily(f"solowire_{name}", help, labels=names)
            family.add_metric(list(self._labels.values()), value)
            yield family

    def render(self) -> bytes:
        return generate_latest(self._registry)
